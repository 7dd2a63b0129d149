"""Draw `docs/_static/quickstart.png`, the picture of the README, from a `make quickstart`.

python docs/picture.py runs/quickstart
"""

import pathlib
import sys

import numpy as np
from matplotlib import figure

from tasks import digits

SIDE = 6


def _tiles(images: np.ndarray) -> np.ndarray:
    """Return the first SIDE^2 images `[N, 8, 8, 1]` as one, a pixel apart."""
    padded = np.pad(images[: SIDE**2, ..., 0], ((0, 0), (0, 1), (0, 1)), constant_values=0)
    rows = padded.reshape(SIDE, SIDE, *padded.shape[1:])
    return rows.transpose(0, 2, 1, 3).reshape(SIDE * padded.shape[1], -1)


def draw(run: pathlib.Path, path: pathlib.Path) -> None:
    """Draw data beside samples, and the table of the evaluation."""
    picture = figure.Figure(figsize=(10, 3.1), layout="constrained", facecolor="white")
    left, middle, right = picture.subplots(1, 3, width_ratios=(1, 1, 1.6))
    samples = np.load(run / "samples" / "samples.npz")["levels"]
    for axes, images, title in (
        (left, digits.load_split("test"), "test images"),
        (middle, samples, "samples"),
    ):
        axes.imshow(_tiles(images), cmap="gray", vmin=0, vmax=16, interpolation="nearest")
        axes.set_title(title)
    _, *rows = (run / "eval" / "table.txt").read_text().splitlines()
    right.text(0, 0.5, "\n".join(rows), family="monospace", fontsize=8, va="center")
    right.set_title("bits per dim of the test images")
    for axes in (left, middle, right):
        axes.set_axis_off()
    picture.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent / "_static" / "quickstart.png")
