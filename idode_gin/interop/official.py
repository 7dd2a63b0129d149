"""Conversion of parameters and checkpoints of the published i-DODE and VDM code.

Every published leaf corresponds to one of ours with the same shape; only names differ:

    score_model/dense0                    dense_0
    score_model/conv_in, conv_out         conv_in, conv_out
    score_model/GroupNorm_0               norm_out
    score_model/down.block_3, down.attn_3 down_3/block, down_3/attention      (`up` likewise)
    score_model/mid.block_1, mid.attn_1   middle_0/block, middle_0/attention
    score_model/mid.block_2               middle_1/block

google-research/vdm has the same network and format; `vdm` converts its gamma(t).
`official_evaluation` explains what the published programs of i-DODE compute differently.
"""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from idode_gin import types
from idode_gin.interop import vdm
from idode_gin.networks.unet import UNet

Path: TypeAlias = tuple[str, ...]

_ROOT = "score_model"
_TREES = ("params", "ema_params")
_MOMENTS = ("mu", "nu")
_LARGEST_STEP = 2**31 - 1
_SHOWN = 5
_LOOKED_AT = 80
_ANOTHER = "Download it again, or take another checkpoint."
_OUTSIDE_BLOCKS = {
    "dense_0": "dense0",
    "dense_1": "dense1",
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "GroupNorm_0",
}
_IN_BLOCK = {
    "norm_1": "GroupNorm_0",
    "conv_1": "conv1",
    "conditioning": "cond_proj",
    "norm_2": "GroupNorm_1",
    "conv_2": "conv2",
    "shortcut": "nin_shortcut",
}
_IN_ATTENTION = {
    "norm": "GroupNorm_0",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "proj_out",
}
_MIDDLE = {
    ("middle_0", "block"): "mid.block_1",
    ("middle_0", "attention"): "mid.attn_1",
    ("middle_1", "block"): "mid.block_2",
}


def from_official(tree: Mapping[Any, Any], network: UNet | None = None) -> types.Params:
    """Return our parameters from a published tree.

    Args:
        tree: nested, or flat with names such as "score_model/down.block_0/conv1/kernel".
        network: network that the parameters must fit; None infers it from the tree.

    Raises:
        ValueError: if leaves are missing, unexpected or of another shape; it lists all of them.
    """
    leaves = flatten(tree)
    network = network_of(leaves) if network is None else network
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), (8, 8, _image_channels(leaves)))
    )
    ours = {_official_path(path): (path, leaf.shape) for path, leaf in flatten(shapes).items()}
    _check_leaves(
        {path: np.shape(leaf) for path, leaf in leaves.items()},
        {path: shape for path, (_, shape) in ours.items()},
    )
    return traverse_util.unflatten_dict({ours[path][0]: leaf for path, leaf in leaves.items()})


def to_official(params: types.Params) -> dict[str, Any]:
    """Return the published, nested tree of our parameters, the inverse of `from_official`.

    Raises:
        ValueError: if a leaf has no published counterpart.
    """
    leaves = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({_official_path(path): leaves[path] for path in leaves})


def serialized(
    *, step: int, params: types.Params, ema: types.Params, count: Any, mu: Any, nu: Any
) -> bytes:
    """Return the content of a published checkpoint, from our trees.

    The published optimizer is a chain of three: Adam's scaling, a masked weight decay and the
    learning rate. The last two have no state.

    Raises:
        ValueError: if a leaf has no published counterpart, or another shape than the network's.
    """
    published = to_official(params)
    from_official(published)  # checks the shapes
    average, first, second = (to_official(each) for each in (ema, mu, nu))
    shapes = jax.tree.map(np.shape, published)
    if any(jax.tree.map(np.shape, each) != shapes for each in (average, first, second)):
        raise ValueError("The average and Adam's moments must have the shapes of the parameters.")
    adam = {"count": np.asarray(count, np.int32), "mu": first, "nu": second}
    content = {
        "step": np.asarray(step, np.int32),
        "params": published,
        "ema_params": average,
        "opt_state": {"0": adam, "1": {"inner_state": {}}, "2": {}},
    }
    return serialization.msgpack_serialize(jax.tree.map(np.asarray, content))


