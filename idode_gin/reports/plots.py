"""Plots of a run as PNG files, written atomically.

matplotlib and Pillow are imported by the functions that draw. Figures use matplotlib's object
interface: no pyplot, no global state, no display.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import ArrayLike

from idode_gin import checks
from idode_gin.reports import files

_TILE_PIXELS = 64  # a smaller image is enlarged to at least this
_GAP_PIXELS = 2
_GAMMA_AXIS = "γ = log(σ²/α²): clean on the left, noise on the right"


def plot_bpd_curve(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Plot bits per dimension against the training step.

    Args:
        rows: metrics with "step". Every key named "bpd" or ".../bpd" gives a curve through the rows
            that have a finite value for it.
        path: the PNG to write.

    Raises:
        ValueError: if no row holds a finite bits per dimension.
    """
    curves = _bpd_curves(rows)
    if not curves:
        raise ValueError(
            f"A curve needs a row with a finite 'bpd' or '.../bpd', got {len(rows)} rows without "
            "one."
        )
    figure, axes = new_figure("training step", "bits per dimension")
    for name, points in sorted(curves.items()):
        steps, values = zip(*points, strict=True)
        sparse = len(points) < 50
        axes.plot(steps, values, label=name, marker="o" if sparse else None, markersize=3.5)
    # On a linear scale the first, much larger values would flatten the rest of the curve.
    shown = [value for points in curves.values() for _, value in points]
    if max(shown) > 10 * min(shown) > 0:
        axes.set_yscale("log")
    axes.legend(frameon=False)
    save_figure(figure, path)


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """A context that logs a failure to compute or draw `what`: no figure is lost by a picture."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # jax's errors are RuntimeErrors
        logging.warning("%s: not drawn: %s", what, str(error).partition("\n")[0])


def plot_integrand(
    gammas: ArrayLike,
    values: ArrayLike,
    path: str | os.PathLike[str],
    num_images: int | None = None,
) -> None:
    """Plot the integrand of the bound over gamma; the title states the area under it.

    Args:
        gammas: log(sigma^2 / alpha^2), `[G]`, increasing.
        values: `½ |eps - eps_hat|^2 / (d log 2)` at each, `[G]`, in bits per dimension per unit of
            gamma.
        path: the PNG to write.
        num_images: number of images that `values` are means over, if these are not all of a split;
            the title states it.

    Raises:
        ValueError: unless both are `[G]` with G of two or more, finite, and `gammas` increases.
    """
    gammas, values = np.asarray(gammas, np.float64), np.asarray(values, np.float64)
    if gammas.ndim != 1 or gammas.shape != values.shape or len(gammas) < 2:
        raise ValueError(
            "`gammas` and `values` must both be [G] with G of two or more, got "
            f"{list(gammas.shape)} and {list(values.shape)}."
        )
    if not (np.isfinite(values).all() and np.all(np.diff(gammas) > 0)):
        raise ValueError("`values` must be finite and `gammas` finite and increasing.")
    area = np.trapezoid(values, gammas)
    figure, axes = new_figure(_GAMMA_AXIS, "bits per dimension per unit of γ")
    axes.fill_between(gammas, values, alpha=0.25)
    axes.plot(gammas, values)
    title = f"area: {area:.3f} bits per dimension"
    if num_images is not None:
        title += f", mean over {num_images} of the images only"
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlim(gammas[0], gammas[-1])
    axes.set_ylim(bottom=0)
    save_figure(figure, path)


def plot_loss_by_gamma(
    rows: Sequence[Mapping[str, Any]],
    low: float,
    high: float,
    path: str | os.PathLike[str],
) -> None:
    """Plot the training loss by bin of gamma at the first, middle and last row that has it.

    Args:
        rows: metrics; those with "train/loss_by_gamma" are used.
        low: lower edge of the first bin, nats.
        high: upper edge of the last bin, nats.
        path: the PNG to write.

    Raises:
        ValueError: if no row has it.
    """
    found = [row for row in rows if "train/loss_by_gamma" in row]
    if not found:
        raise ValueError(f"None of the {len(rows)} rows has 'train/loss_by_gamma'.")
    figure, axes = new_figure(_GAMMA_AXIS, "training loss, bits per dimension")
    for place in sorted({0, len(found) // 2, len(found) - 1}):
        losses = [np.nan if each is None else each for each in found[place]["train/loss_by_gamma"]]
        edges = np.linspace(low, high, len(losses) + 1)
        axes.stairs(losses, edges, baseline=None, label=f"step {found[place]['step']}")
    axes.set_xlim(low, high)
    axes.legend(frameon=False)
    save_figure(figure, path)


def image_grid(
    images: np.ndarray,
    levels: int,
    path: str | os.PathLike[str],
    columns: int | None = None,
) -> None:
    """Write a grid of images; small images are enlarged without smoothing.

    One channel is drawn grey, three as red, green and blue. With any other number, each channel is
    a grey tile, the channels of an image side by side.

    Args:
        images: integers `[N, H, W, C]` in `0..levels-1`; 0 is black.
        levels: number of values of a pixel.
        path: the PNG to write.
        columns: tiles per row; None makes the grid roughly square.

    Raises:
        ValueError: for images of another rank, type or range, no images, or less than one column.
    """
    from PIL import Image

    tiles = tiles_of(images, levels)
    if columns is None:
        tiles_per_image = len(tiles) // len(images)
        columns = tiles_per_image * max(1, round((len(images) / tiles_per_image) ** 0.5))
    if columns < 1:
        raise ValueError(f"`columns` must be one or more, got columns={columns}.")
    canvas = _lay_out(tiles, min(columns, len(tiles)))
    picture = Image.fromarray(canvas[..., 0] if canvas.shape[2] == 1 else canvas)
    files.write_atomically(path, lambda file: picture.save(file, format="PNG"))


def _bpd_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        for name, value in row.items():
            if name.rpartition("/")[2] == "bpd" and value is not None and np.isfinite(value):
                curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def new_figure(x_label: str, y_label: str) -> tuple[Any, Any]:
    """Return a new figure and its axes in the common style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG, atomically."""
    files.write_atomically(path, lambda file: figure.savefig(file, format="png"))


def tiles_of(images: np.ndarray, levels: int) -> np.ndarray:
    """Convert integers `[N, H, W, C]` to uint8 tiles `[M, H, W, 1 or 3]`, 0..255."""
    checks.check_pixels(images, levels)
    shades = np.rint(images * (255 / (levels - 1))).astype(np.uint8)
    if images.shape[3] in (1, 3):
        return shades
    return np.concatenate(np.moveaxis(shades, 3, 1), axis=0)[..., None]


def _lay_out(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Lay tiles `[M, H, W, C]` out on a canvas, enlarged, with a mid-grey gap around each."""
    scale = max(1, -(-_TILE_PIXELS // max(tiles.shape[1:3])))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    empty, gap = (0, -len(tiles) % columns), (0, _GAP_PIXELS)
    tiles = np.pad(tiles, (empty, gap, gap, (0, 0)), constant_values=128)
    rows = [np.concatenate(row, axis=1) for row in tiles.reshape(-1, columns, *tiles.shape[1:])]
    return np.pad(np.concatenate(rows), (gap[::-1], gap[::-1], (0, 0)), constant_values=128)
