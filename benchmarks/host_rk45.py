"""SciPy's RK45 driven from the host: how likelihoods of diffusion ODEs were evaluated until now.

The state of all images, pixels and log-densities, is one float64 vector in SciPy's hands, with one
error norm for all. Every evaluation takes it to the device in float32, calls the network there with
its trace in reverse mode, v^T J from one pull-back, dotted with v, and brings the slopes back.
Kinder than what was published: the function is compiled once, not once per batch, and compiling is
not part of the time.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate

from idode_gin import numerics, ode
from idode_gin.integration_variables import base as variables
from idode_gin.integration_variables.gamma import Gamma


@dataclasses.dataclass(frozen=True)
class HostSolution:
    """Log-densities of images, and what they cost."""

    log_p: np.ndarray
    """log p(z), nats `[B]`."""
    num_evaluations: int
    """Of the network, for every image."""
    seconds: float
    """Wall time."""


class HostRK45:
    """Integrates in gamma, from the clean end to the noise end.

    Args:
        field: of the images.
        probe: one Rademacher vector per image, `[B, H, W, C]`.
        gamma_start: nats, where the images are.
        gamma_end: nats, where the prior is.
    """

    def __init__(self, field: ode.Field, probe: Any, gamma_start: float, gamma_end: float) -> None:
        self._shape = probe.shape
        self._span = (gamma_start, gamma_end)
        self._variance = float(field.schedule.sigma(jnp.asarray(gamma_end, jnp.float32))) ** 2
        self._probe = jax.device_put(probe)

        @jax.jit
        def rates(z: Any, gamma: Any, probe: Any) -> tuple[Any, Any]:
            def dotted(z: Any) -> tuple[Any, Any]:
                drift = variables.rate(Gamma(), field, gamma, z)
                return jnp.sum(drift * probe), drift

            pulled, drift = jax.grad(dotted, has_aux=True)(z)
            return drift, numerics.sum_pixels(pulled * probe)

        self._rates = rates
        jax.block_until_ready(rates(jnp.zeros(self._shape), jnp.zeros(self._shape[0]), probe))

    def solve(self, z: Any, tolerance: float) -> HostSolution:
        """log p(z) at rtol = atol = `tolerance`."""
        count = self._shape[0]

        def slopes(gamma: float, state: np.ndarray) -> np.ndarray:
            latent = jnp.asarray(state[:-count], jnp.float32).reshape(self._shape)
            found = self._rates(latent, jnp.full(count, gamma, jnp.float32), self._probe)
            return np.concatenate([np.asarray(each, np.float64).reshape(-1) for each in found])

        began = time.perf_counter()
        start = np.concatenate([np.asarray(z, np.float64).reshape(-1), np.zeros(count)])
        solution = integrate.solve_ivp(
            slopes, self._span, start, method="RK45", rtol=tolerance, atol=tolerance
        )
        latent, log_det = solution.y[:-count, -1].reshape(count, -1), solution.y[-count:, -1]
        squares = np.sum(latent**2, axis=1) / self._variance
        log_prior = -0.5 * (squares + latent.shape[1] * math.log(2 * math.pi * self._variance))
        return HostSolution(log_prior + log_det, solution.nfev, time.perf_counter() - began)
