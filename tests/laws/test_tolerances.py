"""The requested tolerance is met by every solver, for data with known log-density.

Traces here are exact, so that nothing but the solver is at fault: by unit vectors for few pixels;
for 3,072 of them by one Rademacher probe where pixels are independent (the Jacobian is diagonal,
and v^T J v its trace, whatever v), and by two directions where it is a multiple of one plus u u^T.
Two pixels are scored in float64 and 3,072 in float32, as programs do. All are minutes of work, for
the full run; `test_pilot` has smaller ones.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import numerics
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.likelihood import ode_likelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.time.linear import Linear
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import AbstractDivergence, Exact, Hutchinson, jvp_each
from idode_gin.solvers.fixed_grid import FixedGrid

from . import discovery, toys

EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
LEVELS, GAMMA_MIN, GAMMA_MAX = 256, -13.3, 5.0
FEW, MANY = (1, 2, 1), (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, images, and their exact bits per dim for the noise that they are scored with."""

    model: object
    batch: dict
    estimator: ode_likelihood.ODELikelihood
    exact: np.ndarray

    key = property(lambda self: jax.random.key(3))

    def error_of(self, estimator):
        """Mean distance from the exact figures."""
        dims = numerics.num_dims(self.batch["image"])
        found = jax.jit(lambda batch: self.model.likelihood_fn({}, batch, self.key, estimator))
        bpd = np.asarray(found(self.batch).bits_per_dim(dims), np.float64)
        return float(np.mean(np.abs(bpd - self.exact)))

    def pilot(self, tolerance, estimator=None):
        """Run a pilot."""
        pilot = Pilot(tolerance=tolerance)
        return pilot.run(self.model, {}, self.batch, self.key, estimator or self.estimator)


def problem(data, parameterization, divergence, exact_log_p, count, gamma_max=GAMMA_MAX):
    """`exact_log_p(z)` of a latent at the clean end, float64 `[B]`, nats."""
    time = Linear(gamma_min=GAMMA_MIN, gamma_max=gamma_max)
    model = toys.optimal_model(data.field(parameterization), time, LEVELS)
    f = np.asarray(data.sample(5, count))
    levels = np.clip(np.floor((f + 1) / 2 * LEVELS), 0, LEVELS - 1).astype(np.int32)
    batch = {
        "image": jnp.asarray(levels),
        "index": jnp.arange(count),
        "conditioning": jnp.zeros((count, 1)),
    }
    estimator = ode_likelihood.ODELikelihood(dequantizer=TruncatedNormal(), divergence=divergence)
    keys = numerics.fold_in_each(jax.random.key(3), batch["index"])
    noise, _ = estimator.draw(0, f.shape[1:], model.end, keys)
    z = estimator.dequantizer.start(batch["image"], noise, model.end)
    dims = numerics.num_dims(z)
    log_p = exact_log_p(np.asarray(z, np.float64)) + float(
        estimator.dequantizer.entropy(dims, model.end)
    )
    return Problem(model, batch, estimator, -log_p / (dims * np.log(2)))


