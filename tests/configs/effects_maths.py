"""Fields of the maths: losses, densities, solutions and traced programs change with them."""

from typing import Any

import effects
import jax
import jax.numpy as jnp
import tiny
from effects import Case, Refused, Room
from own_networks import LinenNet

from idode_gin import models
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.uniform import Uniform as UniformNoise
from idode_gin.encoding import Encoding
from idode_gin.integration_variables.kappa import Kappa
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.bound import VariationalBound
from idode_gin.losses.second_order import SecondOrder
from idode_gin.networks.flax_module import FlaxNetwork
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations.noise import Noise
from idode_gin.samplers.ancestral import Ancestral
from idode_gin.samplers.base import AbstractSampler
from idode_gin.samplers.dpm_solver import DPMSolverPlusPlus
from idode_gin.samplers.grids import LogSNR, PowerOfKappa
from idode_gin.samplers.heun import Heun
from idode_gin.samplers.ode import ODESampler, ODESamplerWithDensity
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.time.cosine import Cosine
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import Linear, gamma_min_for_levels
from idode_gin.schedules.time.linear_beta import LinearBeta
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.time.straight import Straight
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.solvers import spacings, tableaus
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import Exact, Hutchinson, OrthogonalHutchinson
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.solvers.norms import FirstPart
from idode_gin.solvers.probes import Gaussian
from idode_gin.time_samplers.closed_form_importance import VPVelocityImportance
from idode_gin.time_samplers.discrete_steps import DiscreteSteps
from idode_gin.time_samplers.importance import Importance
from idode_gin.time_samplers.quantiles.independent import Independent
from idode_gin.time_samplers.uniform import Uniform as UniformTime
from idode_gin.time_samplers.uniform_in_gamma import UniformInGamma, for_bound

KEY = jax.random.key(0)
MODEL = tiny.model(image_shape=tiny.SHAPE)
PARAMS = MODEL.init(KEY, tiny.SHAPE)
BATCH = {
    "image": jnp.asarray(tiny.split(number=3).images),
    "conditioning": jnp.zeros((3, 1)),
    "position": jnp.arange(3),
    "index": jnp.arange(3),
}


def loss(model: models.DiffusionODE, _: Room) -> str:
    """Return the training loss of each image, with its terms."""

    def computed(key: Any, batch: Any) -> Any:
        return model.loss_fn(model.init(key, tiny.SHAPE), batch, key)

    return effects.program(computed, KEY, BATCH)


def loss_with(field: str) -> Any:
    """Return the training loss of a model that has the object as a part."""
    return lambda part, room: loss(tiny.model(**{field: part}), room)


def curve(time: Any, _: Room) -> Any:
    """Return gamma(t) at a time."""
    return time.gamma(jnp.asarray([0.25]))


def adapted(time: Tabulated) -> Any:
    """Return the interior after a loss in the first bin alone, and when it is set."""
    losses, counts = jnp.zeros(time.bins).at[0].set(1.0), jnp.ones(time.bins)
    return time.adapted(time.init_interior(KEY), losses, counts), time.adaptation.period


def bound(estimator: Any, _: Room) -> str:
    """Return a bound of each image."""
    return effects.program(lambda *given: MODEL.bound_fn(*given, estimator), PARAMS, BATCH, KEY)


def likelihood(estimator: ODELikelihood, _: Room) -> str:
    """Return the likelihood of each image."""
    return effects.program(
        lambda *given: MODEL.likelihood_fn(*given, estimator).log_p, PARAMS, BATCH, KEY
    )


def samples(sampler: AbstractSampler, _: Room) -> str:
    """Return latents drawn, and their density if there is one."""

    def drawn(*given: Any) -> Any:
        found = MODEL.sample_fn(*given, sampler)
        return found.latent, 0.0 if found.log_p is None else found.log_p

    return effects.program(drawn, PARAMS, BATCH, KEY)


def solution(solver: Any, _: Room) -> str:
    """Return the solutions of y' = y cos t and a similar equation, and their success."""

    def solved(y: Any) -> Any:
        def field(t: Any, state: Any) -> Any:
            return jnp.cos(t)[:, None] * state[0], jnp.sin(9 * t)

        found = solver.solve(field, (y, y[:, 0]), 0.0, 2.0)
        return found.state, found.success

    return effects.program(solved, jnp.ones((2, 3)))


