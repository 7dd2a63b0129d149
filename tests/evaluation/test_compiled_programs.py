"""What a small evaluation compiles and imports: no more than it needs."""

import collections
import subprocess
import sys

import interrupted
import jax
import pytest
import tiny
from jax import monitoring

from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.runs import partial_results, run_inputs

EVENT = "/jax/core/compile/backend_compile_duration"
NEEDED = {
    "jit(computed)": 2,  # the variational bound, and the likelihood on the grid that is chosen
    "jit(_score)": 1,  # the pilot, for grids of any number of steps
    "jit(<lambda>)": 1,  # its random key
}
ONE_OPERATION = 6 + 6 + 1 + 12
"""Programs of one operation, whose rounding figures depend on: on the ends of the ODE, before and
while the likelihood is traced; a blank conditioning; and on the weights of the pilot's grids."""

UNNEEDED = {"IPython", "clu.metric_writers", "idode_gin.training", "matplotlib", "pandas"}
UNNEEDED |= {"pyarrow", "scipy.stats", "sklearn", "tensorboard"}
"""Modules that take long to import, and that the first score does not need."""
BEFORE_THE_FIRST_SCORE = f"""
import sys
import idode_gin.eval
from idode_gin.feed import data, loading
digits = data.DatasetConfig(mixture_or_task_name="digits", split="test", batch_size=1)
assert len(loading.load_split(digits).images) == 300
assert "tensorflow" in sys.modules
print(*sorted({UNNEEDED} & sys.modules.keys()))
"""


@pytest.fixture
def compiled():
    """Count compiled programs by name."""
    found = collections.Counter()

    def listen(event, _, **more):
        if event == EVENT:
            found[more["fun_name"]] += 1

    jax.clear_caches()
    monitoring.register_event_duration_secs_listener(listen)
    yield found
    monitoring.unregister_event_duration_listener(listen)


def test_an_evaluation_compiles_what_it_needs(compiled, monkeypatch, tmp_path):
    interrupted.prepare(monkeypatch.setattr)
    restored = run_inputs.load_params(tiny.model(), tiny.SHAPE)
    monkeypatch.setattr(run_inputs, "load_params", lambda *_: restored)
    compiled.clear()
    first, add = collections.Counter(), partial_results.PartialResults.add

    def watched(*arguments):
        if not first:
            first.update(compiled)
        add(*arguments)

    monkeypatch.setattr(partial_results.PartialResults, "add", watched)
    likelihoods = {"tn": ODELikelihood(dequantizer=TruncatedNormal())}
    pilot = Pilot(tolerance=0.05, num_images=4)
    interrupted.evaluate(tmp_path, 41, likelihoods=likelihoods, pilot=pilot)
    assert first == {"jit(computed)": 1}
    assert {name: compiled[name] for name in NEEDED} == NEEDED
    assert compiled.total() - sum(NEEDED.values()) <= ONE_OPERATION, compiled


def test_the_first_score_waits_for_no_module_that_it_does_not_need():
    command = [sys.executable, "-c", BEFORE_THE_FIRST_SCORE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "\n"
