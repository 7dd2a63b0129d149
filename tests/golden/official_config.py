"""Build our objects from a published `config.model`."""

from collections.abc import Mapping
from typing import Any

from idode_gin import checks
from idode_gin.dequantizers import truncated_normal, variational
from idode_gin.dequantizers import uniform as uniform_dequantizer
from idode_gin.dequantizers.base import AbstractDequantizer
from idode_gin.encoding import Encoding
from idode_gin.losses import first_order, second_order
from idode_gin.losses.base import AbstractLoss
from idode_gin.models import DiffusionODE
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations import noise, velocity
from idode_gin.schedules import straight_path, variance_preserving
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.time import linear
from idode_gin.time_samplers import closed_form_importance, importance, uniform
from idode_gin.time_samplers.base import AbstractTimeSampler
from idode_gin.time_samplers.quantiles import independent, low_discrepancy

_SCHEDULES: dict[str, type[AbstractSchedule]] = {
    "VP": variance_preserving.VariancePreserving,
    "SP": straight_path.StraightPath,
}
_DEQUANTIZERS: dict[str, type[AbstractDequantizer]] = {
    "tn": truncated_normal.TruncatedNormal,
    "u": uniform_dequantizer.Uniform,
    "v": variational.Variational,
}


def network_of(config: Mapping[str, Any]) -> UNet:
    """Return the published network, including its flaw: 32 groups for any number of channels."""
    return UNet(
        channels=config["sm_n_embd"],
        levels=config["sm_n_layer"],
        min_channels_per_group=1,
        fourier_exponents=(6, 7) if config["with_fourier_features"] else (),
        attention_everywhere=config["with_attention"],
        dropout_rate=config["sm_pdrop"],
    )


def model_of(config: Mapping[str, Any]) -> DiffusionODE:
    """Return the model of a published `config.model`.

    Raises:
        ValueError: for options of the published code that are not in the paper: a learned gamma(t)
            or discrete time.
    """
    if config["gamma_type"] != "fixed" or config["sm_n_timesteps"]:
        raise ValueError(
            "Only gamma_type='fixed' in continuous time (sm_n_timesteps=0) is read from published "
            f"configurations, got gamma_type={config['gamma_type']!r} and "
            f"sm_n_timesteps={config['sm_n_timesteps']}."
        )
    loss: AbstractLoss = first_order.FirstOrder()
    if config["second_order"]:
        loss = second_order.SecondOrder()
    return DiffusionODE(
        network=network_of(config),
        schedule=_choose("schedule", config["schedule"], _SCHEDULES)(),
        time=linear.Linear(gamma_min=config["gamma_min"], gamma_max=config["gamma_max"]),
        parameterization=velocity.Velocity() if config["velocity"] else noise.Noise(),
        time_sampler=_time_sampler(config),
        loss=loss,
        encoding=Encoding(levels=config["vocab_size"]),
    )


def dequantizer_of(config: Mapping[str, Any]) -> AbstractDequantizer:
    """Return the dequantizer of `config.model.dequantization`: "tn", "u" or "v"."""
    return _choose("dequantization", config["dequantization"], _DEQUANTIZERS)()


def _time_sampler(config: Mapping[str, Any]) -> AbstractTimeSampler:
    quantiles = (
        low_discrepancy.LowDiscrepancy()
        if config["antithetic_time_sampling"]
        else independent.Independent()
    )
    if not config["importance"]:
        return uniform.Uniform(quantiles=quantiles)
    if config["schedule"] == "VP" and config["velocity"]:
        return closed_form_importance.VPVelocityImportance(quantiles=quantiles)
    return importance.Importance(quantiles=quantiles)


def _choose(name: str, value: str, table: Mapping[str, Any]) -> Any:
    if value not in table:
        raise ValueError(f"Unknown `{name}` {value!r}. {checks.nearest(str(value), table)}")
    return table[value]