def network_of(tree: Mapping[Any, Any]) -> UNet:
    """Return the network of a published tree, with sizes inferred from the leaves.

    Groups are 32 and exponents (6, 7), or none, as published; `min_channels_per_group` is 1.
    Published networks have one attention head and one conditioning number.

    Raises:
        ValueError: if a leaf that determines a size is missing, or the Fourier channels are not
            0 or 4 per channel of the image.
    """
    leaves = flatten(tree)
    kernel = leaves.get((_ROOT, "conv_in", "kernel"))
    if kernel is None or np.ndim(kernel) != 4:
        raise ValueError(
            f"A published tree needs the leaf `{_ROOT}/conv_in/kernel` of 4 axes; the names "
            f"given begin with {sorted({path[0] for path in leaves})[:5]}."
        )
    inputs, channels = np.shape(kernel)[-2:]
    image_channels = _image_channels(leaves)
    if inputs not in (image_channels, 5 * image_channels):
        raise ValueError(
            f"`{_ROOT}/conv_in/kernel` takes {inputs} channels; a published network for images of "
            f"{image_channels} takes {image_channels}, or {5 * image_channels} with Fourier "
            "features."
        )
    blocks = {path[1] for path in leaves if len(path) > 1}
    return UNet(
        channels=channels,
        levels=sum(name.startswith("down.block_") for name in blocks),
        min_channels_per_group=1,
        fourier_exponents=() if inputs == image_channels else (6, 7),
        attention_everywhere="up.attn_0" in blocks,
    )


def load_official_checkpoint(path: str | pathlib.Path) -> dict[str, Any]:
    """Read a checkpoint of a published training program, with our parameter names.

    One of VDM has `time_schedule` if its gamma(t) is learned; Adam's moments of it are zeros.

    Args:
        path: a `ckpt-<n>.flax` file, or the folder that holds them (the newest is read).

    Returns:
        "step": int; "params" and "ema_params": parameters; "opt_state": dict with Adam's "count"
        (int), "mu" and "nu" (trees like the parameters); "network": the `UNet` they fit.

    Raises:
        ValueError: if there is no such file, or it does not contain these trees, whole numbers of
            steps, and finite real floating-point arrays.
    """
    file = _checkpoint_file(pathlib.Path(path))
    state = _restore(file)
    adam = find_adam(state["opt_state"])
    if adam is None:
        raise ValueError(
            "A published checkpoint must have Adam's moments (`mu`, `nu`) in its optimizer state, "
            f"and {file} has none. {_ANOTHER}"
        )
    step, count = _count(file, "step", state["step"]), _count(file, "count", adam["count"])
    for names, trees in ((_TREES, state), (_MOMENTS, adam)):
        for name in names:
            _check_tree(file, name, trees[name])
    network = network_of(state["params"])

    def converted(tree: Mapping[Any, Any], of_time: Callable[[Any], types.Params]) -> types.Params:
        leaves, gamma = vdm.split(flatten(tree))
        return {**from_official(leaves, network), **of_time(gamma)}

    params, ema = (converted(state[name], vdm.time_params) for name in _TREES)
    moments = {name: converted(adam[name], vdm.zero_moments) for name in _MOMENTS}
    _check_same(file, params, [ema, *moments.values()])
    return {
        "step": step,
        "params": params,
        "ema_params": ema,
        "opt_state": {"count": count, **moments},
        "network": network,
    }


def _check_same(file: pathlib.Path, params: types.Params, others: Sequence[types.Params]) -> None:
    """Raise ValueError unless all trees have the same names and shapes."""
    shapes = [jax.tree.map(np.shape, each) for each in (params, *others)]
    if any(each != shapes[0] for each in shapes):
        raise ValueError(
            f"The parameters, their average and Adam's moments in {file} must be of one gamma(t), "
            "but have different ones. The file is damaged: take another checkpoint."
        )


def flatten(tree: Mapping[Any, Any]) -> dict[Path, Any]:
    """Return leaves by path, from a nested tree or one with slashes in names."""
    leaves: dict[Path, Any] = {}
    for name, value in tree.items():
        prefix = name if isinstance(name, tuple) else tuple(str(name).split("/"))
        if isinstance(value, Mapping):
            leaves |= {(*prefix, *path): leaf for path, leaf in flatten(value).items()}
        else:
            leaves[prefix] = value
    return leaves


def _official_path(path: Path) -> Path:
    if len(path) == 2 and path[0] in _OUTSIDE_BLOCKS:
        return (_ROOT, _OUTSIDE_BLOCKS[path[0]], path[1])
    if len(path) == 4 and path[1] in ("block", "attention"):
        inside = _IN_BLOCK if path[1] == "block" else _IN_ATTENTION
        match = re.fullmatch(r"(down|up)_(\d+)", path[0])
        if match:
            kind = "block" if path[1] == "block" else "attn"
            place = f"{match[1]}.{kind}_{match[2]}"
        else:
            place = _MIDDLE.get((path[0], path[1]), "")
        if place and path[2] in inside:
            return (_ROOT, place, inside[path[2]], path[3])
    raise ValueError(f"`{_name(path)}` has no counterpart in the published networks.")


def _image_channels(leaves: Mapping[Path, Any]) -> int:
    bias = leaves.get((_ROOT, "conv_out", "bias"))
    if bias is None or np.ndim(bias) != 1:
        raise ValueError(f"The published tree needs the leaf `{_ROOT}/conv_out/bias` of 1 axis.")
    return np.shape(bias)[0]


