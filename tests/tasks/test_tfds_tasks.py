"""Tasks over files of TensorFlow Datasets: the right images, or the reason why not."""

import os
import pathlib
import shutil
import sys

import fake_tfds
import numpy as np
import pytest

from idode_gin.feed import data, loading

SIZES = {"train": 23, "validation": 5}


@pytest.fixture(scope="module")
def published():
    from tasks.formats import published

    return published


@pytest.fixture(scope="module")
def tfds_images():
    from tasks.support import tfds_images

    return tfds_images


@pytest.fixture(scope="module")
def images():
    return {
        split: fake_tfds.random_images(size, (32, 32, 3), seed)
        for seed, (split, size) in enumerate(SIZES.items())
    }


@pytest.fixture(scope="module")
def root(images, published, tmp_path_factory):
    """A data directory with both ImageNet-32s; the old one does not say its images' size."""
    root = tmp_path_factory.mktemp("tfds")
    new = {split: 255 - each for split, each in images.items()}
    fake_tfds.write(root, published.IMAGENET32_NEW.tfds_name, new)
    fake_tfds.write(root, published.IMAGENET32_OLD.tfds_name, images, static=False)
    return root


@pytest.fixture
def source(images, published, tfds_images, root):
    """Of the old ImageNet-32, known to be small."""
    with fake_tfds.data_dir(root):
        yield tfds_images.TfdsImages(fake_tfds.with_counts(published.IMAGENET32_OLD, images))


@pytest.fixture
def copied(root, tmp_path):
    """A data directory that a test may damage."""
    shutil.copytree(root, tmp_path / "data")
    with fake_tfds.data_dir(tmp_path / "data"):
        yield tmp_path / "data" / "downsampled_imagenet" / "32x32" / "2.0.0"


@pytest.mark.parametrize("split", SIZES)
def test_a_task_yields_every_image_once_in_an_order_of_its_own(source, images, split):
    import seqio

    with fake_tfds.task("made_old", source) as name:
        task = seqio.get_mixture_or_task(name)
        first, second = (task.get_dataset(split=split, shuffle=False) for _ in range(2))
        assert set(first.element_spec) == {"image"}
        assert first.element_spec["image"].shape == (32, 32, 3)
        assert task.num_input_examples(split) == SIZES[split]
        found = fake_tfds.images_of(first)
    np.testing.assert_array_equal(found, fake_tfds.images_of(second))
    np.testing.assert_array_equal(
        fake_tfds.sorted_images(found), fake_tfds.sorted_images(images[split])
    )


def test_seqio_gets_whole_batches_of_them_through_the_converter(source, images):
    import seqio

    from tasks.support.feature_converter import ImageFeatureConverter

    with fake_tfds.task("made_old", source) as name:
        dataset = seqio.get_dataset(
            name, {}, ImageFeatureConverter(), dataset_split="validation", batch_size=5
        )
        (batch,) = dataset.as_numpy_iterator()
    np.testing.assert_array_equal(batch["conditioning"], np.zeros((5, 1), np.float32))
    np.testing.assert_array_equal(
        fake_tfds.sorted_images(batch["image"]), fake_tfds.sorted_images(images["validation"])
    )


def test_shards_share_the_images_out(source, images):
    import seqio

    with fake_tfds.task("made_old", source) as name:
        task = seqio.get_mixture_or_task(name)
        parts = [
            fake_tfds.images_of(
                task.get_dataset(
                    split="train",
                    shuffle=False,
                    shard_info=seqio.ShardInfo(index=index, num_shards=3),
                )
            )
            for index in range(3)
        ]
    np.testing.assert_array_equal(
        fake_tfds.sorted_images(np.concatenate(parts)), fake_tfds.sorted_images(images["train"])
    )


def test_files_are_read_one_after_the_other(published, tfds_images, tmp_path):
    import seqio

    # More per file than TFDS would read from one before it goes to the next.
    train = fake_tfds.random_images(90, (32, 32, 3))
    described = fake_tfds.with_counts(published.IMAGENET32_OLD, {"train": train})
    fake_tfds.write(tmp_path, described.tfds_name, {"train": train}, num_shards=3)
    with fake_tfds.data_dir(tmp_path):
        source = tfds_images.TfdsImages(described)
        assert len(source.list_shards("train")) == 3
        whole = fake_tfds.images_of(source.get_dataset("train", shuffle=False))
        parts = [
            fake_tfds.images_of(
                source.get_dataset(
                    "train", shuffle=False, shard_info=seqio.ShardInfo(index=index, num_shards=3)
                )
            )
            for index in range(3)
        ]
        found = source.labels("train", 10)
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    by_image = {image.tobytes(): place % 10 for place, image in enumerate(train)}
    np.testing.assert_array_equal(found, [by_image[image.tobytes()] for image in whole])


