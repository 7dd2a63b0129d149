"""The pictures: right pixels, right curves, and a file that is whole or absent."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from idode_gin.reports import plots


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def tile(picture, row, column, size, scale):
    """The tile at a place of a grid, brought back to its own size."""
    pitch = size * scale + 2
    top, left = 2 + row * pitch, 2 + column * pitch
    enlarged = picture[top : top + size * scale, left : left + size * scale]
    small = enlarged[::scale, ::scale]
    np.testing.assert_array_equal(small.repeat(scale, 0).repeat(scale, 1), enlarged)
    return small


def test_grey_images_are_enlarged_without_smoothing_and_laid_out_in_order(tmp_path):
    images = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 1))
    plots.image_grid(images, 17, tmp_path / "grid.png", columns=4)
    picture = read(tmp_path / "grid.png")
    assert picture.shape == (2 * 66 + 2, 4 * 66 + 2)
    for number, image in enumerate(images):
        shown = tile(picture, number // 4, number % 4, size=8, scale=8)
        np.testing.assert_array_equal(shown, np.rint(image[..., 0] * 255 / 16))
    assert (tile(picture, 1, 2, size=8, scale=8) == 128).all()  # no image there


def test_eight_bit_colours_are_exact(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    plots.image_grid(images, 256, tmp_path / "grid.png")
    picture = read(tmp_path / "grid.png")
    assert picture.shape == (2 * 66 + 2, 2 * 66 + 2, 3)  # four images: two by two
    for number, image in enumerate(images):
        shown = tile(picture, number // 2, number % 2, size=32, scale=2)
        np.testing.assert_array_equal(shown, image)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_lowest_level_is_black_and_the_highest_white(tmp_path, levels):
    images = np.array([0, levels - 1]).reshape(2, 1, 1, 1)
    plots.image_grid(images, levels, tmp_path / "grid.png", columns=2)
    picture = read(tmp_path / "grid.png")
    assert tile(picture, 0, 0, size=1, scale=64) == [[0]]
    assert tile(picture, 0, 1, size=1, scale=64) == [[255]]


def test_other_channel_counts_become_grey_tiles_beside_each_other(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 2)).astype(np.uint8)
    plots.image_grid(images, 256, tmp_path / "grid.png")
    picture = read(tmp_path / "grid.png")
    for number, image in enumerate(images):
        for channel in range(2):
            place = 2 * number + channel
            columns = (picture.shape[1] - 2) // 66
            assert columns % 2 == 0  # an image's channels share a row
            shown = tile(picture, place // columns, place % columns, size=64, scale=1)
            np.testing.assert_array_equal(shown, image[..., channel])


@pytest.mark.parametrize(
    ("images", "levels", "message"),
    [
        (np.zeros((2, 4, 4, 1)), 4, "integers"),
        (np.zeros((2, 4, 4), np.uint8), 4, "integers"),
        (np.zeros((0, 4, 4, 1), np.uint8), 4, "one or more"),
        (np.full((2, 4, 4, 1), 4), 4, r"0\.\.3"),
        (np.full((2, 4, 4, 1), -1), 4, r"0\.\.3"),
    ],
)
def test_bad_images_are_refused_and_leave_no_file(tmp_path, images, levels, message):
    with pytest.raises(ValueError, match=message):
        plots.image_grid(images, levels, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_fewer_columns_than_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="columns=0"):
        plots.image_grid(np.zeros((2, 4, 4, 1), int), 4, tmp_path / "grid.png", columns=0)


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the figures that were saved."""
    axes = []
    save = plots.save_figure

    def remember(figure, path):
        axes.append(figure.axes[0])
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", remember)
    return axes


def test_the_curves_are_the_finite_values_in_order_of_step(tmp_path, drawn):
    rows = [
        {"step": 20, "train/bpd": 3.0, "train/loss": 99.0, "note": "text"},
        {"step": 10, "train/bpd": 4.0, "eval/bpd": np.float32(5.0)},
        {"step": 30, "train/bpd": float("nan"), "eval/bpd": None},
        {"step": 40, "train/bpd": 2.0, "train/bpd_stderr": 0.1},
    ]
    plots.plot_bpd_curve(rows, tmp_path / "bpd.png")
    (axes,) = drawn
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves.pop("train/bpd") == [[10, 4], [20, 3], [40, 2]]
    assert curves.pop("eval/bpd") == [[10, 5]]
    assert not curves
    assert read(tmp_path / "bpd.png").shape == (600, 960, 4)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "bpd": np.nan}]])
def test_a_curve_without_values_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="needs a row with a finite"):
        plots.plot_bpd_curve(rows, tmp_path / "bpd.png")


def test_the_integrand_shows_its_area(tmp_path, drawn):
    gammas = np.linspace(-8, 8, 2001)
    values = 1.5 * np.exp(-(gammas**2) / 2) / np.sqrt(2 * np.pi)
    plots.plot_integrand(gammas, values, tmp_path / "integrand.png")
    (axes,) = drawn
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([gammas, values], 1))
    assert axes.get_title(loc="left") == "area: 1.500 bits per dimension"
    assert read(tmp_path / "integrand.png").shape == (600, 960, 4)


@pytest.mark.parametrize(
    ("gammas", "values"),
    [
        ([0, 1], [1, 2, 3]),
        ([0], [1]),
        ([1, 0], [1, 2]),
        ([0, 1], [1, np.nan]),
        ([[0, 1]], [[1, 2]]),
    ],
)
def test_a_bad_integrand_is_refused(tmp_path, gammas, values):
    with pytest.raises(ValueError, match="`gammas`"):
        plots.plot_integrand(gammas, values, tmp_path / "integrand.png")


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_a_figure_that_cannot_be_drawn_ends_nothing(error, caplog):
    with plots.optional("a.png"):
        raise error("no memory\nfor it")
    assert "a.png: not drawn: no memory" in caplog.text
    with pytest.raises(OSError, match="full"), plots.optional("a.png"):
        raise OSError("full")


def test_drawing_needs_no_display_and_no_pyplot(tmp_path):
    program = (
        "import sys\n"
        "from idode_gin.reports import plots\n"
        "assert 'matplotlib' not in sys.modules and 'PIL' not in sys.modules\n"
        f"plots.plot_bpd_curve([{{'step': 1, 'bpd': 2.0}}], {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=120)
    assert (tmp_path / "a.png").exists()


def test_loss_by_gamma_is_drawn_for_the_first_the_middle_and_the_last_row(tmp_path, monkeypatch):
    rows = [{"step": step, "train/loss_by_gamma": [step, None, 2.0 * step]} for step in range(1, 8)]
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    plots.plot_loss_by_gamma([{"step": 0}, *rows], -8.0, 4.0, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    stairs = figures[0].axes[0].patches
    assert [each.get_label() for each in stairs] == ["step 1", "step 4", "step 7"]
    np.testing.assert_array_equal(stairs[2].get_data().values, [7, np.nan, 14])
    np.testing.assert_array_equal(stairs[2].get_data().edges, [-8, -4, 0, 4])


def test_loss_by_gamma_needs_a_row(tmp_path):
    with pytest.raises(ValueError, match="None of the 1 rows"):
        plots.plot_loss_by_gamma([{"step": 0}], 0.0, 1.0, tmp_path / "loss.png")
