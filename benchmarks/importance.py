"""Measure what the noise of the trace does to bounds of K importance samples.

    python -m benchmarks.importance runs/quickstart/train

It scores test images with truncated-normal dequantization and Adams with 8 steps, once with the
exact trace and once with 32 probes, whose groups of 1 to 8 stand for evaluations with so many. The
samples of a bound share their group (as in `ODELikelihood`), or each has another one, if there are
enough.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import idode_gin
from idode_gin import numerics
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.likelihood.ode_likelihood import ODELikelihood, trace_noise
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.divergence import AbstractDivergence, Exact, Hutchinson

PROBES = 32


def weights_and_log_dets(
    trained: Any, images: np.ndarray, samples: int, divergence: AbstractDivergence
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-weights `[K, N]` and log-determinants by probe `[K, N, P]`, nats."""
    model, x = trained.model, jnp.asarray(images)
    keys = numerics.fold_in_each(jax.random.key(5), jnp.arange(len(images)))
    conditioning = jnp.zeros((len(images), model.conditioning_size))
    field = model.field(trained.params, conditioning)
    estimator = ODELikelihood(
        dequantizer=TruncatedNormal(),
        solver=Adams(steps=8),
        num_importance=samples,
        divergence=divergence,
    )

    @jax.jit
    def draw(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise, probes = estimator.draw(number, x.shape[1:], model.end, keys)
        found = estimator.log_weight(field, model.end, model.time.gamma_max, x, noise, probes)
        return found[0], found[1].log_dets

    drawn = [jax.device_get(draw(jnp.int32(number))) for number in range(samples)]
    weights, log_dets = zip(*drawn, strict=True)
    return np.stack(weights), np.stack(log_dets)


def main() -> None:
    """Print a row per number of probes: errors of both choices in bits per dim."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="run directory of a model without classes")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--samples", type=int, default=20)
    options = parser.parse_args()
    trained = idode_gin.load(options.run)
    images = trained.images("test")[: options.images]
    dims = int(np.prod(images.shape[1:]))

    def bpd(log_weights: np.ndarray) -> np.ndarray:
        return np.asarray(
            numerics.nats_to_bpd(-numerics.log_mean_exp(jnp.asarray(log_weights)), dims)
        )

    weights, exact = weights_and_log_dets(trained, images, options.samples, Exact())
    _, log_dets = weights_and_log_dets(
        trained, images, options.samples, Hutchinson(num_probes=PROBES)
    )
    print(f"exact trace: {np.mean(bpd(weights)):.4f} bits per dim, K = {options.samples}")
    for probes in (1, 2, 4, 8):
        groups = PROBES // probes
        noise = log_dets.reshape(*weights.shape, groups, probes).mean(axis=-1) - exact
        apart = np.stack([np.roll(each, shift, axis=1) for shift, each in enumerate(noise)])
        row = f"{probes} probes:"
        arms = {"shared": noise} | ({"apart": apart} if groups >= options.samples else {})
        for name, each in arms.items():
            errors = bpd(weights[..., None] + each) - bpd(weights)[:, None]
            spread = np.std(errors.mean(axis=1), ddof=1) / len(images) ** 0.5
            row += f"  {name} {errors.mean():+.4f} ± {spread:.4f}"
            row += f" (one image {errors.std(axis=1).mean():.4f})"
        if probes > 1:
            first, divergence = log_dets[None, ..., :probes], Hutchinson(num_probes=probes)
            told = trace_noise(jnp.asarray(weights)[None], jnp.asarray(first), divergence, dims)
            row += f"  importance_bias {np.mean(numerics.nats_to_bpd(told[1], dims)):.4f}"
        print(row)


if __name__ == "__main__":
    main()
