"""Plots of an evaluation: distributions of bits per dim and of network evaluations."""

import math
import os
from collections.abc import Mapping

import numpy as np

from idode_gin.reports import plots

_SHOWN = 6
_MOST_BINS = 60


def plot_bpd_histogram(
    bpd: np.ndarray,
    images: np.ndarray,
    levels: int,
    path: str | os.PathLike[str],
    *,
    name: str,
) -> None:
    """Plot a histogram of bits per dim, with the best images above it and the worst below.

    `bpd` is finite, `[N]`; `images` are integers `[N, H, W, C]` in `0..levels-1`, of which only
    those shown are read; `name` is the bound's.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.0), dpi=150, layout="constrained")
    columns = min(_SHOWN, len(bpd))
    grid = figure.add_gridspec(3, columns, height_ratios=(1, 2.6, 1))
    axes = figure.add_subplot(grid[1, :], xlabel="bits per dimension", ylabel="images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.hist(bpd, bins="auto" if np.ptp(bpd) > 0 else 1, alpha=0.6)
    axes.axvline(bpd.mean(), color="0.35", linestyle="--", label=f"mean: {bpd.mean():.3f}")
    axes.legend(frameon=False)
    axes.set_title(f"{name}, {len(bpd):,} images", loc="left", fontsize="medium")
    order = np.argsort(bpd, kind="stable")
    rows = {0: ("best", order[:columns]), 2: ("worst", order[::-1][:columns])}
    for row, (label, chosen) in rows.items():
        for column, index in enumerate(chosen.tolist()):
            # Channels that are not colours are shown side by side.
            tiles = plots.tiles_of(np.asarray(images[index])[None], levels)
            picture = np.concatenate(list(tiles), axis=1)
            thumbnail = figure.add_subplot(grid[row, column], xticks=[], yticks=[])
            thumbnail.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            thumbnail.set_title(f"{bpd[index]:.3f}", fontsize="small")
            thumbnail.set_xlabel(f"#{index}", fontsize="small")
            if column == 0:
                thumbnail.set_ylabel(label)
    plots.save_figure(figure, path)


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
