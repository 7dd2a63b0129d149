"""Recorded numbers of the published implementation: finding, loading and comparing them.

The folder is `tests/golden/data`, or the one that the environment variable IDODE_GOLDENS names.
`data/README.md` says what the files hold and how they were made.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from idode_gin.interop import official

DIRECTORY = pathlib.Path(os.environ.get("IDODE_GOLDENS") or pathlib.Path(__file__).parent / "data")

KINDS = (
    *("components", "importance", "score", "loss", "drift", "ode", "sample", "train", "ckpt"),
    "vdm",
)
"""Every kind of case that some test module here checks."""

Arrays = dict[str, np.ndarray]

STORED_ROUNDING = 1e-7
"""Relative error of an array that was recorded in float64 and stored as float32."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A recorded case: inputs, including random arrays, and results of the published code.

    `f32` and `f64` are its results in the two precisions, `tol` the largest difference between
    them. `keys` are the published names of the parameters, the order of per-leaf arrays;
    `null_grad` marks leaves whose gradient is zero in theory.
    """

    name: str
    config: dict[str, Any]
    inputs: Arrays
    f32: Arrays
    f64: Arrays
    tol: Arrays
    keys: list[str]
    null_grad: np.ndarray

    @property
    def model(self) -> dict[str, Any]:
        """The published `config.model`."""
        return self.config["model"]

    @property
    def dims(self) -> int:
        """Dimensions of one image."""
        return int(np.prod(self.config["HW"])) * 3


def paths() -> list[pathlib.Path]:
    """Every case file of the folder."""
    files = sorted(DIRECTORY.glob("*.npz"))
    return [file for file in files if not file.name.startswith("params_")]


def kind(path: pathlib.Path) -> str:
    """Return the kind of the case in a file; "unknown" if its configuration has none."""
    with np.load(path) as file:
        if "config" not in file:
            return "unknown"
        return json.loads(str(file["config"])).get("kind", "unknown")


@functools.cache
def of_kind(wanted: str) -> list[str]:
    """Names of all cases of one kind, for `pytest.mark.parametrize`."""
    return [path.stem for path in paths() if kind(path) == wanted]


@functools.cache
def load(name: str) -> Case:
    """One case by name, such as "loss_VP_vel"."""
    groups: dict[str, Arrays] = {"in": {}, "f32": {}, "f64": {}, "tol": {}}
    with np.load(DIRECTORY / f"{name}.npz") as file:
        for entry in file.files:
            if "/" in entry:
                group, array = entry.split("/", 1)
                groups[group][array] = file[entry]
        return Case(
            name=name,
            config=json.loads(str(file["config"])),
            inputs=groups["in"],
            f32=groups["f32"],
            f64=groups["f64"],
            tol=groups["tol"],
            keys=[str(key) for key in file["keys"]] if "keys" in file else [],
            null_grad=file["null_grad"] if "null_grad" in file else np.zeros(0, bool),
        )


def published_params(case: Case, dtype: Any = np.float32) -> Arrays:
    """The case's parameters under their published names, flat."""
    params = _params_file(case.config["params"])
    kernel = "score_model/conv_in/kernel"
    if not case.model["with_fourier_features"]:
        params[kernel] = params[kernel][:, :, :3]
    return {name: leaf.astype(dtype) for name, leaf in params.items()}


def params(case: Case, dtype: Any = np.float32) -> Any:
    """The case's parameters in our tree."""
    return official.from_official(published_params(case, dtype))


def _params_file(name: str) -> Arrays:
    """Leaves of a parameter set on top of those of the set it extends, if any."""
    with np.load(DIRECTORY / f"params_{name}.npz") as file:
        base = str(file["__base__"])
        leaves = {key: file[key] for key in file.files if key != "__base__"}
    return (_params_file(base) if base else {}) | leaves


def unpack_checkpoint(case: Case, folder: pathlib.Path) -> pathlib.Path:
    """Unpacks the checkpoint files that belong to a "ckpt" case; returns their folder."""
    with tarfile.open(DIRECTORY / f"{case.name}_files.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("checkpoints-*"))


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Runs jax with 64-bit types switched on or off; compiled functions are kept apart by jax."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def slice16(leaf: Any) -> np.ndarray:
    """The 16 recorded entries of a leaf, spread evenly over its flat order."""
    flat = np.asarray(leaf).reshape(-1)
    return flat[np.arange(16) * flat.size // 16]


def assert_all(
    case: Case,
    computed: Mapping[str, Any],
    *,
    rtol: float = 1e-9,
    elsewhere: Collection[str] = (),
    slack: Mapping[str, float] | None = None,
) -> None:
    """Compares every recorded array with `computed`; `elsewhere` names those checked otherwise.

    An array that is recorded and not computed is an error: nothing is passed over.
    """
    slack = slack or {}
    unchecked = set(case.f64) - set(computed) - set(elsewhere)
    assert not unchecked, f"{case.name}: recorded but checked nowhere: {sorted(unchecked)}"
    compared = set(case.f64) & set(computed)
    assert compared, f"{case.name}: nothing to compare"
    for name in sorted(compared):
        assert_close(case, name, computed[name], rtol=rtol, slack=slack.get(name, 0.0))


def assert_close(
    case: Case, name: str, actual: Any, *, rtol: float = 1e-9, slack: float = 0.0
) -> None:
    """Compares with the float64 record, as closely as the precision of `actual` allows.

    float64: `rtol` of the largest magnitude, or the rounding of arrays stored as float32.
    float32: four times the published code's own float32 error, plus four units of rounding, plus
    `slack` where the caller knows that the published error was luckily small.
    """
    error, scale = difference(actual, case.f64[name], f"{case.name} {name}")
    if np.asarray(actual).dtype == np.float32:
        tol = float(case.tol[name]) if name in case.tol else 0.0
        bound = 4 * tol + 4 * np.finfo(np.float32).eps * scale + slack
    else:
        stored_double = case.f64[name].dtype == np.float64
        bound = (rtol if stored_double else max(rtol, STORED_ROUNDING)) * scale
    assert error <= bound, f"{case.name} {name}: off by {error:.3g}, allowed {bound:.3g}"


def rounding_of(outputs: Callable[..., tuple[Any, ...]], inputs: tuple[Any, ...]) -> np.ndarray:
    """Largest change of each of `outputs`, in float64, when its inputs carry float32 errors.

    Twice the largest of three random draws. What the published float32 run lost may be less by
    luck, above all where it is the largest error of a few numbers.
    """
    rng, eps = np.random.default_rng(0), np.finfo(np.float32).eps

    def rounded(leaf: Any) -> Any:
        return leaf * (1 + eps * rng.uniform(-1, 1, np.shape(leaf)))

    with precision("float64"):
        compiled = jax.jit(outputs)
        inputs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), inputs)
        exact = compiled(*inputs)
        others = [compiled(*jax.tree.map(rounded, inputs)) for _ in range(3)]
    changes = [
        [float(np.max(np.abs(a - b))) for a, b in zip(exact, each, strict=True)] for each in others
    ]
    return 2 * np.max(changes, axis=0)


def difference(actual: Any, expected: np.ndarray, what: str) -> tuple[float, float]:
    """Largest difference, and the largest magnitude expected; shapes must agree."""
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} where {expected.shape}"
    assert np.all(np.isfinite(actual)), f"{what}: not finite"
    return float(np.max(np.abs(actual - expected))), float(np.max(np.abs(expected)))