def gaussian(schedule, parameterization, shape=MANY, count=2):
    """Independent pixels: the ODE's own density in closed form."""
    data = toys.gaussian(schedule, shape)

    def log_p(z):
        mean, std = data.pushed(GAMMA_MIN, GAMMA_MAX)
        each = -0.5 * ((z - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
        return each.sum(axis=(1, 2, 3))

    return problem(data, parameterization, Hutchinson(), log_p, count)


def pixel_mixture(schedule, parameterization, shape=MANY, count=2):
    """Independent pixels: log p(z) = log m_0(z) - log m_1(z_1) + log N(z_1), z_1 where z goes."""
    data = toys.pixel_mixture(schedule, shape)

    def log_p(z):
        end = data.transported(z, GAMMA_MIN, GAMMA_MAX)
        sigma = float(schedule.sigma(jnp.asarray(GAMMA_MAX)))
        prior = -0.5 * (end / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
        each = data.log_density(z, GAMMA_MIN) - data.log_density(end, GAMMA_MAX) + prior
        return each.sum(axis=(1, 2, 3))

    return problem(data, parameterization, Hutchinson(), log_p, count)


@dataclasses.dataclass(frozen=True)
class TwoDirections(AbstractDivergence):
    """Exact for J = p 1 + q u u^T, whatever p and q: one push along u, and one at right angles.

    tr J = d p + q |u|^2 = (v^T J v + (d - 1) w^T J w) / d

    with v along u, w at right angles to it, and |v|^2 = |w|^2 = d.
    """

    u: np.ndarray

    def draw(self, keys, shape):
        along = self.u / np.linalg.norm(self.u)
        other = np.random.default_rng(0).normal(size=self.u.shape)
        other -= np.sum(other * along) * along
        both = np.stack([along, other / np.linalg.norm(other)]) * np.sqrt(self.u.size)
        return jnp.asarray(np.broadcast_to(both[:, None], (2, keys.shape[0], *shape)), float)

    def value_and_traces(self, fn, x, probes):
        value, pushed = jvp_each(fn, x, probes)
        along, other = jax.vmap(numerics.sum_pixels)(probes * pushed)
        dims = numerics.num_dims(x)
        return value, ((along + (dims - 1) * other) / dims)[:, None]

    def variance_of_mean(self, estimates, dims):
        return jnp.zeros(estimates.shape[0], estimates.dtype)


def mixture(schedule, parameterization, shape=FEW, count=6):
    """All pixels in the same component; so far at the noise end that nothing of it is left.

    Of many pixels less is left of the mean over them. (At gamma 26, where the scale of the state
    is 2e-6, float32 has an error of some 4e-6 bits per dim, whatever the steps.)
    """
    data = toys.mixture(schedule, shape)
    divergence, gamma_max = Exact(), 26.0
    if shape != FEW:
        gamma_max = 18.0
        data = dataclasses.replace(data, stds=np.full_like(data.stds, 0.3))
        divergence = TwoDirections(data.means[0] - data.means[1])

    def log_p(z):
        with jax.enable_x64(True):
            return np.asarray(data.log_p(jnp.asarray(z), jnp.asarray([GAMMA_MIN])))

    return problem(data, parameterization, divergence, log_p, count, gamma_max)


def joint_mixture(schedule, parameterization):
    """The same, of many pixels."""
    return mixture(schedule, parameterization, MANY, 2)


@pytest.fixture
def width(request):
    """float64 for few pixels, float32 for many."""
    is_few = request.getfixturevalue("made") is mixture
    request.getfixturevalue("float64" if is_few else "float32")


def rounding():
    """Return the rounding error in bits per dim: one unit in the last place of 20 nats per dim."""
    return 20 * float(jnp.finfo(numerics.float_dtype()).eps) / np.log(2)


@pytest.mark.full
@pytest.mark.parametrize("made", [gaussian, pixel_mixture, joint_mixture, mixture])
@EACH_SCHEDULE
@EACH_PARAMETERIZATION
@pytest.mark.usefixtures("width")
def test_the_pilots_choice_keeps_the_tolerance(made, schedule, parameterization):
    here = made(schedule, parameterization)
    steps = []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        chosen, report = here.pilot(tolerance)
        assert report.is_within, report
        error = here.error_of(chosen)
        assert error <= tolerance, report
        # What it reports is true: to what its reference is known to, and rounding.
        assert abs(report.error - error) <= tolerance / 4 + rounding()
        assert isinstance(chosen.solver, Adams)
        steps.append(chosen.solver.steps)
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


LADDERS = {
    "adaptive": lambda tolerance: [
        DormandPrince(rtol=share * tolerance, atol=share * tolerance) for share in (0.3, 0.03, 3e-3)
    ],
    "grid": lambda tolerance: [FixedGrid(steps=steps) for steps in (8, 16, 32, 64, 128, 256)],
}


@pytest.mark.full
@pytest.mark.parametrize("made", [pixel_mixture, mixture], ids=["many", "few"])
@EACH_SCHEDULE
@EACH_PARAMETERIZATION
@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.usefixtures("width")
def test_a_named_solver_that_the_pilot_passes_keeps_it(made, schedule, parameterization, ladder):
    """Settings from coarse to fine, the first that the pilot says is within the tolerance.

    One is, for every tolerance: neither rounding nor the step control stands in its way. (Of an
    adaptive solver `rtol` is the error of a step and promises nothing for the sum of them.)
    """
    here = made(schedule, parameterization)
    for tolerance in (1e-1, 1e-3, 1e-5):
        for solver in LADDERS[ladder](tolerance):
            estimator = dataclasses.replace(here.estimator, solver=solver)
            chosen, report = here.pilot(tolerance, estimator)
            assert chosen == estimator
            if report.is_within:
                break
        assert report.is_within, report
        error = here.error_of(chosen)
        assert error <= tolerance, report
        assert abs(report.error - error) <= tolerance / 4 + rounding()
