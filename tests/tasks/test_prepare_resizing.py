"""Reducing a folder of images to one size: exact means of areas, recorded, never enlarged."""

import json
import tracemalloc

import archives
import numpy as np
import pytest
from PIL import Image
from test_prepare import prepare, read

from idode_gin.feed import data, loading
from tasks.formats import image_files
from tasks.prepare import datasets, image_folder, resizing
from tasks.prepare.refusals import SourceError


def mean_of_areas(image, size):
    """Return the exact mean of the area of each pixel of the result, float `[size, size, C]`."""
    side = len(image)
    edges = np.arange(size + 1) * side / size
    starts, ends = np.arange(side), np.arange(side) + 1
    overlaps = np.minimum(ends, edges[1:, None]) - np.maximum(starts, edges[:-1, None])
    weights = overlaps.clip(0) * size / side
    return np.einsum("yi,xj,ijc->yxc", weights, weights, image.astype(float))


@pytest.mark.parametrize(
    ("side", "size"), [(32, 16), (30, 10), (29, 28), (47, 16), (8, 1), (299, 7)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_is_the_mean_of_its_area(side, size, channels):
    image = np.random.default_rng(0).integers(0, 256, (side, side, channels)).astype(np.uint8)
    found = resizing.reduce(image, size, "image")
    assert (found.shape, found.dtype) == ((size, size, channels), np.uint8)
    assert np.abs(found - mean_of_areas(image, size)).max() <= 0.5 + 1e-9
    constant = np.full_like(image, 201)
    np.testing.assert_array_equal(resizing.reduce(constant, size, "image"), constant[:size, :size])


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((8, 14), (0, 8), (3, 11)), ((13, 8), (2, 10), (0, 8)), ((8, 8), (0, 8), (0, 8))],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_square_in_the_middle_is_kept_as_it_is(shape, rows, columns, channels):
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
    middle = image[slice(*rows), slice(*columns)]
    np.testing.assert_array_equal(resizing.reduce(image, 8, "image"), middle)
    if channels < 4:
        halved = resizing.reduce(image, 4, "image")
        sums = middle.reshape(4, 2, 4, 2, channels).sum(axis=(1, 3), dtype=int)
        np.testing.assert_array_equal(halved, (sums + 2) // 4)  # halves are rounded up


def test_transparent_pixels_have_no_colour():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = (200, 100, 50, 255)
    image[1] = (9, 9, 9, 0)
    red, green, blue, alpha = resizing.reduce(image, 1, "image")[0, 0].tolist()
    assert (red, green, blue, alpha) == (200, 100, 50, 64)
    clear = np.zeros((6, 6, 4), np.uint8)
    np.testing.assert_array_equal(
        resizing.reduce(clear + np.array([7, 7, 7, 0], np.uint8), 4, "image"), clear[:4, :4]
    )


@pytest.mark.parametrize(("side", "size"), [(29, 28), (299, 7)])
def test_colours_are_weighted_by_their_opacity(side, size):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 4)).astype(np.uint8)
    found = resizing.reduce(image, size, "image")
    opacity = image[..., 3:].astype(float)
    weights = mean_of_areas(opacity, size)
    expected = np.concatenate([mean_of_areas(image[..., :3] * opacity, size) / weights, weights], 2)
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_a_photograph_of_24_megapixels_is_reduced(tmp_path):
    (tmp_path / "train").mkdir()
    half = np.zeros((4000, 6000), np.uint8)
    half[:, :3000] = 200
    Image.fromarray(half).save(tmp_path / "train" / "a.png", compress_level=1)
    source = image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False, size=2)
    (record,) = source.splits["train"]()
    np.testing.assert_array_equal(record.image[..., 0], [[200, 0], [200, 0]])


def test_sums_over_the_largest_image_are_exact():
    """Twice a sum of colours times opacities, and the sum of opacities."""
    assert image_files.MAX_PIXELS * 255 * (2 * 255 + 1) < 2**53


def test_a_large_image_is_not_copied_as_floating_point_numbers():
    image = np.zeros((2000, 2000, 4), np.uint8)
    tracemalloc.start()
    resizing.reduce(image, 8, "image")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image[..., 0].astype(float).nbytes


def test_nothing_is_enlarged():
    with pytest.raises(
        SourceError, match=r"a.png is 31x40: --size 32 would .* at most 31, or move"
    ):
        resizing.reduce(np.zeros((31, 40, 1), np.uint8), 32, "a.png")


@pytest.fixture
def photos(tmp_path):
    """A folder of photographs of several sizes."""
    images = {}
    for split, sizes in {"train": ((40, 60), (64, 64), (33, 90)), "test": ((50, 32),)}.items():
        (tmp_path / "mine" / split).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes):
            image = archives.photos(1, 96, number)[0, :height, :width]
            Image.fromarray(image).save(tmp_path / "mine" / split / f"{number}.png")
            images.setdefault(split, []).append(resizing.reduce(image, 32, "image"))
    return {split: np.stack(each) for split, each in images.items()}


def load(path, split):
    config = data.DatasetConfig(
        mixture_or_task_name="image_folder", split=split, batch_size=1, data_path=str(path)
    )
    return loading.load_split(config)


def test_a_folder_of_any_sizes_becomes_one_size_and_says_so(photos, tmp_path, capsys):
    mine, target = tmp_path / "mine", tmp_path / "data"
    prepare("image_folder", [mine], target, code=2)
    assert "must hold readable 8-bit images of one shape" in capsys.readouterr().err
    folder = prepare("image_folder", [mine], target, "--size", "32")
    assert (
        f'--gin.DATA_PATH="\'{folder}\'" --gin.IMAGE_SHAPE="(32, 32, 3)"' in capsys.readouterr().out
    )
    said = "square in the middle reduced to 32x32 by area means"
    recorded = json.loads((folder / "fingerprint.json").read_text())
    assert recorded.pop("resizing") == said
    assert set(recorded) == set(photos)
    for split, expected in photos.items():
        np.testing.assert_array_equal(read(folder, split), expected)
        loaded = load(folder, split)
        np.testing.assert_array_equal(loaded.images, expected)
        assert loaded.facts()["variant"] == f"your own images, {said}"
        assert loaded.facts()["sha256"] == recorded[split]["sha256"]


def test_images_that_were_not_resized_say_nothing(photos, tmp_path):
    for path in (tmp_path / "mine" / "train").glob("[12].png"):
        path.unlink()
    (tmp_path / "mine" / "test" / "0.png").unlink()
    folder = prepare("image_folder", [tmp_path / "mine"], tmp_path / "data")
    assert set(json.loads((folder / "fingerprint.json").read_text())) == {"train"}
    for path in (folder, tmp_path / "mine"):
        assert load(path, "train").facts()["variant"] == "your own images"


@pytest.mark.parametrize(
    ("dataset", "size", "message"),
    [
        ("image_folder", "34", "2 files are refused"),
        ("image_folder", "0", "--size must be a number of pixels, for image_folder alone, got 0"),
        ("image_folder", "-2", "got -2 for image_folder"),
        ("cifar10", "16", "got 16 for cifar10: the images of published datasets are left"),
    ],
)
def test_sizes_that_are_refused(dataset, size, message, photos, tmp_path, capsys):
    prepare(dataset, [tmp_path / "mine"], tmp_path / "data", "--size", size, code=2)
    error = capsys.readouterr().err
    assert message in error
    if size == "34":
        assert "test/0.png is 50x32: --size 34 would enlarge it" in error
        assert "train/2.png is 33x90: --size 34 would enlarge it" in error
    assert not list(tmp_path.glob("data/*"))
