"""The network: outputs for given parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.interop import official

from . import cases, official_config


@pytest.mark.full_cases(
    r"float32-score_(64\w_|32a_(32x32|nofourier)).*",
    "float64-score_64a_32x32.*",
    "float64-score_(64a_8x8|32a_nofourier_8x8)",
)
@pytest.mark.parametrize("name", cases.of_kind("score"))
def test_network_output(name, dtype):
    case = cases.load(name)
    model = official_config.model_of(case.model)
    params = cases.params(case, dtype)
    inputs = {key: jnp.asarray(value, dtype) for key, value in case.inputs.items()}

    @jax.jit
    def output(z, gamma, conditioning):
        return model.field(params, conditioning[:, None]).output(z, gamma)

    z, gamma, conditioning = inputs["z"], inputs["g_t"], inputs["conditioning"]
    computed = {
        "F": output(z, gamma, conditioning),
        "F_scalar_g": output(z, jnp.full_like(gamma, inputs["g_scalar"]), conditioning),
        "F_cond_flipped": output(z, gamma, 1 - conditioning),
    }
    cases.assert_all(case, computed)


@pytest.mark.parametrize("name", cases.of_kind("score"))
def test_parameters_map_one_to_one(name):
    case = cases.load(name)
    published = cases.published_params(case)
    ours = official.from_official(published, official_config.network_of(case.model))
    back = official.flatten(official.to_official(ours))
    assert {"/".join(path) for path in back} == set(published)
    for path, leaf in back.items():
        np.testing.assert_array_equal(leaf, published["/".join(path)])
    assert official.network_of(published) == official_config.network_of(case.model)
