"""The pieces without a network: schedules, encoding, decoder, embeddings."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from idode_gin.dequantizers.base import CleanEnd
from idode_gin.interop import official_evaluation
from idode_gin.networks import embeddings
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.time_samplers.importance import Importance

from . import cases, official_config, published

SCHEDULES = ("VP", "SP")


def build(case, schedule):
    """The model of a case on another schedule, and its clean end."""
    model = official_config.model_of({**case.model, "schedule": schedule})
    return model, CleanEnd(
        schedule=model.schedule, encoding=model.encoding, gamma_min=model.time.gamma_min
    )


def shared_pieces(case, inputs):
    model, end = build(case, "VP")
    y = model.encoding.encode(jnp.asarray(case.inputs["images"]))
    computed = {
        "encode": y,
        "z_0_rescaled": y + jnp.exp(end.gamma / 2) * inputs["z_noise"],
        "gamma_of_t": model.time.gamma(inputs["t"]),
        "fourier_features": embeddings.fourier_features(inputs["z_noise"], (6, 7)),
    }
    for size in (32, 64):
        computed[f"timestep_embedding_{size}"] = embeddings.timestep_embedding(inputs["t"], size)
    return computed


def pieces_of_a_schedule(case, inputs, name):
    model, end = build(case, name)
    schedule, gamma = model.schedule, inputs["gamma"]
    images = jnp.asarray(case.inputs["images"])
    y = model.encoding.encode(images) + jnp.exp(end.gamma / 2) * inputs["z_noise"]
    z = end.alpha * model.encoding.encode(images) + end.sigma * inputs["z_noise"]
    return {
        "alpha": schedule.alpha(gamma),
        "sigma": schedule.sigma(gamma),
        "log_alpha_hat": schedule.dlog_alpha(gamma),
        "alpha_0": end.alpha,
        "sigma_0": end.sigma,
        "z_0": z,
        "logprob": official_evaluation.decoder_log_prob(end, images, y),
        "decode_0_0": published.level_log_probs(end, y)[0, 0, 0],
        "generate_x": published.decode(end, z),
    }


@pytest.mark.parametrize("name", cases.of_kind("components"))
def test_components(name, dtype):
    case = cases.load(name)
    inputs = {key: jnp.asarray(value, dtype) for key, value in case.inputs.items()}
    computed = shared_pieces(case, inputs)
    for schedule in SCHEDULES:
        pieces = pieces_of_a_schedule(case, inputs, schedule)
        computed |= {f"{schedule}/{piece}": value for piece, value in pieces.items()}
    elsewhere = [f"{schedule}/cum_weight" for schedule in SCHEDULES]
    cases.assert_all(case, computed, elsewhere=elsewhere)


@pytest.mark.parametrize("name", cases.of_kind("components"))
def test_cumulative_weight(name, float64):
    """The recorded antiderivative is half the one our numeric sampler inverts, on SP velocity."""
    case = cases.load(name)
    model, _ = build(case, "SP")
    low, high = model.time.gamma_min, model.time.gamma_max
    gamma = case.inputs["gamma"].astype(float)
    order = [place for place in np.argsort(gamma) if low < gamma[place] <= high]
    assert order, "no recorded gamma inside the schedule's range"
    gamma, cumulative = gamma[order], case.f64["SP/cum_weight"][order]

    def weight(gamma):
        return Velocity().weight(model.schedule, gamma)

    total = (
        integrate.quad(lambda gamma: float(weight(jnp.asarray(gamma))), low, high, epsrel=1e-12)[0]
        / 2
    )
    found, density = Importance().gamma_and_density(
        jnp.asarray(cumulative / total), model.time, weight
    )
    np.testing.assert_allclose(found, gamma, rtol=1e-8)
    expected = weight(jnp.asarray(gamma)) / (2 * total)
    np.testing.assert_allclose(density, expected, rtol=1e-8)
    np.testing.assert_array_equal(case.f64["SP/cum_weight"], case.f64["VP/cum_weight"])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", cases.of_kind("components"))
def test_corrected_decoder(name, schedule, float64):
    """NumPy's softmax over the bins: ours divides by alpha_0 once, the published one twice."""
    case = cases.load(name)
    _, end = build(case, schedule)
    images, levels = case.inputs["images"], case.model["vocab_size"]
    y = 2 * (images + 0.5) / levels - 1
    y = y + np.exp(case.model["gamma_min"] / 2) * case.inputs["z_noise"].astype(float)
    centres = 2 * (np.arange(levels) + 0.5) / levels - 1

    def log_prob(y):
        logits = -0.5 * (y[..., None] - centres) ** 2 * np.exp(-case.model["gamma_min"])
        log_norm = special.logsumexp(logits, axis=-1)
        at_image = np.take_along_axis(logits, images[..., None].astype(int), -1)[..., 0]
        return np.sum(at_image - log_norm, axis=(1, 2, 3))

    found = end.encoding.log_prob(jnp.asarray(images), jnp.asarray(y), end.gamma)
    np.testing.assert_allclose(found, log_prob(y), rtol=1e-10)
    alpha = float(case.f64[f"{schedule}/alpha_0"])
    np.testing.assert_allclose(case.f64[f"{schedule}/logprob"], log_prob(y / alpha), rtol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", cases.of_kind("components"))
def test_corrected_levels(name, schedule, float64):
    """Decoding z_0 returns the image where the noise stays inside the bin."""
    case = cases.load(name)
    _, end = build(case, schedule)
    noise, images = case.inputs["z_noise"], jnp.asarray(case.inputs["images"])
    z = end.alpha * end.encoding.encode(images) + end.sigma * noise
    inside = np.abs(noise) < 0.999 * float(end.tau)
    assert inside.any()
    np.testing.assert_array_equal(
        np.asarray(end.encoding.decode(z / end.alpha))[inside], np.asarray(images)[inside]
    )
