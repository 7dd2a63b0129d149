"""The interface of gamma(t), the speed of time along a schedule."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, numerics, types

PARAMS = "time_schedule"
"""Entry of the model's parameters that holds those of gamma(t), if it has any."""
ENDS, INTERIOR = "ends", "interior"
"""Parts of the parameters of a gamma(t)."""


class Adaptation(NamedTuple):
    """A rule that sets the interior of gamma(t) from the loss in bins, without a gradient."""

    bins: int
    """Equal bins of the range of gamma."""
    period: int
    """Training steps between two adaptations."""
    adapted: Callable[[types.Params, Array, Array], types.Params]
    """`(interior, sums of squares [bins], numbers of samples [bins]) -> interior`."""


class AbstractTime(abc.ABC):
    """A strictly increasing map from t in [0, 1] to gamma in [gamma_min, gamma_max].

    The continuous-time bound depends on it only through its two ends; the interior changes the
    variance of estimates, not their mean. If t is uniform, gamma has the sampling density
    p(gamma) = dt / dgamma: a gamma(t) and a sampler of gamma are the same thing.

    It may depend on t and on parameters of its own, nothing else. It must not depend on the image,
    whose posterior and prior would then differ from those that the bound and the ODE assume, nor
    on the network's parameters or the conditioning.

    A gamma(t) without parameters implements this class. One with parameters is an
    `AbstractLearnedTime`: `init` returns its parameters, which are trained, averaged and saved with
    the network's, and `bind` returns the gamma(t) that they define.

    A gamma of the image's shape, one for each pixel (MuLAN), would be `gamma: [B] -> [B, H, W, C]`.
    Then d gamma / dt is a weight inside the sum over pixels, not a density of `[B]`; alpha and
    sigma need no `numerics.expand`; the network takes t, or the image of gammas; the ODE is
    integrated in t, with d gamma / dt as a factor of its drift; and the two ends are images.
    """

    is_linear: ClassVar[bool] = False
    """True if gamma(t) is linear in t for all parameters, so that only its ends matter."""
    learns_interior: ClassVar[bool] = False
    """True if parameters beside the ends shape gamma(t)."""

    @property
    def adaptation(self) -> Adaptation | None:
        """Rule that sets the interior; None where gradients train it, or there is none."""
        return None

    @property
    def is_trained_by_variance(self) -> bool:
        """True if the gradient of the second moment of the loss trains the interior."""
        return self.learns_interior and self.adaptation is None

    @property
    @abc.abstractmethod
    def gamma_min(self) -> types.GammaEnd:
        """gamma at t = 0, the clean end; nats.

        A field of a dataclass that is named `gamma_min` or `gamma_max` needs a default value.
        """

    @property
    @abc.abstractmethod
    def gamma_max(self) -> types.GammaEnd:
        """gamma at t = 1, the noise end; nats."""

    @abc.abstractmethod
    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return gamma(t), elementwise."""

    def dgamma(self, t: types.PerExample) -> types.PerExample:
        """Return d gamma / dt at `[B]` times."""
        return jax.vmap(jax.grad(self.gamma))(t)

    def rescale(self, gamma: types.Gamma) -> types.Gamma:
        """Return gamma as a fraction of its range, in [0, 1]: the time input of the network."""
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)

    def init(self, key: types.PRNGKey) -> types.Params:
        """Initialize the parameters; none by default."""
        return {}

    def bind(self, params: types.Params) -> "AbstractTime":
        """Return the gamma(t) of these parameters; itself by default."""
        return self


class AbstractLearnedTime(AbstractTime):
    """A gamma(t) with trained parameters; an instance holds their initial values.

        gamma(t) = gamma_min + (gamma_max - gamma_min) fraction(t)

    Subclasses have the fields `gamma_min` and `gamma_max`, the initial ends, and `learn_ends`.
    Parameters are `ends/gamma_min` and `ends/gamma_max`, nats, if they are learned, and the tree
    `interior`, if it is not empty.

    The network's time input is a fraction of the initial range, so that a given gamma stays the
    same input while the ends move.
    """

    learn_ends: bool
    gamma_min: types.GammaEnd
    gamma_max: types.GammaEnd

    @abc.abstractmethod
    def init_interior(self, key: types.PRNGKey) -> types.Params:
        """Initialize the parameters of `fraction`."""

    @abc.abstractmethod
    def fraction(self, interior: types.Params, t: types.Gamma) -> types.Gamma:
        """Return the fraction of the range of gamma below gamma(t), elementwise.

        It increases strictly from 0 at t = 0 to 1 at t = 1, for all parameters.
        """

    def init(self, key: types.PRNGKey) -> types.Params:
        """Initialize the parameters."""
        parts = {INTERIOR: self.init_interior(key)}
        if self.learn_ends:
            ends = {"gamma_min": self.gamma_min, "gamma_max": self.gamma_max}
            parts[ENDS] = {k: jnp.asarray(v, numerics.float_dtype()) for k, v in ends.items()}
        return {name: part for name, part in parts.items() if part}

    def bind(self, params: types.Params) -> AbstractTime:
        """Return the gamma(t) of these parameters, with its ends as numbers if they are known."""
        needed = jax.eval_shape(self.init, jax.random.key(0)).keys()
        if missing := sorted(needed - params.keys()):
            raise ValueError(
                f"{type(self).__name__} needs the parameters {PARAMS}/{missing[0]}, but the "
                "parameters that are given have none. Give those of the whole model."
            )
        initial = {"gamma_min": self.gamma_min, "gamma_max": self.gamma_max}
        params = jax.tree.map(numerics.known, dict(params))
        ends = {k: _as_end(v) for k, v in params.get(ENDS, initial).items()}
        return _Bound(family=self, interior=params.get(INTERIOR, {}), **ends)

    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return the initial gamma(t), elementwise."""
        return self.bind(self.init(jax.random.key(0))).gamma(t)


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Bound(AbstractTime):
    """The gamma(t) of given parameters."""

    family: AbstractLearnedTime
    interior: types.Params
    gamma_min: types.GammaEnd = 0.0
    gamma_max: types.GammaEnd = 1.0

    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return gamma(t), elementwise."""
        span = self.gamma_max - self.gamma_min
        return self.gamma_min + span * self.family.fraction(self.interior, t)

    def rescale(self, gamma: types.Gamma) -> types.Gamma:
        """Return gamma as a fraction of the initial range."""
        return self.family.rescale(gamma)


def without_gradient(params: types.Params, part: str) -> types.Params:
    """Return the parameters of a gamma(t), with the gradient through `part` stopped."""
    return {
        name: jax.lax.stop_gradient(each) if name == part else each for name, each in params.items()
    }


def _as_end(value: Array | np.ndarray | float) -> types.GammaEnd:
    return value if isinstance(value, jax.core.Tracer) else float(value)


def check_ends(gamma_min: float, gamma_max: float) -> None:
    """Raise ValueError unless they are finite, and gamma_min < gamma_max."""
    checks.check_finite("gamma_min", gamma_min)
    checks.check_finite("gamma_max", gamma_max)
    if not gamma_min < gamma_max:
        raise ValueError(
            f"`gamma_min` must be below `gamma_max`, got gamma_min={gamma_min} and "
            f"gamma_max={gamma_max}. The published ends are -13.3 and 5.0."
        )
