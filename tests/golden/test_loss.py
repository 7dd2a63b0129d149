"""The training loss, term by term, and its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import numerics, ode
from idode_gin.interop import official, official_config, official_parity
from idode_gin.losses.base import LossDraws
from idode_gin.models import DiffusionODE, Draws
from idode_gin.solvers.divergence import Hutchinson

from . import cases


def batch_and_draws(case, dtype):
    """The recorded images and random arrays, as our model takes them."""
    inputs = case.inputs
    images = jnp.asarray(inputs["images"])
    size = images.shape[0]
    u = jnp.asarray(inputs["t"], dtype)
    if case.model["antithetic_time_sampling"]:
        u = jnp.mod(u + jnp.arange(size, dtype=dtype) / size, 1.0)
    noise = jnp.asarray(inputs["eps"], dtype)
    probes = inputs["v"][None] if "v" in inputs else np.zeros((0, *noise.shape))
    draws = Draws(
        u=u,
        loss=LossDraws(noise=noise, probes=jnp.asarray(probes, dtype)),
        reconstruction=jnp.asarray(inputs["eps_0"], dtype),
        dropout=None,
    )
    conditioning = jnp.asarray(inputs["conditioning"], dtype)[:, None]
    return {"image": images, "conditioning": conditioning}, draws


@functools.cache
def compiled(model: DiffusionODE):
    """One compilation per model and, by jax's own cache, per precision."""
    return jax.jit(jax.value_and_grad(model.objective, has_aux=True))


@functools.cache
def compiled_latent(model: DiffusionODE):
    def latent(params, batch, draws):
        f = model.encoding.encode(batch["image"])

        def weight(gamma):
            return model.parameterization.weight(model.schedule, gamma)

        gamma, _ = model.time_sampler.gamma_and_density(draws.u, model.time, weight)
        z = ode.noised(model.schedule, f, gamma, draws.loss.noise)
        field = model.field(params, batch["conditioning"])
        if draws.loss.probes.shape[0] == 0:
            return {"g_t": gamma, "z_t": z, "F_hat": field.network(z, gamma)}
        output, trace = Hutchinson().value_and_trace(
            lambda z: field.network(z, gamma), z, draws.loss.probes
        )
        return {"g_t": gamma, "z_t": z, "F_hat": output, "F_div": trace}

    return jax.jit(latent)


def forward_values(case, model, parts, batch, draws):
    """The recorded names of the loss's terms, with the published reconstruction term."""
    to_nats = case.dims * np.log(2)
    end, time = model.end, model.time
    reconstruction = official_parity.reconstruction_term(end, batch["image"], draws.reconstruction)
    terms = {
        "recon": reconstruction,
        "latent": parts["prior"] * to_nats,
        "diff": parts["diffusion"] * to_nats,
        "diff2": parts["second_order"] * to_nats,
    }
    names = {"recon": "recon", "latent": "klz", "diff": "diff", "diff2": "diff2"}
    computed = {f"loss_{names[term]}": value for term, value in terms.items()}
    computed |= {
        f"bpd_{term}": jnp.mean(numerics.nats_to_bpd(value, case.dims))
        for term, value in terms.items()
    }
    total = sum(computed[f"bpd_{term}"] for term in terms)
    gamma_max = jnp.asarray(time.gamma_max, total.dtype)
    return computed | {
        "bpd": total,
        "loss_total_bpd": total,
        "var_0": end.sigma**2,
        "var_1": model.schedule.sigma(gamma_max) ** 2,
    }


def gradient_values(case, gradient):
    """Norms and slices of the gradient's leaves in the recorded order."""
    leaves = official.flatten(official.to_official(gradient))
    leaves = [np.asarray(leaves[tuple(key.split("/"))]) for key in case.keys]
    norms = np.array([np.linalg.norm(leaf) for leaf in leaves])
    return {
        "grad_global_norm": np.linalg.norm(norms),
        "grad_leaf_norms": norms,
        "grad_slice16": np.stack([cases.slice16(leaf) for leaf in leaves]),
    }


def check_gradient(case, computed, dtype):
    """Leaves with a true gradient of zero hold nothing but rounding, and are left out."""
    for name, found in computed.items():
        expected = case.f64[name]
        if np.ndim(expected):
            found, expected = found[~case.null_grad], expected[~case.null_grad]
        error, scale = cases.difference(found, expected, f"{case.name} {name}")
        if dtype == "float64":
            bound = max(1e-8, cases.STORED_ROUNDING * (name == "grad_slice16")) * scale
        else:
            bound = 4 * float(case.tol[name]) + 1e-6 * scale
        assert error <= bound, f"{case.name} {name}: off by {error:.3g}, allowed {bound:.3g}"


@pytest.mark.parametrize("name", cases.of_kind("loss"))
def test_loss_and_gradient(name, dtype):
    case = cases.load(name)
    model = official_config.model_of(case.model)
    params = cases.params(case, dtype)
    batch, draws = batch_and_draws(case, dtype)
    (loss, parts), gradient = compiled(model)(params, batch, draws)

    computed = forward_values(case, model, parts, batch, draws)
    computed |= compiled_latent(model)(params, batch, draws)
    gradients = gradient_values(case, gradient)
    cases.assert_all(case, computed, elsewhere=gradients)
    check_gradient(case, gradients, dtype)

    corrected = computed["bpd"] - computed["bpd_recon"] + jnp.mean(parts["reconstruction"])
    np.testing.assert_allclose(loss, corrected, rtol=1e-10 if dtype == "float64" else 1e-5)
