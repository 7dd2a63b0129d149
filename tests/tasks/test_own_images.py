"""A user's own images: read as they are, or refused with the file's name."""

import io
import struct
import zlib

import archives
import fake_tfds
import numpy as np
import pytest
from PIL import Image

from idode_gin.feed import data, loading

SHAPES = {1: (6, 5, 1), 3: (6, 5, 3), 4: (6, 5, 4)}


@pytest.fixture(scope="module")
def image_files():
    from tasks.formats import image_files

    return image_files


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()


def write_folder(folder, images):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        (folder / f"{index:03}.png").write_bytes(png(image))


@pytest.fixture
def folder(tmp_path):
    """Three splits of RGB images."""
    for seed, split in enumerate(("train", "validation", "test")):
        write_folder(tmp_path / "own" / split, fake_tfds.random_images(4 + seed, SHAPES[3], seed))
    return tmp_path / "own"


def load(task, path, split="train"):
    config = data.DatasetConfig(
        mixture_or_task_name=task, split=split, batch_size=1, data_path=path and str(path)
    )
    return loading.load_split(config).images


@pytest.mark.parametrize("channels", SHAPES)
@pytest.mark.parametrize("task", ["image_folder", "image_npz"])
def test_images_are_read_as_they_are_in_the_order_of_their_names(task, channels, tmp_path):
    splits = {
        split: fake_tfds.random_images(3 + seed, SHAPES[channels], seed)
        for seed, split in enumerate(("train", "validation", "test"))
    }
    if task == "image_npz":
        path = tmp_path / "own.npz"
        np.savez_compressed(path, **splits)
    else:
        path = tmp_path
        for split, images in splits.items():
            write_folder(path / split, images)
        (path / "train" / ".hidden").write_text("no image")
    for split, images in splits.items():
        np.testing.assert_array_equal(load(task, path, split), images)


def test_folders_in_a_split_are_walked(folder):
    images = fake_tfds.random_images(2, SHAPES[3], 9)
    write_folder(folder / "train" / "aaa", images[:1])
    write_folder(folder / "train" / "zzz", images[1:])
    found = load("image_folder", folder)
    assert len(found) == 6
    np.testing.assert_array_equal(found[-2:], images)  # "aaa" is sorted after "003.png"


def labels(path, count, split="train", task="image_folder"):
    config = data.DatasetConfig(
        mixture_or_task_name=task, split=split, batch_size=1, data_path=str(path)
    )
    return loading.load_labels(config, count)


@pytest.fixture
def labelled(tmp_path):
    """Folders of classes: cat and dog in one split, ant and dog in the other."""
    images = fake_tfds.random_images(7, SHAPES[3])
    for place, (split, name) in enumerate(
        [("train", "cat"), ("train", "dog"), ("train", "dog/old"), ("test", "ant"), ("test", "dog")]
    ):
        write_folder(tmp_path / "classes" / split / name, images[place : place + 2])
    (tmp_path / "classes" / "train" / ".hidden").mkdir()
    return tmp_path / "classes"


