"""Importance-sampled times for given quantiles."""

import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.schedules.time.linear import Linear
from idode_gin.time_samplers.importance import Importance

from . import cases, official_config

OTHER_RANGE = (-10.0, 6.5)
"""Ends of gamma in the arrays whose names contain "_alt", which no configuration holds."""


def ranges_of(case):
    """Ends of gamma by the suffix of a schedule's name in those of the arrays."""
    return {"": (case.model["gamma_min"], case.model["gamma_max"]), "_alt": OTHER_RANGE}


def sample(case, schedule, ends, sampler, dtype):
    """gamma at the recorded quantiles, and the integral of alpha^2."""
    low, high = ends
    model = official_config.model_of({**case.model, "schedule": schedule})
    time = Linear(gamma_min=low, gamma_max=high)

    def weight(gamma):
        return model.parameterization.weight(model.schedule, gamma)

    sampler = sampler or model.time_sampler
    u = jnp.asarray(case.inputs["t"], dtype)
    gamma, density = sampler.gamma_and_density(u, time, weight)
    integral = model.schedule.alpha(gamma) ** 2 / density
    np.testing.assert_allclose(integral, integral[0], rtol=1e-9 if dtype == "float64" else 2e-5)
    return gamma, jnp.median(integral)


@pytest.mark.parametrize("sampler", [None, Importance()], ids=["published", "numeric"])
@pytest.mark.parametrize("name", cases.of_kind("importance"))
def test_importance_sampled_gamma(name, sampler, dtype):
    case = cases.load(name)
    computed, slack = {}, {}
    for schedule in ("VP", "SP"):
        for suffix, ends in ranges_of(case).items():
            gamma, integral = sample(case, schedule, ends, sampler, dtype)
            computed |= {f"{schedule}{suffix}/g_t": gamma, f"{schedule}{suffix}/Z": integral}
            # The last unit of the mass is this much gamma where the density is least.
            path = official_config.model_of({**case.model, "schedule": schedule}).schedule
            least = path.alpha(jnp.asarray(ends[1]))
            slack[f"{schedule}{suffix}/g_t"] = float(np.finfo(np.float32).eps * integral / least**2)
    cases.assert_all(case, computed, slack=slack)
