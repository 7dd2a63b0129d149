"""Log-likelihoods by the ODE for given dequantization noise and probes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import numerics
from idode_gin.interop import official_config, official_parity
from idode_gin.likelihood import ODELikelihood
from idode_gin.solvers.adaptive import DormandPrince

from . import cases

# Far below the 1e-4 bits per dim that are asked for, at a third of the recorded cost.
TOLERANCES = {"float64": 1e-6, "float32": 1e-5}


@functools.cache
def compiled(model, dequantizer, num_importance, tolerance):
    """`log_weight` of one draw; models that differ in more compile anew."""
    estimator = ODELikelihood(
        dequantizer=dequantizer,
        solver=DormandPrince(rtol=tolerance, atol=tolerance),
        num_importance=num_importance,
    )

    @jax.jit
    def log_weight(params, images, conditioning, noise, probes):
        field = model.field(params, conditioning)
        return estimator.log_weight(
            field, model.end, model.time.gamma_max, images, noise, probes
        )

    return log_weight


def log_weights(case, dtype):
    """The log-likelihood of every recorded draw and image, and the ODE's part of it in detail."""
    model = official_config.model_of(case.model)
    dequantizer = official_config.dequantizer_of(case.model)
    run = compiled(model, dequantizer, case.model["num_importance"], TOLERANCES[dtype])
    params = cases.params(case, dtype)
    inputs = {key: jnp.asarray(case.inputs[key], dtype) for key in ("epsilon", "noise")}
    conditioning = jnp.asarray(case.inputs["conditioning"], dtype)[:, None]
    results = [
        run(params, case.inputs["images"], conditioning, noise, inputs["epsilon"][None])
        for noise in inputs["noise"]
    ]
    weights, densities = zip(*results, strict=True)
    return jnp.stack(weights), jax.tree.map(lambda *leaves: jnp.stack(leaves), *densities)


def published_from(case, weights, dtype):
    """The published log-likelihoods behind ours: the second division; the uniform's 7 bits later."""
    model = official_config.model_of(case.model)
    end, images = model.end, case.inputs["images"]
    dequantizer = official_config.dequantizer_of(case.model)
    if case.model["dequantization"] == "u":
        return weights - dequantizer.entropy(case.dims, end)
    if case.model["dequantization"] == "tn":
        return weights
    noise = jnp.asarray(case.inputs["noise"], dtype)
    z = [dequantizer.start(images, each, end) for each in noise]
    right = jnp.stack([dequantizer.log_reconstruction(images, each, end) for each in z])
    twice = [official_parity.decoder_log_prob(end, images, each / end.alpha) for each in z]
    return weights - right + jnp.stack(twice)


def published_bpd(case, published):
    """The published aggregation of its own log-likelihoods."""
    if case.model["num_importance"] == 1:
        assert published.shape[0] == official_parity.REPEATS_OF_ONE_SAMPLE
        log_p = official_parity.one_sample_log_likelihood(published)
    else:
        log_p = official_parity.importance_log_likelihood(published)
    bits_of_bin = 7.0 if case.model["dequantization"] == "u" else 0.0
    return numerics.nats_to_bpd(-log_p, case.dims) + bits_of_bin


@pytest.mark.parametrize("name", cases.of_kind("ode"))
def test_likelihood(name, dtype):
    case = cases.load(name)
    model = official_config.model_of(case.model)
    dequantizer = official_config.dequantizer_of(case.model)
    weights, density = log_weights(case, dtype)
    assert np.all(density.success)
    record = case.f64

    start, end = dequantizer.gamma_start(model.end), model.time.gamma_max
    np.testing.assert_allclose([start, end], record["tight_t_span"], rtol=1e-12)
    z = dequantizer.start(case.inputs["images"], jnp.asarray(case.inputs["noise"][0], dtype), model.end)
    np.testing.assert_allclose(z, record["tight_x_start_0"], atol=3e-7)

    published = published_from(case, weights, dtype)
    bits = 1 / (case.dims * math.log(2))
    error, _ = cases.difference(published, record["tight_logps"], name)
    assert error * bits < LIMITS[dtype], error * bits
    error, _ = cases.difference(published_bpd(case, published), record["tight_bpd"], name)
    assert error < LIMITS[dtype], error

    error, _ = cases.difference(density.latent[0], record["tight_z_end_0"], name)
    assert error < 1e-4, error
    error, _ = cases.difference(density.log_det, record["tight_delta_logp"], name)
    assert error * bits < LIMITS[dtype], error * bits


LIMITS = {"float64": 2e-6, "float32": 1e-4}
"""Bits per dim between ours and the recorded solution at tight tolerance."""