def test_a_dataset_prepared_from_a_part_is_not_held_to_what_is_known(
    copied, published, tfds_images
):
    wrong = fake_tfds.with_counts(published.IMAGENET32_OLD, {"train": range(24)})
    source = tfds_images.TfdsImages(wrong)
    assert source.known("train").num_images == 24
    (copied / "metadata.json").write_text('{"partial": true}')
    assert source.known("train") is None
    assert source.variant == "van den Oord et al. (old), PARTIAL"
    assert len(fake_tfds.images_of(source.get_dataset("train"))) == SIZES["train"]


def test_the_feed_loads_them(source, images):
    with fake_tfds.task("made_old", source) as name:
        config = data.DatasetConfig(mixture_or_task_name=name, split="validation", batch_size=2)
        split = loading.load_split(config)
    np.testing.assert_array_equal(
        fake_tfds.sorted_images(split.images), fake_tfds.sorted_images(images["validation"])
    )


def test_labels_are_in_the_order_of_the_images(source, images):
    by_image = {image.tobytes(): place % 10 for place, image in enumerate(images["train"])}
    chunks = source.get_dataset("train", shuffle=False).as_numpy_iterator()
    expected = [by_image[chunk["image"].tobytes()] for chunk in chunks]
    np.testing.assert_array_equal(source.labels("train", 10), expected)
    with pytest.raises(ValueError, match="has 10 classes.* of 7. Set NUM_CLASSES = 10"):
        source.labels("train", 7)


def test_the_folder_given_last_is_read(source, images, published, tmp_path):
    # seqio's own source remembers the first, for as long as the process lives.
    source.get_dataset("validation")
    fake_tfds.write(tmp_path, published.IMAGENET32_OLD.tfds_name, {"validation": images["train"]})
    with fake_tfds.data_dir(tmp_path):
        assert source.num_input_examples("validation") == SIZES["train"]


@pytest.mark.parametrize(
    ("name", "tfds_folder", "known", "shape"),
    [
        ("cifar10", "cifar10/3.0.2", {"train": 50_000, "test": 10_000}, (32, 32, 3)),
        ("cifar10_aug", "cifar10/3.0.2", {"train": 50_000, "test": 10_000}, (32, 32, 3)),
        (
            "cifar10_aug_with_channel",
            "cifar10/3.0.2",
            {"train": 50_000, "test": 10_000},
            (32, 32, 3),
        ),
        *(
            (
                f"imagenet{size}_{age}",
                f"downsampled_imagenet{suffix}/{size}x{size}/2.0.0",
                {"train": train, "validation": validation},
                (size, size, 3),
            )
            for size in (32, 64)
            for age, suffix, train, validation in (
                ("old", "", 1_281_149, 49_999),
                ("new", "_new", 1_281_167, 50_000),
            )
        ),
    ],
)
def test_each_task_knows_its_dataset_and_says_how_to_get_it(
    name, tfds_folder, known, shape, tmp_path
):
    import seqio

    __import__("tasks")
    task = seqio.TaskRegistry.get(name)
    assert set(task.splits) == set(known)
    for split, num_images in known.items():
        facts = task.source.known(split)
        assert (facts.num_images, facts.image_shape) == (num_images, shape)
    assert task.source.known("no such split") is None
    assert task.source.variant
    folder = tmp_path / tfds_folder
    config = data.DatasetConfig(mixture_or_task_name=name, split="train", batch_size=1)
    with fake_tfds.data_dir(tmp_path), pytest.raises(ValueError, match="not found") as caught:
        loading.load_split(config)
    message = str(caught.value)
    dataset = "cifar10" if name.startswith("cifar10") else name
    assert f"no {folder}/dataset_info.json" in message
    assert f"python -m tasks.prepare {dataset} --source " in message
    assert message.count(f"--tfds_data_dir {tmp_path}") == 2
    assert "http" in message


