"""Sampling from given noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.adaptive import DormandPrince

from . import cases, official_config, published


@pytest.mark.full_cases("sample_(SP|VP_eps)", "sample_VP")
@pytest.mark.parametrize("name", cases.of_kind("sample"))
def test_samples(name, float64):
    case = cases.load(name)
    model, levels = official_config.model_of(case.model), case.model["vocab_size"]
    noise = jnp.asarray(case.inputs["z_init"], "float64")
    field = model.field(cases.params(case, "float64"), jnp.zeros((noise.shape[0], 1)))
    sampler = ODESampler(solver=DormandPrince(rtol=1e-6, atol=1e-6))
    np.testing.assert_allclose(
        case.f64["t_span"], [model.time.gamma_max, model.time.gamma_min], rtol=1e-12
    )

    found = jax.jit(
        lambda noise: sampler.from_noise(field, model.end, model.time.gamma_max, noise)
    )(noise)
    assert np.all(found.success)
    error, _ = cases.difference(found.latent, case.f64["tight_z_0"], name)
    # The recorded run had a tolerance ten times ours.
    own_error, _ = cases.difference(case.f64["z_0"], case.f64["tight_z_0"], name)
    assert error < max(2e-5, own_error), error
    check_levels(
        published.decode(model.end, found.latent),
        case.f64["tight_samples"],
        found.latent / model.end.alpha**2,
        error,
        levels,
    )
    corrected = np.floor(
        (np.asarray(case.f64["tight_z_0"], float) / float(model.end.alpha) + 1) * levels / 2
    )
    corrected = np.clip(corrected, 0, levels - 1)
    check_levels(found.pixels, corrected, found.latent / model.end.alpha, error, levels)
    # The recorded run at the published tolerance, on the whole batch's steps.
    error, _ = cases.difference(found.latent, case.f64["z_0"], name)
    assert error < own_error + 2e-5, error


def check_levels(found, expected, y, error, levels):
    """Equal levels, but for values within the solver's error of the edge of a bin."""
    in_bins = np.asarray(y + 1) * levels / 2
    to_edge = np.abs(in_bins - np.round(in_bins)) * 2 / levels
    clear = to_edge > 4 * error + 1e-7
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(found)[clear], expected[clear])
