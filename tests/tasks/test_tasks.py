"""The two datasets that need no download: what they hold, and that their splits share nothing."""

import functools
import hashlib
import importlib
import pathlib

import numpy as np
import pytest
from sklearn import datasets

from idode_gin.feed import data, loading

LEVELS = {"digits": 17, "photo_patches": 256}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def tasks():
    return importlib.import_module("tasks")


@pytest.fixture(scope="module")
def photo_patches(tasks):
    return importlib.import_module("tasks.photo_patches")


def load(name, split):
    return loading.load_split(
        data.DatasetConfig(mixture_or_task_name=name, split=split, batch_size=1)
    )


def files(tasks) -> set[str]:
    return {path.stem for path in pathlib.Path(tasks.__file__).parent.glob("[!_]*.py")}


def tasks_of(file: str) -> tuple[str, ...]:
    """A file registers one task of its own name, unless it lists others."""
    return getattr(importlib.import_module(f"tasks.{file}"), "TASKS", (file,))


def test_the_files_in_the_folder_register_what_they_list(tasks):
    import seqio

    found = {file: tasks_of(file) for file in files(tasks)}
    assert set(LEVELS) <= set(found)
    assert min(map(len, found.values())) > 0
    assert set().union(*found.values()) <= set(seqio.TaskRegistry.names())
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


def test_every_task_has_a_gin_file_and_the_metric(tasks):
    import seqio

    gin_files = pathlib.Path(tasks.__file__).parents[1] / "gin_configs" / "tasks"
    names = {name for file in files(tasks) for name in tasks_of(file)}
    assert {path.stem for path in gin_files.glob("*.gin")} == names
    for name in names:
        (metric,) = seqio.TaskRegistry.get(name).metric_objs
        assert type(metric).__name__ == "BitsPerDim"


def test_registering_twice_keeps_the_first(tasks):
    import seqio

    first = seqio.TaskRegistry.get("digits")
    importlib.reload(importlib.import_module("tasks.digits"))
    importlib.reload(tasks)
    assert seqio.TaskRegistry.get("digits") is first


@pytest.mark.parametrize("name", ["digits", "cifar10_aug", "image_folder", "imagenet32_old"])
def test_the_name_of_a_dataset_of_ours_is_taken(tasks, name):
    """The task that trains would be another one than the user has written."""
    import seqio

    def mine(split):
        return np.zeros((3, 2, 2, 1), np.uint8)

    first = seqio.TaskRegistry.get(name)
    for load_split in (mine, functools.partial(mine), functools.lru_cache(mine)):
        with pytest.raises(ValueError, match=f"'{name}' is a dataset of this project already"):
            tasks.register_images(name, {"train": 3}, load_split)
    assert seqio.TaskRegistry.get(name) is first


def test_a_split_has_as_many_images_as_it_was_registered_with(tasks):
    import seqio

    pixels = np.zeros((3, 2, 2, 1), np.uint8)
    tasks.register_images("made_short", {"train": 3, "test": 2}, lambda split: pixels)
    try:
        source = seqio.TaskRegistry.get("made_short").source
        assert source.array("train") is pixels
        with pytest.raises(ValueError, match="'test' must have 2 images, .* got 3"):
            source.array("test")
    finally:
        seqio.TaskRegistry.remove("made_short")


def test_registering_reads_no_data(tasks):
    import seqio

    def load_split(split):
        raise AssertionError("the data was opened")

    tasks.register_images("made_unread", {"train": 3}, load_split)
    try:
        assert seqio.TaskRegistry.get("made_unread").num_input_examples("train") == 3
        with pytest.raises(AssertionError, match="opened"):
            load("made_unread", "train")
    finally:
        seqio.TaskRegistry.remove("made_unread")


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("digits", (1347, 150, 300), (8, 8, 1)),
        ("photo_patches", (3220, 12, 24), (32, 32, 3)),
    ],
)
def test_sizes_and_values(name, sizes, shape):
    import seqio

    for split_name, size in zip(SPLITS, sizes, strict=True):
        split = load(name, split_name)
        assert split.images.shape == (size, *shape)
        assert split.images.dtype == np.uint8
        assert seqio.TaskRegistry.get(name).num_input_examples(split_name) == size
        data.check_images(split, LEVELS[name])
    with pytest.raises(ValueError, match="image"):  # the top level is used
        data.check_images(load(name, "train"), LEVELS[name] - 1)


