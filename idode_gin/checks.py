"""Errors with an exit code of their own, and checks of arguments that every layer shares."""

import difflib
import math
import numbers
from collections.abc import Iterable

import numpy as np

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 3
EXIT_PREEMPTED = 75


class NonFiniteError(RuntimeError):
    """A loss, gradient or log-density became NaN or infinite. Programs exit with 3.

    Args:
        message: what is not finite.
        batch: path of the file with the batch of the training step that failed, if one did.
    """

    def __init__(self, message: str = "", batch: str | None = None) -> None:
        super().__init__(message)
        self.batch = batch


class LossSpikeError(NonFiniteError):
    """A training loss is finite, but far above earlier ones. Programs exit with 3 as well."""


class NonFiniteEvaluationError(NonFiniteError):
    """An evaluation during training is not finite, after a step that was. Programs exit with 3."""


class Preempted(Exception):
    """The process was asked to stop and has saved its state. Programs exit with 75.

    Args:
        message: what was saved, and how to resume.
        run: the run directory of a training that was stopped.
    """

    def __init__(self, message: str = "", run: str | None = None) -> None:
        super().__init__(message)
        self.run = run


class DisagreementError(ValueError):
    """The processes of a run differ. All of them raise it together. Programs exit with 2."""


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a number greater than zero and finite."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be a number greater than zero, got {name}={value!r}.")
    if not 0 < value < math.inf:  # type: ignore[operator]
        finite = " and finite" if value == math.inf else ""
        raise ValueError(f"`{name}` must be greater than zero{finite}, got {name}={value}.")


def check_finite(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a finite number."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"`{name}` must be a finite number, got {name}={value!r}.")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an integer greater than zero."""
    check_positive(name, value)
    check_integer(name, value, at_least=1)


def check_seed(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an integer in 0 … 2^32 - 1.

    jax takes other integers modulo 2^32, so that two of them would draw the same numbers.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not 0 <= value < 2**32:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be an integer from 0 to 2^32 - 1, got {name}={value!r}.")


def check_kind(name: str, value: object, kind: type) -> None:
    """Raise ValueError unless `value` is a `kind`, such as an `AbstractSolver`."""
    if not isinstance(value, kind):
        raise ValueError(f"`{name}` must be an instance of {kind.__name__}, got {value!r}.")


def check_places(name: str, index: np.ndarray, count: int) -> None:
    """Raise ValueError unless `index` has an integer in 0 … 2^31 - 1 for each of `count` images."""
    if index.shape != (count,) or index.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be one integer for each of the {count} images, got {index.dtype} "
            f"{list(index.shape)}."
        )
    if count and not 0 <= index.min() <= index.max() < 2**31:
        raise ValueError(
            f"`{name}` must be places in a split, from 0 to 2^31 - 1, got {index.min()} to "
            f"{index.max()}."
        )


def check_integer(name: str, value: object, *, at_least: int) -> None:
    """Raise ValueError unless `value` is an integer (a bool is none) of `at_least` or more."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"`{name}` must be an integer, {at_least} or more, got {name}={value!r}.")


def check_lanes(lanes: int | None) -> None:
    """Raise ValueError unless `lanes`, images solved side by side, is positive or None."""
    if lanes is not None:
        check_count("lanes", lanes)


def check_lanes_fit(lanes: int | None, solve_size: int, images_each: int = 1) -> None:
    """Raise ValueError if there are more lanes than the `solve_size * images_each` of a solve."""
    if lanes is not None and lanes > solve_size * images_each:
        each = f", for {images_each} images each" if images_each > 1 else ""
        raise ValueError(
            f"`lanes` must be at most the number of images that fill them, got lanes={lanes} and "
            f"solve_size={solve_size}{each}. Lower `lanes` or raise `solve_size`."
        )


def check_multiple(name: str, size: int, unit_name: str, unit: int) -> None:
    """Raise ValueError unless `size` is a multiple of `unit`; it names the next valid size."""
    if size % unit:
        next_valid = size - size % unit + unit
        raise ValueError(
            f"`{name}` must be a multiple of `{unit_name}`, got {name}={size} and "
            f"{unit_name}={unit}. The next valid `{name}` is {next_valid}."
        )


def check_pixels(images: np.ndarray, levels: int) -> None:
    """Raise ValueError unless images are integers `[N, H, W, C]` in `0..levels-1`, N > 0."""
    if images.ndim != 4 or images.dtype.kind not in "iu" or images.size == 0:
        raise ValueError(
            "Images must be integers [N, H, W, C] with N of one or more, got "
            f"{images.dtype} {list(images.shape)}.{axes_hint(images.shape)}"
            f"{integers_hint(images, levels)}"
        )
    if images.min() < 0 or images.max() >= levels:
        raise ValueError(
            f"Pixels must be in 0..{levels - 1}, because levels={levels}, got values from "
            f"{images.min()} to {images.max()}. Set the levels to the dataset's own."
        )


def axes_hint(shape: tuple[int, ...]) -> str:
    """Return how to add the axis that three axes lack of `[N, H, W, C]`; "" for other numbers."""
    if len(shape) != 3:
        return ""
    if shape[-1] in (1, 3):
        return " One image needs a first axis of 1: images[None]."
    return " Grey images need a last axis of 1: images[..., None]."


def integers_hint(images: np.ndarray, levels: int = 256) -> str:
    """Return how to recover levels 0 … V-1 from images of floating point; "" for others."""
    if images.dtype.kind != "f" or images.size == 0:
        return ""
    low, high = float(images.min()), float(images.max())
    top, kind = levels - 1, np.min_scalar_type(levels - 1)
    why = " Bits per dim are those of integer levels; the model scales them and adds the noise."
    if low >= 0 and high <= 1:
        way = f"np.rint(images * {top}).astype('{kind}')"
        return f"{why} If 0 … 1 are levels divided by {top}: {way}."
    if low >= -1 and high <= 1:
        way = f"np.rint((images + 1) / 2 * {top}).astype('{kind}')"
        return f"{why} If -1 … 1 are scaled levels 0 … {top}: {way}."
    if low >= 0 and high <= top and (images == np.rint(images)).all():
        return f"{why} These are whole numbers: images.astype('{kind}')."
    return f"{why} Give those of the files, before any scaling; got {low:g} to {high:g}."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint: the closest known name, or the first ten if none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    shown = ", ".join(repr(each) for each in names[:10]) or "nothing"
    return f"Known: {shown}{', …' if len(names) > 10 else ''}."