def trace(divergence: Any, _: Room) -> str:
    """Return a value and its trace."""

    def traced(key: Any, x: Any) -> Any:
        probes = divergence.draw(jax.random.split(key, 2), x.shape[1:])
        return divergence.value_and_trace(jnp.sin, x, probes)

    return effects.program(traced, KEY, jnp.zeros((2, 4, 4, 1)))


def unet(network: UNet, _: Room) -> str:
    """Return the traced network with dropout; for the gradient also what it keeps."""
    params = jax.eval_shape(lambda: network.init(KEY, (4, 4, 1)))
    z, time = jnp.zeros((2, 4, 4, 1)), jnp.zeros(2)
    conditioning = jnp.zeros((2, network.conditioning_size + network.num_classes))
    return effects.program(network, params, z, time, conditioning, jax.random.split(KEY, 2))


def flax_network(network: FlaxNetwork, _: Room) -> str:
    params = jax.eval_shape(lambda: network.init(KEY, (4, 4, 1)))
    conditioning = jnp.zeros((2, network.conditioning_size + network.num_classes))
    return effects.program(network, params, jnp.zeros((2, 4, 4, 1)), jnp.zeros(2), conditioning)


STEPS = FixedGrid(steps=2)
RK4 = tableaus.runge_kutta_4()
UNEQUAL = spacings.Tabulated(table=(0.0, 0.3, 1.0))
ENDS = {"gamma_min": -6.0, "gamma_max": 4.0, "learn_ends": False}
QUANTILES = {"quantiles": Independent()}
CASES = {
    models.DiffusionODE: Case(
        loss,
        {name: getattr(MODEL, name) for name in MODEL.__dataclass_fields__},
        {
            "network": tiny.AffineNetwork(width=5),
            "schedule": StraightPath(),
            "time": Linear(gamma_min=-6.0),
            "parameterization": Noise(),
            "time_sampler": Importance(),
            "loss": SecondOrder(),
            "encoding": Encoding(levels=20),
            "image_shape": Refused((8, 8, 1), "the model is for `image_shape` (8, 8, 1)"),
        },
    ),
    Encoding: Case(lambda made, _: made.encode(BATCH["image"]), {}, {"levels": 17}),
    Linear: Case(curve, {}, {"gamma_min": -6.0, "gamma_max": 4.0}),
    Cosine: Case(curve, {}, {"gamma_min": -6.0, "gamma_max": 4.0}),
    LinearBeta: Case(
        curve, {}, {"gamma_min": -6.0, "gamma_max": 4.0, "beta_0": 0.2, "beta_1": 10.0}
    ),
    Straight: Case(curve, {}, {"gamma_min": -6.0, "gamma_max": 4.0}),
    LearnedLinear: Case(loss_with("time"), {}, ENDS),
    Monotone: Case(loss_with("time"), {"units": 8}, {**ENDS, "units": 4}),
    Tabulated: Case(
        lambda made, room: (loss_with("time")(made, room), adapted(made)),
        {"bins": 4},
        {**ENDS, "bins": 8, "adapt_period": 3, "floor": 0.5},
    ),
    gamma_min_for_levels: Case(lambda made, _: made(), {"levels": 256}, {"levels": 17}),
    UniformTime: Case(loss_with("time_sampler"), {}, QUANTILES),
    VPVelocityImportance: Case(loss_with("time_sampler"), {}, QUANTILES),
    UniformInGamma: Case(loss_with("time_sampler"), {}, QUANTILES),
    for_bound: Case(
        lambda made, _: repr(made()),
        {"time_sampler": UniformTime(), "time": LinearBeta()},
        {"time_sampler": Importance(), "time": Linear()},
    ),
    DiscreteSteps: Case(loss_with("time_sampler"), {"steps": 4}, {**QUANTILES, "steps": 5}),
    Importance: Case(loss_with("time_sampler"), {}, {**QUANTILES, "panels": 1}),
    SecondOrder: Case(
        loss_with("loss"), {}, {"strength": 0.2, "num_probes": 2, "probe": Gaussian()}
    ),
    VariationalBound: Case(bound, {"num_times": 2}, {"num_times": 3, "time_sampler": Importance()}),
    UniformNoise: Case(
        lambda made, room: likelihood(
            ODELikelihood(dequantizer=made, solver=STEPS, divergence=Exact()), room
        ),
        {},
        {"start_gamma": -7.0},
    ),
    ODELikelihood: Case(
        likelihood,
        {"dequantizer": TruncatedNormal(), "solver": STEPS, "divergence": Exact()},
        {
            "dequantizer": UniformNoise(),
            "solver": FixedGrid(steps=3),
            "divergence": Hutchinson(),
            "num_importance": 2,
            "num_repeats": 2,
            "variable": Kappa(),
            "lanes": 1,
        },
    ),
    ODESampler: Case(
        samples,
        {"solver": STEPS},
        {"solver": FixedGrid(steps=3), "variable": Kappa(), "lanes": 1},
    ),
    ODESamplerWithDensity: Case(
        samples,
        {"solver": STEPS, "divergence": Exact()},
        {
            "solver": FixedGrid(steps=3),
            "divergence": Hutchinson(),
            "variable": Kappa(),
            "lanes": 1,
        },
    ),
    Ancestral: Case(samples, {"steps": 2}, {"steps": 3, "grid": PowerOfKappa()}),
    Heun: Case(samples, {"steps": 2}, {"steps": 3, "grid": LogSNR()}),
    DPMSolverPlusPlus: Case(
        samples, {"steps": 3}, {"steps": 4, "order": 3, "grid": PowerOfKappa()}
    ),
    LogSNR: Case(
        lambda made, _: made.gammas(5.0, -5.0, 2),
        {},
        {"spacing": UNEQUAL},
    ),
    spacings.Tabulated: Case(
        lambda made, _: made.fractions(4), {"table": (0.0, 0.3, 1.0)}, {"table": (0.0, 0.4, 1.0)}
    ),
    PowerOfKappa: Case(lambda made, _: made.gammas(5.0, -5.0, 2), {}, {"rho": 3.0}),
    DormandPrince: Case(
        solution, {}, {"rtol": 1e-2, "atol": 0.1, "max_steps": 1, "norm": FirstPart()}
    ),
    FixedGrid: Case(
        solution,
        {"steps": 4},
        {
            "steps": 5,
            "tableau": tableaus.heun(),
            "spacing": UNEQUAL,
        },
    ),
    Adams: Case(
        solution,
        {"steps": 4},
        {"steps": 5, "history": 2, "spacing": UNEQUAL},
    ),
    tableaus.Tableau: Case(
        lambda made, room: solution(FixedGrid(steps=4, tableau=made), room),
        {"c": RK4.c, "a": RK4.a, "b": RK4.b},
        {
            "c": (0.0, 0.3, 0.5, 1.0),
            "a": ((), (0.4,), (0.0, 0.5), (0.0, 0.0, 1.0)),
            "b": (0.25, 0.25, 0.25, 0.25),
        },
    ),
    Hutchinson: Case(trace, {}, {"num_probes": 2, "probe": Gaussian()}),
    OrthogonalHutchinson: Case(trace, {}, {"num_probes": 3}),
    Exact: Case(trace, {}, {"chunk": 2}),
    FlaxNetwork: Case(
        flax_network,
        {"module": LinenNet()},
        {"module": LinenNet(width=4), "conditioning_size": 2, "num_classes": 2},
    ),
    UNet: Case(
        unet,
        {
            "channels": 8,
            "levels": 0,
            "groups": 2,
            "fourier_exponents": (1,),
            "dropout_rate": 0.1,
        },
        {
            "channels": 16,
            "levels": 1,
            "groups": 4,
            "min_channels_per_group": Refused(8, "must be at least 8"),
            "fourier_exponents": (),
            "attention_everywhere": True,
            "attention_heads": 2,
            "dropout_rate": 0.2,
            "conditioning_size": 2,
            "num_classes": 2,
            "time_embedding_scale": 500.0,
            "remat": "full",
            "scan": True,
            "dtype": "bfloat16",
            "fused": Refused(True, "multiple of 16"),
        },
    ),
}