def test_the_digits_splits_together_are_all_digits_once():
    whole = datasets.load_digits().images.reshape(-1, 64)
    parts = np.concatenate([load("digits", split).images for split in SPLITS]).reshape(-1, 64)
    assert len(np.unique(whole, axis=0)) == len(whole) == 1797  # no two digits are alike
    np.testing.assert_array_equal(np.unique(parts, axis=0), np.unique(whole, axis=0))
    assert len(parts) == len(whole)


def test_the_digits_splits_are_the_recorded_ones():
    # Published numbers are on these images: a change here makes them incomparable.
    digests = {split: load("digits", split).fingerprint.sha256[:16] for split in SPLITS}
    assert digests == {
        "train": "e76253afd0b724da",
        "validation": "f756afc86b45c223",
        "test": "5734522cfd47da57",
    }


def test_the_digits_splits_hold_every_digit_alike(tasks):
    digits = importlib.import_module("tasks.digits")
    labels = datasets.load_digits().target
    for split in SPLITS:
        shares = np.bincount(labels[digits.split_indices(split)], minlength=10)
        assert shares.min() > 0.05 * shares.sum()


def test_an_unknown_digits_split_is_refused(tasks):
    digits = importlib.import_module("tasks.digits")
    with pytest.raises(ValueError, match="no split 'dev', only train, validation, test"):
        digits.split_indices("dev")


def used_pixels(photo_patches, split) -> np.ndarray:
    """Which pixels of a halved photograph a split's crops hold, bool `[213, 320]`.

    Found from the crops alone: a photograph of which each pixel is its own number is cropped.
    """
    height, width = photo_patches.HALVED_SHAPE
    numbers = np.arange(height * width, dtype=np.int64).reshape(height, width, 1)
    used = np.zeros(height * width, bool)
    used[photo_patches.crops(numbers, split).reshape(-1)] = True
    return used.reshape(height, width)


def test_no_pixel_of_the_photographs_is_used_by_two_splits(photo_patches):
    used = {split: used_pixels(photo_patches, split) for split in SPLITS}
    assert sum(each.astype(int) for each in used.values()).max() == 1
    # Those maps are the whole truth, also in the original photographs: with every other original
    # pixel scrambled, a split's images are what they were.
    for photograph in datasets.load_sample_images().images:
        for split in SPLITS:
            original = np.zeros(photograph.shape[:2], bool)
            original[:426, :640] = used[split].repeat(2, axis=0).repeat(2, axis=1)
            scrambled = np.where(original[..., None], photograph, 255 - photograph)
            before, after = (
                photo_patches.crops(photo_patches.halve(each), split)
                for each in (photograph, scrambled)
            )
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_crops_do_not_overlap(photo_patches, split):
    num_pixels = len(list(photo_patches.corners(split))) * 32 * 32
    assert used_pixels(photo_patches, split).sum() == num_pixels


def test_no_8_by_8_block_of_the_jpeg_files_is_used_by_two_splits(photo_patches):
    blocks = []
    for split in SPLITS:
        columns = used_pixels(photo_patches, split).any(axis=0).repeat(2)
        blocks.append(columns.reshape(-1, 8).any(axis=1))
    assert np.sum(blocks, axis=0).max() == 1


def test_halving_is_the_rounded_mean_of_each_block(photo_patches):
    photograph = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    photograph[:2, :2] = 255  # a sum that uint8 cannot hold
    halved = photo_patches.halve(photograph)
    assert halved.shape == (3, 4, 3)
    assert halved.dtype == np.uint8
    for row in range(3):
        for column in range(4):
            block = photograph[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            mean = block.astype(float).mean(axis=(0, 1))
            np.testing.assert_array_equal(halved[row, column], np.floor(mean + 0.5))


def test_the_task_holds_the_crops_of_both_photographs(photo_patches):
    photographs = datasets.load_sample_images().images
    for split in SPLITS:
        images = load("photo_patches", split).images
        halves = np.split(images, 2)
        for photograph, part in zip(photographs, halves, strict=True):
            row, column = list(photo_patches.corners(split))[-1]
            window = photograph[2 * row : 2 * row + 64, 2 * column : 2 * column + 64]
            np.testing.assert_array_equal(part[-1], photo_patches.halve(window))


def test_other_photographs_are_refused(photo_patches):
    with pytest.raises(ValueError, match=r"must measure \(213, 320\), got \(100, 100\)"):
        photo_patches.crops(np.zeros((100, 100, 3), np.uint8), "train")


@pytest.mark.parametrize("name", LEVELS)
def test_loading_again_gives_the_same_images(name):
    first, second = load(name, "test"), load(name, "test")
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint.sha256 == hashlib.sha256(first.images.tobytes()).hexdigest()
