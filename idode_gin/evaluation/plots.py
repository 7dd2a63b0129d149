"""Plots of evaluations: bits per dim, their differences, and network evaluations."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from idode_gin.evaluation import paired
from idode_gin.reports import plots

_SHOWN = 6
_PAIRS_IN_ROW = 2
_MOST_BINS = 60


def plot_bpd_histogram(
    bpd: np.ndarray,
    images: np.ndarray,
    levels: int,
    path: str | os.PathLike[str],
    *,
    name: str,
    places: np.ndarray | None = None,
) -> None:
    """Plot a histogram of bits per dim, with the best images above it and the worst below.

    `bpd` is finite, `[N]`; `images` are integers `[N, H, W, C]` in `0..levels-1`, of which only
    those shown are read; `name` is the bound's; `places` `[N]` are those of the images in the whole
    split, where they are a part of it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.0), dpi=150, layout="constrained")
    columns = min(_SHOWN, len(bpd))
    order = np.argsort(bpd, kind="stable").tolist()
    shown = {"best": order[:columns], "worst": order[::-1][:columns]}
    place = np.arange(len(bpd)) if places is None else places
    with_texts = _Shown(images, levels, shown, lambda i: (f"{bpd[i]:.3f}", f"#{place[i]}"))
    _draw_between(figure, bpd, with_texts)
    axes = figure.axes[0]
    axes.axvline(bpd.mean(), color="0.35", linestyle="--", label=f"mean: {bpd.mean():.3f}")
    axes.legend(frameon=False)
    axes.set_xlabel("bits per dimension")
    axes.set_title(f"{name}, {len(bpd):,} images", loc="left", fontsize="medium")
    plots.save_figure(figure, path)


def plot_differences(
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]],
    path: str | os.PathLike[str],
    *,
    images: np.ndarray | None = None,
    levels: int = 2,
    places: np.ndarray | None = None,
) -> None:
    """Plot histograms of `second - first`, with the images that differ most on either side.

    Args:
        pairs: title, first and second bits per dim, `[N]`, for each histogram.
        path: the PNG to write.
        images: integers `[N, H, W, C]` in `0..levels-1`; None leaves them out.
        levels: number of values of a pixel.
        places: of the images in the whole split, `[N]`, where they are a part of it.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(pairs) / _PAIRS_IN_ROW)
    columns = min(len(pairs), _PAIRS_IN_ROW)
    height = 4.0 if images is None else 6.4
    figure = Figure(figsize=(6.4 * columns, height * rows), dpi=150, layout="constrained")
    panels = figure.subfigures(rows, columns, squeeze=False).ravel()
    for panel, (title, first, second) in zip(panels, pairs, strict=False):
        found = paired.difference(first, second)
        shown = None
        if images is not None:
            lower, higher = paired.extremes(found.values, _SHOWN)
            chosen = {"lower": lower, "higher": higher}
            shown = _Shown(images, levels, chosen, functools.partial(_texts, first, second, places))
        _draw_between(panel, found.values, shown)
        axes = panel.axes[0]
        axes.axvline(0, color="0.7", linewidth=1)
        axes.axvline(found.mean, color="0.35", linestyle="--")
        axes.set_xlabel("difference, bits per dimension")
        error = "" if found.stderr is None else f" ± {found.stderr:.5f}"
        axes.set_title(f"{title}: {found.mean:+.5f}{error}", loc="left", fontsize="medium")
    plots.save_figure(figure, path)


def _texts(
    first: np.ndarray, second: np.ndarray, places: np.ndarray | None, index: int
) -> tuple[str, str]:
    """Return the texts above and below an image that differs."""
    a, b = float(first[index]), float(second[index])
    place = index if places is None else places[index]
    return f"{b - a:+.3g}", f"#{place}\n{a:.2f} → {b:.2f}"


class _Shown(NamedTuple):
    """Images shown with a histogram: indices by label, and the texts above and below each."""

    images: np.ndarray
    levels: int
    chosen: Mapping[str, Sequence[int]]
    texts: Callable[[int], tuple[str, str]]


def _draw_between(figure: Any, values: np.ndarray, shown: _Shown | None) -> None:
    """Draw a histogram of values between two rows of images, its axes first; or without images."""
    columns = 1 if shown is None else max(1, *map(len, shown.chosen.values()))
    ratios = (2.6,) if shown is None else (1, 2.6, 1)
    grid = figure.add_gridspec(len(ratios), columns, height_ratios=ratios)
    axes = figure.add_subplot(grid[len(ratios) // 2, :], ylabel="images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.hist(values, bins="auto" if np.ptp(values) > 0 else 1, alpha=0.6)
    if shown is None:
        return
    for row, (label, chosen) in zip((0, 2), shown.chosen.items(), strict=True):
        for column, index in enumerate(chosen):
            # Channels that are not colours are shown side by side.
            tiles = plots.tiles_of(np.asarray(shown.images[index])[None], shown.levels)
            picture = np.concatenate(list(tiles), axis=1)
            thumbnail = figure.add_subplot(grid[row, column], xticks=[], yticks=[])
            thumbnail.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            above, below = shown.texts(index)
            thumbnail.set_title(above, fontsize="small")
            thumbnail.set_xlabel(below, fontsize="small")
            if column == 0:
                thumbnail.set_ylabel(label)


def plot_nfe_histogram(nfe: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Plot a histogram of network evaluations per image, `[N]`, for each bound."""
    everything = np.concatenate(list(nfe.values()))
    low, high = int(np.floor(everything.min())), int(np.ceil(everything.max()))
    # An integer, so that all bins hold equally many integers.
    width = math.ceil((high - low + 1) / _MOST_BINS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    figure, axes = plots.new_figure("network evaluations per image", "images")
    for name, values in nfe.items():
        label = f"{name}: mean {values.mean():.1f}, most {values.max():.0f}"
        axes.hist(values, bins=edges, histtype="step", label=label)
    axes.set_yscale("symlog", linthresh=1)  # makes the few slow images visible
    axes.legend(frameon=False)
    plots.save_figure(figure, path)
