"""A network that is any flax module, of linen or of NNX."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from idode_gin import checks, types
from idode_gin.networks import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlaxNetwork(base.AbstractNetwork):
    """The function that a flax module computes: `(z, time, conditioning) -> F` of z's shape.

        class MyNet(nn.Module):  # linen: NETWORK is FlaxNetwork(module=MyNet())
            @nn.compact
            def __call__(self, z, time, conditioning): ...

        class MyNet(nnx.Module):  # NNX: NETWORK is FlaxNetwork(module=MyNet), uncalled
            def __init__(self, *, rngs): ...
            def __call__(self, z, time, conditioning): ...

    z is `[B, H, W, C]`, time `[B]` in [0, 1] and conditioning `[B, K]`. The output of an image may
    depend on that image alone: a module with state, such as the averages of BatchNorm, is refused.
    It gets no random keys: dropout is off (NNX) or an error (linen). Parameters are replicated over
    the mesh. It should compute in float32; a linen module with a coarser `dtype` field is compared
    with float32 by the pilot, as `UNet` is.

    Args:
        module: a linen module, or an NNX class or function that takes `rngs` and returns a module.
        conditioning_size: K, the numbers per image in `conditioning` beside those of its class.
        num_classes: C, classes of labels, as for `UNet`: the module gets `[B, K + C]`; 0 for none.

    Raises:
        ValueError: if it makes no module, has state, or its output has another shape.
    """

    # Of a linen module the user's fields count. What makes an NNX one may be any function.
    computation = (*base.AbstractNetwork.computation, "module", "name", "parent")

    module: nn.Module | Callable[..., Any]
    conditioning_size: int = 1
    num_classes: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("conditioning_size", "num_classes"):
            checks.check_integer(name, getattr(self, name), at_least=0)
        is_linen_class = isinstance(self.module, type) and issubclass(self.module, nn.Module)
        if is_linen_class or isinstance(self.module, nnx.Module) or not callable(self.module):
            raise ValueError(
                "`module` must be a linen module, such as MyNet(), or an NNX class, such as MyNet, "
                f"which is called with `rngs`; got {self.module!r}."
            )

    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        """Initialize the parameters as the module does."""
        if not isinstance(self.module, nn.Module):
            made = self.module(rngs=nnx.Rngs(key))
            checks.check_kind("module(rngs=…)", made, nnx.Module)
            _, state, _ = self._split(made)
            return _named(nnx.to_pure_dict(state))
        variables = self.module.lazy_init(
            key,
            jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.float32),
            jax.ShapeDtypeStruct((1, self.conditioning_size + self.num_classes), jnp.float32),
        )
        _check_stateless(set(variables) - {"params"})
        return nn.meta.unbox(dict(variables).get("params", {}))

    @property
    def coarse_dtype(self) -> str | None:
        """The `dtype` of a linen module if it has fewer than 32 bits, else None."""
        is_linen = isinstance(self.module, nn.Module)
        return base.coarse(getattr(self.module, "dtype", None)) if is_linen else None

    def in_full_precision(self) -> "FlaxNetwork":
        """Return the network with the module's `dtype` that of z."""
        if self.coarse_dtype is None or not isinstance(self.module, nn.Module):
            return self
        return dataclasses.replace(self, module=self.module.clone(dtype=None))

    def __call__(
        self,
        params: types.Params,
        z: types.Images,
        time: types.PerExample,
        conditioning: base.Conditioning,
        key: types.PRNGKeys | None = None,
    ) -> types.Images:
        """Return the module's output, in the dtype of z; `key` is not used."""
        if isinstance(self.module, nn.Module):
            output = self.module.apply({"params": params}, z, time, conditioning)
        else:
            make = self.module
            abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
            graph, state, others = self._split(abstract)
            nnx.replace_by_pure_dict(state, _numbered(nnx.to_pure_dict(state), params))
            output = nnx.merge(graph, state, others)(z, time, conditioning)
        if getattr(output, "shape", None) != z.shape:
            raise ValueError(
                f"The module must return one number for each of z, {list(z.shape)}, got "
                f"{getattr(output, 'shape', type(output).__name__)}."
            )
        return jnp.asarray(output, z.dtype)

    def _split(self, module: Any) -> tuple[Any, Any, Any]:
        """Split an NNX module into its graph, its parameters, and the state of random streams."""
        module.eval()  # dropout off
        graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
        params, streams, others = states
        _check_stateless(set(map(str, others)))
        return graph, params, streams


def _check_stateless(names: set[str]) -> None:
    if names:
        raise ValueError(
            "A network must be a function of its parameters, but the module also holds "
            f"{', '.join(sorted(names))}. Replace BatchNorm and the like by LayerNorm or GroupNorm."
        )


def _named(tree: Any) -> Any:
    """Return a tree with text for all keys, which checkpoints need; lists have numbers."""
    return {str(k): _named(each) for k, each in tree.items()} if isinstance(tree, dict) else tree


def _numbered(like: Any, tree: Any) -> Any:
    """Return a tree from `_named` with the keys of `like`."""
    if not isinstance(like, dict):
        return tree
    return {k: _numbered(each, tree[str(k)]) for k, each in like.items()}
