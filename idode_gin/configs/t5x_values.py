"""Values that t5x accepts for a parameter of both, and that are written otherwise here."""

from collections.abc import Mapping
from typing import Any

_SEED = (
    "it draws a new seed at every start. Here a seed makes a run repeatable and lets it resume "
    "exactly: write a number, such as 0, and another one for another run."
)
_NONES: Mapping[str, str] = {
    "random_seed": _SEED,
    "seed": _SEED,
    "num_microbatches": "it does not split the batch. Write 1.",
    "num_partitions": "it reads model_parallel_submesh instead. Write 1, or bind MESH_SHAPE.",
    "logical_axis_rules": "it takes its standard rules. Leave the line out for ours.",
    "checkpoint_steps": "it saves no other steps. Write ().",
    "log_period": "it logs at every evaluation. Write %EVAL_PERIOD.",
    "save": (
        "it saves nothing. Here the last step is always saved: SaveCheckpointConfig.period = None "
        "saves only that."
    ),
    "restore": "it starts from scratch. Write INITIAL_CHECKPOINT_PATH = None.",
}
_PATHS = (
    "it tries every path of a list, and starts from scratch for []. Write one path as text, or "
    "INITIAL_CHECKPOINT_PATH = None to start from scratch."
)
TABLE: Mapping[str, str] = {
    **{f"{name} = None": f"In t5x {text}" for name, text in _NONES.items()},
    "path = [], or a list": f"In t5x {_PATHS}",
}
"""Every such value, what t5x does for it, and what to write here."""


def about(parameter: str, value: Any) -> str:
    """Return what t5x does for a value and what to write instead; "" for any other value."""
    if parameter == "path" and isinstance(value, list | tuple):
        return f"For t5x's list: {_PATHS}"
    if value is None and parameter in _NONES:
        return f"For t5x's None: {_NONES[parameter]}"
    return ""
