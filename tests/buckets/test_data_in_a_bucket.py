"""Data in a bucket is copied to this machine, and read there as from a disk."""

import contextlib
import io
import types

import fake_tfds
import numpy as np
import pytest
from PIL import Image

from idode_gin.configs import flags
from idode_gin.feed import copies, data, image_cache, loading
from idode_gin.reports import buckets, paths

SHAPE = (4, 5, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own; a call of the result is another process's first look."""
    monkeypatch.setenv("IDODE_CACHE_DIR", str(tmp_path / "cache"))
    yield copies._copied.cache_clear
    copies._copied.cache_clear()


@pytest.fixture
def copied(monkeypatch):
    """The names of the objects that are copied."""
    names, download = [], buckets.BucketPath.download

    def noted(path, targets):
        names.extend(targets)
        download(path, targets)

    monkeypatch.setattr(buckets.BucketPath, "download", noted)
    return names


def images_of(task, path, split="train"):
    config = data.DatasetConfig(
        mixture_or_task_name=task, split=split, batch_size=1, data_path=path and str(path)
    )
    loading.check_there(config, 0)
    return loading.load_split(config).images


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def test_a_folder_that_changes(bucket, cache, copied):
    images = fake_tfds.random_images(5, SHAPE, 1)
    for index in range(4):
        (bucket / "train" / f"ä {index}.png").write_bytes(png(images[index]))
    np.testing.assert_array_equal(images_of("image_folder", bucket), images[:4])
    assert sorted(copied) == [f"train/ä {index}.png" for index in range(4)]
    cache()
    np.testing.assert_array_equal(images_of("image_folder", bucket), images[:4])
    assert len(copied) == 4
    cache()
    (bucket / "train" / "ä 1.png").write_bytes(png(images[4]))
    (bucket / "train" / "ä 2.png").unlink()
    expected = images[[0, 4, 3]]
    np.testing.assert_array_equal(images_of("image_folder", bucket), expected)
    assert copied[4:] == ["train/ä 1.png"]


def test_a_copy_that_was_interrupted_or_lost_a_file(bucket, cache, copied, monkeypatch):
    monkeypatch.setattr(copies, "_TOGETHER", 2)
    images = fake_tfds.random_images(5, SHAPE, 2)
    for index, image in enumerate(images):
        (bucket / "train" / f"{index}.png").write_bytes(png(image))
    with monkeypatch.context() as patch:
        download = buckets.BucketPath.download

        def failing(path, targets):
            if "train/4.png" in targets:
                raise paths.StoreError("no route.")
            download(path, targets)

        patch.setattr(buckets.BucketPath, "download", failing)
        with pytest.raises(paths.StoreError, match="no route"):
            images_of("image_folder", bucket)
    assert len(copied) == 4
    local = copies.local(bucket, "DATA_PATH")
    (local / "train" / "0.png").write_bytes(b"")
    cache()
    np.testing.assert_array_equal(images_of("image_folder", bucket), images)
    assert copied[4:] == ["train/4.png", "train/0.png"]


def test_who_waited_for_the_copy_of_another_does_not_list_again(bucket, cache, monkeypatch):
    (bucket / "train" / "0.png").write_bytes(png(fake_tfds.random_images(1, SHAPE)[0]))
    copies.local(bucket, "DATA_PATH")
    cache()
    (bucket / "train" / "1.png").write_bytes(png(fake_tfds.random_images(1, SHAPE)[0]))
    listed, objects, only_one = [], buckets.BucketPath.objects, image_cache.only_one

    def noted(path):
        listed.append(path)
        return objects(path)

    @contextlib.contextmanager
    def after_another(*lock):
        with monkeypatch.context() as patch:
            patch.setattr(image_cache, "only_one", only_one)
            copies._copied.__wrapped__(str(bucket), "DATA_PATH")
        with only_one(*lock):
            yield

    monkeypatch.setattr(buckets.BucketPath, "objects", noted)
    monkeypatch.setattr(image_cache, "only_one", after_another)
    folder = copies.local(bucket, "DATA_PATH")
    assert len(listed) == 1
    assert {each.name for each in (folder / "train").iterdir()} == {"0.png", "1.png"}
    monkeypatch.setattr(image_cache, "only_one", only_one)
    cache()
    copies.local(bucket, "DATA_PATH")
    assert len(listed) == 2


def test_one_file(bucket, copied):
    path = bucket / "own.npz"
    images = fake_tfds.random_images(3, SHAPE, 3)
    content = io.BytesIO()
    np.savez(content, train=images)
    path.write_bytes(content.getvalue())
    np.testing.assert_array_equal(images_of("image_npz", path), images)
    assert copied == ["."]


def test_a_dataset_of_tfds(bucket, tmp_path, copied):
    images = fake_tfds.random_images(6, (32, 32, 3), 4)
    folder = fake_tfds.write(tmp_path / "tfds", "cifar10:3.0.2", {"test": images})
    for each in folder.iterdir():
        (bucket / "cifar10" / "3.0.2" / each.name).write_bytes(each.read_bytes())
    (bucket / "another" / "1.0.0" / "dataset_info.json").write_bytes(b"{}")
    address = flags.parse([f"--tfds_data_dir={bucket}"])["tfds_data_dir"].value
    loading.set_data_dirs(tfds_data_dir=address)
    try:
        found = copies.local(f"{address}/cifar10/3.0.2", "The TFDS data folder")
        assert {each.name for each in found.iterdir()} == {each.name for each in folder.iterdir()}
        config = data.DatasetConfig(mixture_or_task_name="cifar10", split="test", batch_size=1)
        with pytest.raises(ValueError, match="must hold 10,000 images, got 6"):
            loading.load_split(config)
    finally:
        loading.set_data_dirs(tfds_data_dir=str(tmp_path / "none"))
    assert set(copied) == {each.name for each in folder.iterdir()}


def test_classes_that_are_renamed(bucket, cache):
    for name in ("cat", "dog"):
        (bucket / "train" / name / "0.png").write_bytes(png(fake_tfds.random_images(1, SHAPE)[0]))
    folder = copies.local(bucket, "DATA_PATH")
    (folder / "train" / "dog" / "left.png").write_bytes(b"of a copy that was killed")
    (bucket / "train" / "zebra" / "0.png").write_bytes((bucket / "train/cat/0.png").read_bytes())
    (bucket / "train" / "cat" / "0.png").unlink()
    cache()
    copies.local(bucket, "DATA_PATH")
    found = sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*"))
    images = ["train/dog/0.png", "train/zebra/0.png"]
    assert found == sorted(["train", "train/dog", "train/zebra", *images])


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//b", "./a"])
def test_names_that_are_no_paths_are_refused(bucket, name, monkeypatch):
    listing = {f"{bucket}"[5:] + f"/{name}": {"size": 1, "generation": "1", "ETag": "1"}}
    store = types.SimpleNamespace(find=lambda *_, **__: listing)
    monkeypatch.setattr(buckets, "filesystem", lambda _: store)
    with pytest.raises(ValueError, match="has no place in a folder"):
        copies.local(bucket, "DATA_PATH")


def test_what_cannot_be_copied(bucket, monkeypatch):
    missing = paths.of(f"{str(bucket)[:5]}missing/pictures")
    for path in (bucket, missing):
        with pytest.raises(ValueError, match=f"DATA_PATH: there is nothing at {path}. Check the"):
            images_of("image_folder", path)
    (bucket / "train" / "0.png").write_bytes(b"...")

    def full(*_):
        raise OSError("it needs 3.00 GB, and 1.00 GB are free")

    with monkeypatch.context() as patch:
        patch.setattr(buckets.BucketPath, "download", _gone)
        with pytest.raises(ValueError, match=r"changed while it was copied .*Run the same command"):
            images_of("image_folder", bucket)
    monkeypatch.setattr(image_cache, "check_space", full)
    with pytest.raises(
        ValueError, match=r"cannot be copied to .* needs 3\.00 GB.* IDODE_CACHE_DIR"
    ):
        images_of("image_folder", bucket)


def _gone(_, targets):
    raise FileNotFoundError(next(iter(targets)))