def _check_leaves(
    found: Mapping[Path, tuple[int, ...]], expected: Mapping[Path, tuple[int, ...]]
) -> None:
    wrong = [f"missing `{_name(path)}`" for path in expected if path not in found]
    wrong += [f"unexpected `{_name(path)}`" for path in found if path not in expected]
    wrong += [
        f"`{_name(path)}` of shape {found[path]} where {expected[path]} was expected"
        for path in expected
        if path in found and found[path] != expected[path]
    ]
    if wrong:
        raise ValueError(
            "The published parameters do not fit the network: "
            + "; ".join(wrong)
            + ". Take the network from `network_of(tree)`, or correct its sizes."
        )


def _name(path: Path) -> str:
    return "/".join(path)


def _checkpoint_file(path: pathlib.Path) -> pathlib.Path:
    if path.is_file():
        return path
    numbered = {
        int(match[1]): file
        for file in path.glob("ckpt-*.flax")
        if (match := re.fullmatch(r"ckpt-(\d+)\.flax", file.name))
    }
    if not numbered:
        found = "" if path.exists() else " There is no such path."
        raise ValueError(
            f"No published checkpoint at {path}: expected a file `ckpt-<n>.flax`, a folder with "
            "such files, usually called `checkpoints-0`, or a run or `checkpoint_<step>` of t5x."
            f"{found}"
        )
    return numbered[max(numbered)]


def _restore(file: pathlib.Path) -> Mapping[str, Any]:
    """Return the trees of a checkpoint file; raise ValueError if it holds something else."""
    try:
        state = serialization.msgpack_restore(file.read_bytes())
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{file} is not a published checkpoint, a file that flax writes as ckpt-<n>.flax: "
            f"{_described(file)}. {_ANOTHER}"
        ) from error
    names = ("step", "params", "ema_params", "opt_state")
    missing = [name for name in names if not isinstance(state, Mapping) or name not in state]
    if missing:
        has = ", ".join(map(str, state))[:80] if isinstance(state, Mapping) else repr(state)[:80]
        raise ValueError(
            f"{file} is not a published checkpoint, which has {', '.join(names)}: it has no "
            f"{missing}, and holds {has or 'nothing'}. {_ANOTHER}"
        )
    return state


def _described(file: pathlib.Path) -> str:
    """Return what a file holds that flax cannot read."""
    with file.open("rb") as opened:
        start = opened.read(_LOOKED_AT)
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if start and text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        return f"it is text that begins with {text[:40]!r}"
    return f"its {file.stat().st_size} bytes cannot be read, so it is damaged or incomplete"


def _count(file: pathlib.Path, name: str, value: Any) -> int:
    """Return a number of steps; raise ValueError if it is none that 32 bits hold."""
    found = np.asarray(value)
    if found.shape != () or found.dtype.kind not in "iu" or not 0 <= found <= _LARGEST_STEP:
        raise ValueError(
            f"`{name}` of a published checkpoint must be a whole number of steps, 0 to "
            f"{_LARGEST_STEP}, got {str(value)[:80]} ({type(value).__name__}) in {file}. The file "
            "is damaged, or was written by another program: take another checkpoint."
        )
    return int(found)


def _check_tree(file: pathlib.Path, name: str, tree: Any) -> None:
    """Raise ValueError unless a tree has names, and finite real floating-point arrays as leaves."""
    wrong = [f"`{name}` is of type {type(tree).__name__}"]
    if isinstance(tree, Mapping):
        bad = ((path, _fault(leaf)) for path, leaf in flatten(tree).items())
        wrong = [f"`{name}/{_name(path)}` {fault}" for path, fault in bad if fault]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if wrong[_SHOWN:] else ""
        raise ValueError(
            "The leaves of a published checkpoint must be finite arrays of floating-point numbers, "
            f"by name, but in {file} {'; '.join(wrong[:_SHOWN])}{more}. The file is damaged, or "
            "was written by another program: take another checkpoint."
        )


def _fault(leaf: Any) -> str | None:
    """Return what keeps a leaf from being an array of parameters; None if nothing does."""
    if not isinstance(leaf, np.ndarray | jax.Array):
        return f"is of type {type(leaf).__name__}"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"holds {leaf.dtype} numbers"
    if leaf.ndim == 0:
        return "is a scalar"
    with np.errstate(invalid="ignore"):  # damaged files may hold signaling NaNs
        is_finite = np.abs(np.asarray(leaf, np.float64)) <= np.finfo(np.float32).max
    return None if is_finite.all() else "holds a NaN or an infinity in single precision"


def find_adam(state: Any) -> Mapping[str, Any] | None:
    """Return the part of an optimizer state with Adam's moments, at any depth."""
    if not isinstance(state, Mapping):
        return None
    if {"count", "mu", "nu"} <= set(state):
        return state
    return next((adam for value in state.values() if (adam := find_adam(value))), None)