def test_folders_of_a_split_are_classes(labelled):
    np.testing.assert_array_equal(labels(labelled, 3), [1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(labels(labelled, 3, "test"), [0, 0, 2, 2])
    assert len(load("image_folder", labelled)) == 6
    config = data.DatasetConfig(
        mixture_or_task_name="image_folder", split="train", batch_size=1, data_path=str(labelled)
    )
    assert loading.class_names(config) == ("ant", "cat", "dog")
    with pytest.raises(
        ValueError, match=r"3 folders of classes, ant, cat, dog, .* NUM_CLASSES = 3"
    ):
        labels(labelled, 10)


def test_the_folder_that_a_macs_archive_leaves_is_no_class(labelled):
    (labelled / "train" / "__MACOSX" / "cat").mkdir(parents=True)
    (labelled / "train" / "__MACOSX" / "cat" / "._a.png").write_bytes(b"no image")
    np.testing.assert_array_equal(labels(labelled, 3), [1, 1, 2, 2, 2, 2])


def test_names_that_look_alike_are_not_two_classes(labelled):
    """Files copied from a Mac may have names whose accents are characters of their own."""
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        write_folder(labelled / split / name, fake_tfds.random_images(1, SHAPES[3]))
    with pytest.raises(ValueError, match=r"'cafe\\u0301' and 'caf\\xe9' look alike .* Rename"):
        labels(labelled, 5)


def test_what_is_missing_is_told_before_images_are_read(labelled, tmp_path, monkeypatch):
    """By a dry run, in the words of the run."""
    np.savez(tmp_path / "own.npz", train=np.zeros((2, 3, 3, 1), np.uint8))
    given = {"mixture_or_task_name": "image_folder", "batch_size": 1, "data_path": str(labelled)}
    in_npz = given | {"mixture_or_task_name": "image_npz", "data_path": str(tmp_path / "own.npz")}
    for fields in (
        given | {"split": "validation"},
        given | {"split": "train", "data_path": str(tmp_path / "none")},
        in_npz | {"split": "test"},
    ):
        config = data.DatasetConfig(**fields)
        with pytest.raises(ValueError) as by_run:  # noqa: PT011  the words are compared below
            loading.load_split(config)
        with pytest.raises(ValueError) as by_dry_run:  # noqa: PT011
            loading.check_there(config, 0)
        assert str(by_dry_run.value) == str(by_run.value)
        if config.data_path.endswith("none"):  # the files may come later
            assert loading.nothing_there(config, 0) == str(by_run.value)
        else:
            with pytest.raises(ValueError) as by_plan:  # noqa: PT011
                loading.nothing_there(config, 0)
            assert str(by_plan.value) == str(by_run.value)
    there = data.DatasetConfig(**given, split="train")
    with pytest.raises(ValueError, match=r"3 classes \(0 ant, 1 cat, 2 dog\).* NUM_CLASSES = 3"):
        loading.check_there(there, 10)
    monkeypatch.setattr(loading, "load_split", None)
    loading.check_there(there, 3)
    assert loading.nothing_there(there, 3) == ""
    loading.check_there(data.DatasetConfig(**in_npz, split="train"), 0)


def test_images_outside_the_folders_of_classes_have_no_labels(labelled, folder):
    assert labels(folder, 3) is None
    write_folder(labelled / "train" / "elk", fake_tfds.random_images(1, SHAPES[3]))
    (labelled / "train" / "elk" / "000.png").rename(labelled / "train" / "one.png")
    assert labels(labelled, 4) is None
    np.savez(labelled / "own.npz", train=np.zeros((2, 3, 3, 1), np.uint8))
    assert labels(labelled / "own.npz", 3, task="image_npz") is None


def test_a_folder_that_was_prepared_is_read_like_any(tmp_path):
    images = fake_tfds.random_images(7, SHAPES[3])
    folder = fake_tfds.write(tmp_path, "image_folder/mine:1.0.0", {"train": images})
    np.testing.assert_array_equal(
        fake_tfds.sorted_images(load("image_folder", folder)), fake_tfds.sorted_images(images)
    )
    with pytest.raises(ValueError, match="has no split 'test'; its splits: train"):
        load("image_folder", folder, "test")


def test_a_prepared_folder_that_changed_is_refused(tmp_path):
    from tasks.prepare import writer

    images = fake_tfds.random_images(7, SHAPES[3])
    folder = fake_tfds.write(tmp_path, "image_folder/mine:1.0.0", {"train": images})
    writer.record(folder, partial=False)
    assert len(load("image_folder", folder)) == 7
    other = fake_tfds.write(tmp_path / "b", "image_folder/mine:1.0.0", {"train": images ^ 1})
    (shard,) = folder.glob("*.tfrecord-*")
    shard.write_bytes((other / shard.name).read_bytes())
    with pytest.raises(ValueError, match="changed on disk since it was prepared"):
        load("image_folder", folder)


def test_a_jpeg_is_what_pillow_makes_of_it(tmp_path):
    image = fake_tfds.random_images(1, (16, 16, 3))[0]
    (tmp_path / "train").mkdir()
    Image.fromarray(image).save(tmp_path / "train" / "a.jpg", quality=95)
    with Image.open(tmp_path / "train" / "a.jpg") as opened:
        np.testing.assert_array_equal(load("image_folder", tmp_path)[0], np.asarray(opened))


@pytest.mark.parametrize("task", ["image_folder", "image_npz"])
def test_without_a_path_the_error_says_how_to_give_one(task):
    with pytest.raises(ValueError, match="bind DATA_PATH in gin") as caught:
        load(task, None)
    assert "(--gin.DATA_PATH=\"'/my/images'\")" in str(caught.value)


@pytest.mark.parametrize("task", ["image_folder", "image_npz"])
def test_a_path_with_nothing_there_is_named(task, tmp_path):
    with pytest.raises(ValueError, match=f"nothing at {tmp_path}/none"):
        load(task, tmp_path / "none")


def test_a_split_without_a_folder_or_images_is_named(folder):
    for each in (folder / "test").iterdir():
        each.unlink()
    with pytest.raises(ValueError, match=f"no images in {folder}/test"):
        load("image_folder", folder, "test")
    (folder / "test").rmdir()
    with pytest.raises(ValueError, match=f"no folder {folder}/test"):
        load("image_folder", folder, "test")


def encoded(mode: str) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (5, 6)).save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("L", (5, 6), shade) for shade in (0, 99)]
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    return out.getvalue()