def test_the_mean_of_cifar10_is_the_known_one_in_levels():
    from tasks.formats.published import CIFAR10

    known = CIFAR10.known("train")
    np.testing.assert_allclose(
        np.array(known.channel_mean) / 255, (0.4914, 0.4822, 0.4465), atol=5e-5
    )
    assert 0 < known.channel_mean_tolerance < 0.01


def test_the_lookalikes_of_a_split_are_named_by_their_sizes(published):
    new = published.IMAGENET32_NEW
    assert new.known("validation").lookalikes == {49_999: str(published.IMAGENET32_OLD)}
    with pytest.raises(ValueError, match=r"49,999 images are those of imagenet32_old \(van den"):
        new.known("validation").check_num_images("it", 49_999)
    assert set(new.known("train").lookalikes) == {1_281_149, 50_000}
    assert published.IMAGENET64_NEW.known("test") is None


def test_a_wrong_number_of_images_stops(root, published, tfds_images):
    wrong = fake_tfds.with_counts(published.IMAGENET32_OLD, {"train": range(24)})
    with (
        fake_tfds.data_dir(root),
        pytest.raises(ValueError, match=r"must hold 24 images, got 23\. Prepare it again"),
    ):
        tfds_images.TfdsImages(wrong).get_dataset("train")


def test_the_old_variant_in_the_place_of_the_new_is_named(
    root, published, tfds_images, images, monkeypatch
):
    old = fake_tfds.with_counts(published.IMAGENET32_OLD, images)
    monkeypatch.setattr(published, "VARIANTS", (old,))
    new = fake_tfds.with_counts(published.IMAGENET32_NEW, {"train": range(24)})
    with (
        fake_tfds.data_dir(root),
        pytest.raises(ValueError, match=r"are those of imagenet32_old \(van den Oord"),
    ):
        tfds_images.TfdsImages(new).get_dataset("train")


def test_images_of_another_shape_are_refused(source, published, tfds_images, images, root):
    import dataclasses

    described = fake_tfds.with_counts(published.IMAGENET32_NEW, images)
    other = tfds_images.TfdsImages(dataclasses.replace(described, image_shape=(16, 16, 3)))
    with pytest.raises(ValueError, match=r"must be uint8 \[16, 16, 3\], got uint8 \(32, 32, 3\)"):
        other.get_dataset("train")


def test_a_dataset_without_the_split_is_refused(source, published, tfds_images, root):
    import dataclasses

    described = dataclasses.replace(published.IMAGENET32_OLD, sizes={"test": 3})
    with pytest.raises(ValueError, match="no split 'test'; its splits: train, validation"):
        tfds_images.TfdsImages(described).get_dataset("test")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_an_unfinished_dataset_is_refused(copied, source, name):
    (copied / name).unlink()
    with fake_tfds.data_dir(copied.parents[2]), pytest.raises(ValueError, match="not complete"):
        source.get_dataset("train")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_named(copied, source, name):
    (copied / name).write_text("{")
    with (
        fake_tfds.data_dir(copied.parents[2]),
        pytest.raises(ValueError, match=f"{copied} cannot be opened"),
    ):
        source.get_dataset("train")


def test_a_missing_file_is_named(copied, source):
    (shard,) = copied.glob("*train*tfrecord*")
    shard.unlink()
    with fake_tfds.data_dir(copied.parents[2]):
        source.get_dataset("validation")
        with pytest.raises(ValueError, match=f"lacks 1 of the 1 files .*{shard.name}"):
            source.get_dataset("train")


def test_the_cache_key_follows_what_is_on_disk(copied, source):
    with fake_tfds.data_dir(copied.parents[2]):
        key = source.cache_key("train")
        assert len(key) == 32
        assert int(key, 16) >= 0
        assert source.cache_key("train") == key
        assert source.cache_key("validation") != key
        (shard,) = copied.glob("*train*tfrecord*")
        whole, status = shard.read_bytes(), shard.stat()
        shard.write_bytes(whole + b"x")
        assert source.cache_key("train") != key
        shard.write_bytes(b"x" + whole[1:])  # of the same size
        assert source.cache_key("train") != key
        shard.write_bytes(whole)
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert source.cache_key("train") == key
        info = copied / "dataset_info.json"
        info.write_text(info.read_text() + " ")
        assert source.cache_key("train") != key


@pytest.fixture
def recorded(copied, source):
    """The damageable dataset with the record that `tasks.prepare` leaves; the record's path."""
    from tasks.prepare import writer

    writer.record(copied, partial=False)
    with fake_tfds.data_dir(copied.parents[2]):
        yield copied / "fingerprint.json"


