"""Diffusion ODEs trained for maximum likelihood and scored exactly, declared in Gin files."""

import importlib
from typing import Any

__version__ = "0.1.0"
_LAZY = {
    "TrainedModel": "idode_gin.trained",
    "load": "idode_gin.loaded",
    "wrap": "idode_gin.wrapped",
    "wrap_flow": "idode_gin.wrapped",
}
"""Public names by module; imported at their first use, because it takes seconds."""
__all__ = ["TrainedModel", "__version__", "load", "wrap", "wrap_flow"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
