"""Log-densities and bounds, `log_prob` for any field, and the pilot that measures accuracy."""

from idode_gin.likelihood.any_field import log_prob
from idode_gin.likelihood.density import log_density

__all__ = ["log_density", "log_prob"]