BAD = {
    "another size": (png(np.zeros((5, 6, 3), np.uint8)), r"bad\.png is \(5, 6, 3\), but"),
    "another mode": (encoded("L"), r"bad\.png is \(6, 5, 1\), but"),
    "palette": (encoded("P"), r"bad\.png must be .* got mode 'P' .*\.convert\('RGB'\)"),
    "one bit": (encoded("1"), r"bad\.png must be .* got mode '1' .*\.convert\('L'\)"),
    "16 bits": (encoded("I;16"), r"bad\.png must have 8 bits .* 16 bits .* as uint16"),
    "animated": (animated(), r"bad\.png must be .* and 2 frames\. Save one"),
    "empty": (b"", r"bad\.png is not an image .* it starts with b''"),
    "text": (b"not an image", r"bad\.png is not an image .* it starts with b'not an i'"),
    "bomb": (bomb(), r"bad\.png claims to have more than 134,217,728 pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_among_good_ones_is_named_before_any_is_decoded(folder, kind):
    content, message = BAD[kind]
    (folder / "train" / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("image_folder", folder)


@pytest.mark.parametrize("name", archives.not_8_bits())
def test_depths_that_pillow_would_change_are_refused(name, folder, image_files):
    content, found = archives.not_8_bits()[name]
    path = folder / "train" / name
    path.write_bytes(content)
    with Image.open(path) as image:
        assert image.size == (5, 6)
        np.asarray(image)  # Pillow itself takes no offence
    with pytest.raises(ValueError, match=name) as caught:
        load("image_folder", folder)
    assert f"must have 8 bits per channel, got {found}" in str(caught.value)
    assert "Convert it to 8 bits, or keep its integers" in str(caught.value)
    assert "as uint16, for the task image_npz" in str(caught.value)


def test_eight_bits_in_any_format_are_read_as_they_are(tmp_path, image_files):
    image = fake_tfds.random_images(1, SHAPES[3])[0]
    files = {
        "a.ppm": b"P6\n# from 0 to\n5 6 255\n" + image.tobytes(),
        "b.ppm": b"P3 5 6 255\n" + " ".join(map(str, image.ravel())).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in ("c.tif", "d.bmp", "e.png"):
        Image.fromarray(image).save(tmp_path / name)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(image_files.read_image(path, SHAPES[3]), image)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_damage_in_a_later_frame_is_named(kind, folder, image_files):
    """Pillow counts frames by walking through them, and stumbles with errors of many types."""
    out = io.BytesIO()
    frames = [Image.new("RGB", (5, 6), shade) for shade in ("red", "blue")]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    path = folder / f"bad.{kind.lower()}"
    rng = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(out.getvalue())
        start = int(rng.integers(len(content)))
        content[start : start + 4] = rng.bytes(4)
        path.write_bytes(content)
        try:
            image_files.read_image(path, image_files.image_shape(path))
        except ValueError as error:
            assert type(error) is ValueError
            assert str(path) in str(error)


def test_an_error_in_counting_frames_is_named(tmp_path, image_files, monkeypatch):
    def fail(image):
        raise IndexError("no such frame")

    Image.new("RGB", (5, 6)).save(tmp_path / "a.bmp")
    monkeypatch.setattr(Image.Image, "n_frames", property(fail), raising=False)
    with pytest.raises(ValueError, match=r"a\.bmp is not a readable image: no such frame"):
        image_files.image_shape(tmp_path / "a.bmp")


def test_a_file_that_is_no_image_by_its_name_is_named(folder):
    (folder / "train" / "labels.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"labels\.csv is not an image .* starts with b'1,2'"):
        load("image_folder", folder)


def test_large_images_are_refused_by_their_header(image_files, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 29)
    path = tmp_path / "a.png"
    path.write_bytes(encoded("RGB"))
    message = "claims to be 6 x 5, but images may have at most 29 pixels. Reduce it first"
    with pytest.raises(ValueError, match=message):
        image_files.image_shape(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14)  # Pillow refuses more than twice as many
    with pytest.raises(ValueError, match="claims to have more than 29 pixels, .* Reduce it first"):
        image_files.image_shape(path)


def test_pillow_does_not_warn_of_images_that_are_accepted(
    image_files, tmp_path, monkeypatch, recwarn
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29)
    path = tmp_path / "a"
    path.write_bytes(encoded("RGB"))
    assert image_files.is_image(path)
    assert image_files.read_image(path, (6, 5, 3)).shape == (6, 5, 3)
    assert not recwarn.list


def test_pixels_that_cannot_be_decoded_are_named(folder, image_files):
    path = folder / "train" / "002.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert image_files.image_shape(path) == SHAPES[3]  # its header is whole
    with pytest.raises(ValueError, match=r"002\.png cannot be decoded"):
        image_files.read_image(path, SHAPES[3])
    # TensorFlow calls the reader, and adds nothing to the message.
    message = rf"^{path} cannot be decoded: .*\. Replace or remove it\.$"
    with pytest.raises(ValueError, match=message):
        load("image_folder", folder)


def test_images_of_linked_folders_are_read_like_any(folder, tmp_path):
    images = fake_tfds.random_images(5, SHAPES[3], 9)
    write_folder(tmp_path / "elsewhere" / "deep", images)
    (folder / "train" / "zzz").symlink_to(tmp_path / "elsewhere")
    found = load("image_folder", folder)
    assert len(found) == 9
    np.testing.assert_array_equal(found[-5:], images)
    # The cache notices a change behind the link.
    (tmp_path / "elsewhere" / "deep" / "000.png").unlink()
    assert len(load("image_folder", folder)) == 8


def test_links_to_nothing_stop_a_run(folder):
    for name in ("a.png", "b.png", "c"):
        (folder / "train" / name).symlink_to(folder / "nowhere" / name)
    with pytest.raises(ValueError, match="is a link to nothing. Remove it. There are 2 more such"):
        load("image_folder", folder)


def test_files_of_any_name_are_read_by_their_content(folder):
    image = fake_tfds.random_images(1, SHAPES[3], 9)[0]
    (folder / "test" / "zzz").write_bytes(png(image))
    np.testing.assert_array_equal(load("image_folder", folder, "test")[-1], image)


@pytest.mark.parametrize("task", ["image_folder", "image_npz"])
def test_the_cache_key_follows_the_files(task, folder, tmp_path):
    import os

    import seqio

    source = seqio.TaskRegistry.get(task).source
    path = folder
    if task == "image_npz":
        path = tmp_path / "own.npz"
        np.savez(path, train=np.zeros((2, 6, 5, 3), np.uint8))
    changed = path if path.is_file() else folder / "train" / "000.png"
    key = source.at(str(path)).cache_key("train")
    assert source.at(str(path)).cache_key("train") == key
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    touched = source.at(str(path)).cache_key("train")
    assert touched != key
    if task == "image_folder":
        assert source.at(str(path)).cache_key("test") != touched
        changed.rename(changed.with_name("renamed.png"))
        assert source.at(str(path)).cache_key("train") != touched
    with pytest.raises(ValueError, match="bind DATA_PATH"):
        source.cache_key("train")


def test_seqio_users_give_the_path_to_the_source(folder):
    import seqio

    from tasks.support.feature_converter import ImageFeatureConverter

    task = seqio.TaskRegistry.get("image_folder")
    task = task.replace(source=task.source.at(str(folder)))
    dataset = seqio.get_dataset(
        task, {}, ImageFeatureConverter(), dataset_split="test", batch_size=3
    )
    found = np.concatenate([batch["image"] for batch in dataset.as_numpy_iterator()])
    np.testing.assert_array_equal(found, fake_tfds.random_images(6, SHAPES[3], 2))


def test_seqio_shares_single_images_out(folder):
    import seqio

    task = seqio.TaskRegistry.get("image_folder")
    task = task.replace(source=task.source.at(str(folder)))
    parts = [
        fake_tfds.images_of(
            task.get_dataset(
                split="test", shuffle=False, shard_info=seqio.ShardInfo(index=index, num_shards=2)
            )
        )
        for index in range(2)
    ]
    images = fake_tfds.random_images(6, SHAPES[3], 2)
    np.testing.assert_array_equal(parts[0], images[::2])
    np.testing.assert_array_equal(parts[1], images[1::2])


def test_a_file_in_place_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images.zip").touch()
    for path in (str(tmp_path / "images.zip"), "~/images.zip"):
        with pytest.raises(ValueError, match=f"got the file {tmp_path}/images.zip. DATA_PATH must"):
            loading.load_split(
                data.DatasetConfig(
                    mixture_or_task_name="image_folder", split="test", batch_size=1, data_path=path
                )
            )
