"""Rematerialization: which activations of a block the gradient stores or recomputes."""

from typing import Any

import jax
from flax import linen as nn

from idode_gin import checks

FULL = "full"


def _keep_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name == "conv_general_dilated"


_JAX = (
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)

POLICIES: dict[str, Any] = {
    FULL: jax.checkpoint_policies.nothing_saveable,
    "convolutions": _keep_convolutions,
    **{name: getattr(jax.checkpoint_policies, name) for name in _JAX},
}
"""`full` stores only the input of a block; `convolutions` also the outputs of its convolutions; the
others are those of jax."""


def check(name: str | None) -> None:
    """Raise ValueError, with the nearest name, unless `name` is a policy or None."""
    if name is None or name in POLICIES:
        return
    raise ValueError(
        f"`remat` must be None or one of {', '.join(map(repr, POLICIES))}, got {name!r}. "
        f"{checks.nearest(str(name), POLICIES)}"
    )


def lift(module: type[nn.Module], name: str | None, in_loop: bool) -> Any:
    """Return `module` with the rematerialization policy `name`; None changes nothing.

    Args:
        module: a flax module.
        name: name of the policy.
        in_loop: True inside a loop, which already keeps the compiler from merging recomputed
            operations with the original ones.
    """
    if name is None:
        return module
    return nn.remat(module, policy=POLICIES[name], prevent_cse=not in_loop)
