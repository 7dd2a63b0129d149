"""The programs that a small evaluation compiles: those that it needs, and few of one operation."""

import collections

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
