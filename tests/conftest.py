"""Settings of every test: shapes checked, CPU only, compiled quickly and kept between runs.

`_prepare` runs while this file is imported, before any test module imports jax or the library.
"""

import atexit
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false"
"""The same programs a quarter sooner, of which most of a test's time is made; not for the full run,
which compiles as users do. Lower optimization is quicker still, but makes the last bit of a number
depend on its place in an array."""


def _xla_knows(flags: str) -> bool:
    """Another release may not: there a process with them ends at once."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.run(start, env=environment, capture_output=True).returncode == 0


def _prepare() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = QUICK_TO_COMPILE if _xla_knows(QUICK_TO_COMPILE) else ""
    os.environ["IDODE_CACHE_DIR"] = tempfile.mkdtemp(prefix="idode_gin_tests_")
    atexit.register(shutil.rmtree, os.environ["IDODE_CACHE_DIR"], ignore_errors=True)
    import jaxtyping

    # Every annotation of the library is checked at every call, shapes included.
    jaxtyping.install_import_hook("idode_gin", "annotations.check")


_prepare()


SLOWEST_FIRST = (
    "end_to_end",
    "golden",
    "laws",
    "training",
    "evaluation",
    "checkpoints",
    "feed",
    "tasks",
    "processes",
    "devices",
    "generation",
    "runs",
    "reports",
    "configs",
)


REPETITIONS = (
    # What stays in the normal run shows the same at another width, seed, size or loss.
    r"golden/test_loss.py.*in_float32\[",
    r"golden/test_loss.py.*\[loss_SP_(vel_2nd|eps)\]",
    r"golden/test_loss.py.*\[loss_VP_(vel|vel_2nd|vel_imp_noanti)\]",
    r"golden/test_ode.py.*\[ode_(SP_tn_K3_attn|SP_u_K1|VP_u_K1|SP_u_K3|VP_tn_K1|VP_v_K3|VP_tn_K3)\]",
    r"golden/test_sample.py.*\[sample_(SP|VP_eps)\]",
    r"golden/test_train.py.*\[train_VP(_fast)?\]",
    r"golden/test_train.py.*float32\[",
    r"laws/test_likelihood.py.*tighter\[dequantizer1\]",
    r"end_to_end/test_prepared_data.py.*\[imagenet, zip\]",
    r"laws/test_bounds.py.*own_figure\[DiscreteTime\]",
    r"laws/test_likelihood.py::test_an_image_has_its_own_figure",
    r"laws/test_models.py.*equal_the_whole_batch\[FirstOrder\]",
    r"laws/test_models.py.*own_figure\[float64-",
    r"laws/test_models.py.*every_time_sampler\[",
    r"laws/test_models.py.*all_quantiles\[",
    r"laws/test_samplers.py.*own_key_alone\[ODESamplerWithDensity\]",
    r"laws/test_sampling.py.*scoring_them_finds\[(VariancePreserving|StraightPath-exact)",
    r"laws/test_networks.py.*test_(an_image|initial|time_and|float64).*"
    r"\[.*(no fourier|three numbers|attention everywhere|in loops).*\]",
    r"golden/test_loss.py.*\[loss_(VP_eps|VP_vel_imp|SP_vel)\]",
    r"golden/test_official_evaluation.py.*own_draws\[Variational-3\]",
    r"golden/test_ode.py.*\[ode_(VP_v_K1|VP_tn_K1_eps)\]",
    r"golden/test_sample.py.*\[sample_VP\]",
    r"laws/test_latents.py.*(come_back\[Straight|itself_there_is_itself|as_long_as_noise)",
    r"laws/test_mass.py.*range\[.*StraightPath-3\]",
    r"laws/test_models.py.*own_figure\[float32-",
    r"laws/test_pilot.py.*kept\[(Data|Noise|Score|Velocity-StraightPath)",
    r"laws/test_pilot.py.*kept\[.*tolerances1\]",
    r"laws/test_samplers.py.*(variance_of_the_data|key_alone|are_counted)\[(Ancestral|ODESampler)",
    r"laws/test_sampling.py.*scoring_them_finds\[StraightPath-probes\]",
    r"laws/test_sampling.py.*in_each_variable\[(Exponential|Gamma|Natural)",
    r"laws/test_sampling.py.*back_to_their_noise\[StraightPath\]",
    r"generation/test_encoder.py::test_solves_that_do_not_arrive",
    r"generation/test_encoder.py.*another_batch_size\[(density|interpolate|noise in steps)\]",
    r"laws/test_integration_variables.py.*exact_in_each\[.*StraightPath",
    r"laws/test_refilling.py.*agree\[(1|7|10)-",
    r"evaluation/test_evaluator.py::test_(adaptive_steps_of_a_convolutional|a_sample_does_not_see)",
    r"training/test_guards.py::test_bins_",
    r"devices/test_partitioning.py::test_(each_device|the_mesh_changes|model_info)",
    r"training/test_train_step.py.*whole_batch\[2\]",
    r"training/test_trainer.py::test_(a_seed_changes_them|a_torn_row)",
    r"training/test_trainer.py::test_cut_off_anywhere.*\[[2-5]-",
    r"training/test_trainer.py::test_asked_to_stop_after_a_step\[[34]\]",
    r"end_to_end/test_prepared_data.py.*\[cifar10, binary\]",
    r"golden/test_drift.py::test_drift_and_divergence.*\[drift_(SP_eps|VP_vel)\]",
    r"golden/test_loss.py.*\[loss_SP_vel_imp_2nd\]",
    r"golden/test_ode.py::test_likelihood\[ode_(SP_v_K1|SP_tn_K3)\]",
    r"golden/test_train.py.*run_in_float64\[(train_VP_accum2|ckpt_P32c)\]",
    r"laws/test_likelihood.py.*each_image\[(StraightPath-Variational|Variance\w*-(Un|Tr)\w*)\]",
    r"laws/test_mass.py.*range\[Uniform-VariancePreserving-3\]",
    r"laws/test_networks.py.*derivatives_agree\[(three numbers|attention).*\]",
    r"laws/test_networks.py::test_what_the_gradient_keeps\[False\]",
    # Laws of every schedule with every parameterization: here of two pairs.
    r"laws/test_bounds.py.*tight_at_the_optimum\[(Variance\w*-[DNS]|StraightPath-[DSV])\w*\]",
    r"laws/test_likelihood.py::test_gaussian_density_is_exact\[(Variance\w*-[DNS]|Str\w*-[DSV])\w*\]",
    r"laws/test_losses.py.*order_is_unbiased\[\w+-(Variance\w*-[DNS]|StraightPath-[DSV])\w*\]",
    r"laws/test_losses.py.*residual_at_the_optimum\[\w+-(Variance\w*-[DNS]|Straight\w*-[DSV])\w*\]",
    r"laws/test_bounds.py.*times_does_not_change_the_mean\[(1|16)\]",
    r"laws/test_bounds.py.*equals_its_sum\[(2-2|8-8|64-8)\]",
    r"laws/test_likelihood.py.*(every_method|forgets_the_prior)\[Variance\w*",
    r"laws/test_likelihood.py::test_hutchinson_is_unbiased_along_a_path\[probe1\]",
    r"golden/test_score.py::test_network_output\[float32-score_(64\w_|32a_(32x32|nofourier))",
    r"golden/test_score.py::test_network_output\[float64-score_64a_32x32",
    r"golden/test_loss.py.*\[loss_SP_vel_imp(_2nd_attn)?\]",
    r"golden/test_ode.py::test_likelihood\[ode_VP_u_K3\]",
    r"golden/test_score.py::test_network_output\[float64-score_(64a_8x8|32a_nofourier_8x8)\]",
    r"laws/test_mass.py.*range\[Variational-VariancePreserving-3\]",
    r"laws/test_models.py::test_training_parts_add_up_in_bits\[FirstOrder\]",
    r"laws/test_networks.py::test_(an_image|forward_and)_.*\[no (levels|fourier)\]",
    r"laws/test_networks.py::test_float64_throughout",
    r"laws/test_sampling.py.*closed_form_says\[(Variance\w*-[DNS]|StraightPath-[DSV])\w*\]",
    r"evaluation/test_eval_watch.py::test_compiled_once_for_all\[pilot\]",
    r"training/test_guards.py::test_a_step_left_out_is_a_step_that_never_was\[1-",
    r"training/test_train_step.py::test_microbatches_give_the_step_of_the_whole_batch\[4\]",
    r"training/test_trainer.py::test_divergence_keeps_the_last_good_checkpoint\[(4-2|1-None)\]",
    r"golden/test_train.py.*run_in_float64\[train_VP_fast_decay_clip\]",
    r"laws/test_models.py.*equal_the_whole_batch\[SecondOrder\]",
    r"laws/test_networks.py::TestDropout::test_keyed_per_example",
    r"laws/test_networks.py::test_forward_and_.*\[in loops\]",
    r"laws/test_networks.py::test_initial_.*\[plain\]",
    r"laws/test_pilot.py::test_what_coarse_arithmetic_does_is_measured_and_refused\[given\]",
    r"tasks/test_prepare.py::test_cifar10_lies_.*\[cifar10_binary\]",
    r"tasks/test_prepare_process.py::test_stopped_half_way\[9\]",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left with one when the others are done.

    Raises:
        pytest.UsageError: if a pattern of `REPETITIONS` has become stale.
    """
    items.sort(key=lambda item: SLOWEST_FIRST.index(item.path.relative_to(HERE).parts[0]))
    found = set()
    for item in items:
        for pattern in REPETITIONS:
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.full)
                found.add(pattern)
    stale = [each for each in REPETITIONS if each not in found]
    is_whole = [pathlib.Path(each).resolve() for each in config.args] == [HERE.resolve()]
    if is_whole and stale:
        raise pytest.UsageError(f"REPETITIONS in tests/conftest.py that match no test: {stale}.")


@pytest.fixture(autouse=True)
def _data_folders_of_its_own() -> Iterator[None]:
    """The data flags bind the whole process: what one test named, the next must not find."""
    before = list(sys.modules["seqio"].get_global_cache_dirs()) if "seqio" in sys.modules else []
    yield
    if (seqio := sys.modules.get("seqio")) is not None:
        seqio.set_tfds_data_dir_override(None)
        seqio.set_global_cache_dirs(before)


@contextlib.contextmanager
def _width(double: bool) -> Iterator[None]:
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", double)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture
def float64() -> Iterator[None]:
    """Runs a test with 64-bit numbers; jax keeps what it compiled for either width apart."""
    with _width(double=True):
        yield


@pytest.fixture
def float32() -> Iterator[None]:
    """Runs a test with 32-bit numbers, which matters only inside `float64`."""
    with _width(double=False):
        yield