@pytest.mark.parametrize("cache_dir", ["", None])
def test_files_that_changed_since_they_were_prepared_stop(
    cache_dir, recorded, source, images, tmp_path
):
    cache_dir = str(tmp_path / "cache") if cache_dir is None else ""
    with fake_tfds.task("made_old", source) as name:

        def load():
            config = data.DatasetConfig(
                mixture_or_task_name=name, split="train", batch_size=1, cache_dir=cache_dir
            )
            return loading.load_split(config)

        expected = load().fingerprint
        (shard,) = recorded.parent.glob("*-train.tfrecord-*")
        other = {**images, "train": images["train"].copy()}
        other["train"][-1, 0, 0, 0] ^= 1  # as small as a change can be
        made = fake_tfds.write(tmp_path / "other", "downsampled_imagenet/32x32:2.0.0", other)
        shutil.copyfile(made / shard.name, shard)
        with pytest.raises(ValueError, match="'train' of .* changed on disk since .* sha256") as no:
            load()
        assert f"{recorded} records sha256 {expected.sha256}" in str(no.value)
        assert "Prepare it again: python -m tasks.prepare imagenet32_old --over" in str(no.value)
        recorded.unlink()  # as with datasets that others have made
        assert load().fingerprint != expected


def test_the_record_is_compared_with_what_augmentation_has_not_touched(
    recorded, images, published, tfds_images
):
    from idode_gin.feed.augmentation import Augmentation

    content = recorded.read_text()
    small = fake_tfds.with_counts(published.IMAGENET32_OLD, images)
    with fake_tfds.task("made_aug", tfds_images.TfdsImages(small, Augmentation())) as name:
        config = data.DatasetConfig(mixture_or_task_name=name, split="train", batch_size=1)
        assert loading.load_split(config).num_images == SIZES["train"]
        renamed = content.replace("train", "trial")
        for damaged in (content[:-9], "[]", '{"train": {}}', '{"train": []}', renamed):
            recorded.write_text(damaged)
            with pytest.raises(ValueError, match=r"fingerprint\.json cannot be read as .* 'train'"):
                loading.load_split(config)
        recorded.write_text(content.replace('"num_images": 23', '"num_images": 22'))
        with pytest.raises(ValueError, match="records num_images 22, the files decode to 23"):
            loading.load_split(config)


def test_the_record_costs_no_second_look_at_the_pixels(recorded, source, monkeypatch, tmp_path):
    from idode_gin.feed import image_fingerprints

    taken = []
    add = image_fingerprints.Fingerprinter.add
    monkeypatch.setattr(
        image_fingerprints.Fingerprinter,
        "add",
        lambda self, images: (taken.append(len(images)), add(self, images))[1],
    )
    with fake_tfds.task("made_old", source) as name:
        for cache_dir, looks in ((str(tmp_path), 1), (str(tmp_path), 0), ("", 1)):
            config = data.DatasetConfig(
                mixture_or_task_name=name, split="train", batch_size=1, cache_dir=cache_dir
            )
            assert loading.load_split(config).facts()["num_images"] == SIZES["train"]
            assert sum(taken) == looks * SIZES["train"]
            taken.clear()


def test_a_description_that_would_import_a_module_is_refused(copied, source):
    path = copied / "features.json"
    path.write_text(path.read_text().replace("tensorflow_datasets.core", "evil_module.core", 1))
    with (
        fake_tfds.data_dir(copied.parents[2]),
        pytest.raises(ValueError, match=r"names 'evil_module\.core.*no feature of TFDS's own"),
    ):
        source.get_dataset("train")
    assert "evil_module" not in sys.modules


def test_the_same_dataset_elsewhere_has_the_same_cache_key(copied, source, root):
    keys = []
    for each in (root, copied.parents[2]):
        with fake_tfds.data_dir(each):
            keys.append(source.cache_key("train"))
    assert keys[0] == keys[1]


def test_registering_again_keeps_the_first_and_touches_no_disk(monkeypatch):
    import importlib

    import seqio

    tasks = importlib.import_module("tasks.cifar10")
    first = {name: seqio.TaskRegistry.get(name) for name in tasks.TASKS}
    monkeypatch.setattr(pathlib.Path, "is_file", None)
    importlib.reload(tasks)
    assert {name: seqio.TaskRegistry.get(name) for name in tasks.TASKS} == first
