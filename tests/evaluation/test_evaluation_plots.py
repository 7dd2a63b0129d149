"""Plots of an evaluation: every image is counted, and the right ones are shown."""

import numpy as np
import pytest
from PIL import Image

from idode_gin.evaluation import plots as eval_plots
from idode_gin.reports import plots


@pytest.fixture
def figures(monkeypatch):
    """Figures that were saved."""
    found, save = [], plots.save_figure

    def remember(figure, path):
        found.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", remember)
    return found


def counts(axes):
    return sum(patch.get_height() for patch in axes.patches)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_best_and_the_worst_images_are_shown(channels, tmp_path, figures):
    random = np.random.default_rng(0)
    images = random.integers(0, 5, (50, 3, 4, channels))
    bpd = random.normal(3, 0.2, 50)
    bpd[[7, 11]] = 1.0, 5.0
    path = tmp_path / "bpd.png"
    eval_plots.plot_bpd_histogram(bpd, images, 5, path, name="uniform")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    histogram, *thumbnails = figures[0].axes
    assert counts(histogram) == 50
    best, worst = thumbnails[:6], thumbnails[6:]
    order = np.argsort(bpd)
    for each, index in zip(best + worst, [*order[:6], *order[::-1][:6]], strict=True):
        assert each.get_xlabel() == f"#{index}"
        assert each.get_title() == f"{bpd[index]:.3f}"
        shown = each.images[0].get_array()
        expected = np.rint(images[index] * 255 / 4)
        if channels == 2:
            expected = np.concatenate([expected[..., 0], expected[..., 1]], axis=1)[..., None]
        np.testing.assert_array_equal(np.asarray(shown).reshape(expected.shape), expected)
    assert best[0].get_xlabel() == "#7"
    assert worst[0].get_xlabel() == "#11"


def test_images_of_a_part_have_their_places_in_the_whole_split(tmp_path, figures):
    images, places = np.zeros((3, 2, 2, 1), np.uint8), np.array([5, 50, 500])
    first, second = np.array([2.0, 1.0, 3.0]), np.array([2.5, 0.0, 3.0])
    given = {"images": images, "levels": 2, "places": places}
    eval_plots.plot_bpd_histogram(first, path=tmp_path / "bpd.png", name="tn", **given)
    eval_plots.plot_differences([("a", first, second)], tmp_path / "compare.png", **given)
    single, compared = (
        [each.get_xlabel().split("\n")[0] for each in figure.axes if each.images]
        for figure in figures
    )
    assert single == ["#50", "#5", "#500", "#500", "#5", "#50"]
    assert compared == ["#50", "#5"]


def test_one_image(tmp_path, figures):
    images = np.zeros((1, 2, 2, 1), np.uint8)
    eval_plots.plot_bpd_histogram(np.ones(1), images, 2, tmp_path / "bpd.png", name="tn")
    assert counts(figures[0].axes[0]) == 1


@pytest.mark.parametrize("most", [16, 900])
def test_every_count_of_evaluations_is_in_a_bin(most, tmp_path, figures):
    nfe = {"tn": np.array([14.0, 15.5, most]), "bound": np.array([16.0])}
    eval_plots.plot_nfe_histogram(nfe, tmp_path / "nfe.png")
    (axes,) = figures[0].axes
    drawn = {each.get_label(): each.get_xy() for each in axes.patches}
    assert f"tn: mean {nfe['tn'].mean():.1f}, most {most}" in drawn
    for label, points in drawn.items():
        heights = points[1:-1:2, 1]
        assert heights.sum() == len(nfe[label.partition(":")[0]])
