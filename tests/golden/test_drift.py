"""The probability-flow field and its divergence, in gamma."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.integration_variables.base import rate_and_divergences
from idode_gin.integration_variables.gamma import Gamma
from idode_gin.solvers.divergence import Exact, Hutchinson

from . import cases, official_config

FULL_IN_FLOAT32 = ("drift_SP_vel", "drift_SP_eps", "drift_VP_eps")
"""Left to the full test run; the quick one has every case in float64."""


@pytest.mark.full_cases("drift_(SP_eps|VP_vel)")
@pytest.mark.parametrize("name", cases.of_kind("drift"))
def test_drift_and_divergence(name, float64):
    check(name, float64)


@pytest.mark.full_cases("drift_(SP_eps|VP_vel)")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if name in FULL_IN_FLOAT32 else ())
        for name in cases.of_kind("drift")
    ],
)
def test_drift_and_divergence_in_float32(name):
    check(name, "float32")


def check(name, dtype):
    case = cases.load(name)
    model = official_config.model_of(case.model)
    inputs = {key: jnp.asarray(value, dtype) for key, value in case.inputs.items()}
    field = model.field(cases.params(case, dtype), inputs["conditioning"][:, None])

    @jax.jit
    def at(gamma):
        each = jnp.full(inputs["x"].shape[0], gamma)
        probes = inputs["epsilon"][None]
        return rate_and_divergences(Gamma(), field, each, inputs["x"], Hutchinson(), probes)

    drift, divergence = zip(*map(at, inputs["gamma"]), strict=True)
    computed = {"drift": jnp.stack(drift), "div": jnp.stack(divergence)[..., 0]}
    slack = rounding_of_outputs(case, model) if dtype == "float32" else {}
    cases.assert_all(case, computed, elsewhere=["div_exact"], slack=slack)


def rounding_of_outputs(case, model):
    """Rounding of drift and divergence by that of parameters, latents and gammas."""
    conditioning, epsilon = case.inputs["conditioning"][:, None], case.inputs["epsilon"][None]

    def outputs(params, x, gammas):
        field = model.field(params, jnp.asarray(conditioning, x.dtype))
        probes = jnp.asarray(epsilon, x.dtype)

        def at(gamma):
            each = jnp.full(x.shape[0], gamma)
            return rate_and_divergences(Gamma(), field, each, x, Hutchinson(), probes)

        return jax.lax.map(at, gammas)

    inputs = cases.params(case), case.inputs["x"], case.inputs["gamma"]
    return dict(zip(("drift", "div"), cases.rounding_of(outputs, inputs), strict=True))


EXACT_IN_QUICK_RUN = ("drift_SP_vel",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in EXACT_IN_QUICK_RUN else pytest.mark.full)
        for name in cases.of_kind("drift")
    ],
)
def test_exact_divergence(name, float64):
    case = cases.load(name)
    model = official_config.model_of(case.model)
    inputs = {key: jnp.asarray(value, "float64") for key, value in case.inputs.items()}
    field = model.field(cases.params(case, "float64"), inputs["conditioning"][:, None])

    @jax.jit
    def at(gamma):
        each = jnp.full(inputs["x"].shape[0], gamma)
        probes = jnp.zeros((0, *inputs["x"].shape))
        return rate_and_divergences(Gamma(), field, each, inputs["x"], Exact(), probes)[1][:, 0]

    for number in (0, 5):
        found = at(inputs["gamma"][number])
        np.testing.assert_allclose(found, case.f64["div_exact"][number], rtol=1e-9)
