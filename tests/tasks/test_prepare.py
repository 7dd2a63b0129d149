"""From the publishers' own bytes to datasets that TFDS and seqio read: pixels, order, counts."""

import hashlib
import json
import pathlib
import tarfile
import tempfile
import types

import archives
import numpy as np
import pytest

from idode_gin.feed import data, loading
from idode_gin.feed.image_fingerprints import fingerprint
from tasks.prepare import __main__ as program
from tasks.prepare import datasets, writer

N_TRAIN, N_OTHER = 53, 12


def prepare(dataset, sources, data_dir, *options, code=0):
    """Run the program on a subset; return the folder that it writes."""
    arguments = [dataset, "--source", *map(str, sources), "--tfds_data_dir", str(data_dir)]
    assert program.main([*arguments, *options]) == code
    known = datasets.DATASETS.get(dataset, datasets.image_folder("my_images"))
    return data_dir / known.folder


def read(folder, split, name="image"):
    """Return one feature of a split, in the order on disk."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    config = tfds.ReadConfig(interleave_cycle_length=1)
    examples = builder.as_dataset(split=split, read_config=config).as_numpy_iterator()
    return np.stack([example[name] for example in examples])


def same_images(a, b):
    """Return whether two stacks hold the same images in any order."""
    return sorted(image.tobytes() for image in a) == sorted(image.tobytes() for image in b)


def imagenet(write, size=32):
    def build(folder):
        images = write(folder, N_TRAIN, N_OTHER, size=size)
        return images, sorted(folder.iterdir())

    return build


def cifar10(write):
    def build(folder):
        images = write(folder / "archive.tar.gz", N_TRAIN, N_OTHER)
        return images, [folder / "archive.tar.gz"]

    return build


def own_images(folder):
    images = archives.image_folder(folder, {"train": N_TRAIN, "test": N_OTHER})
    return images, [folder]


def extracted(build):
    """Build archives, then extract them as a user would."""

    def extract(folder):
        (folder / "packed").mkdir()
        images, packed = build(folder / "packed")
        for each in packed:
            if each.suffix == ".zip":
                import zipfile

                zipfile.ZipFile(each).extractall(folder / "extracted" / each.stem)
            else:
                with tarfile.open(each) as archive:
                    archive.extractall(folder / "extracted", filter="data")
        found = sorted((folder / "extracted").iterdir())
        return images, found

    return extract


def in_one(build):
    """Name the folder that holds all extracted archives as the only source."""

    def around(folder):
        images, sources = build(folder)
        return images, [sources[0].parent]

    return around


PATHS = {
    "cifar10 python": ("cifar10", cifar10(archives.cifar10_python)),
    "cifar10 binary": ("cifar10", cifar10(archives.cifar10_binary)),
    "cifar10 folder": ("cifar10", extracted(cifar10(archives.cifar10_python))),
    "new pickles": ("imagenet32_new", imagenet(archives.imagenet_zip_pickles)),
    "new pickles folder": ("imagenet32_new", extracted(imagenet(archives.imagenet_zip_pickles))),
    "new pickles 64": ("imagenet64_new", imagenet(archives.imagenet_zip_pickles, 64)),
    "new npz": ("imagenet32_new", imagenet(archives.imagenet_npz)),
    "new npz folder": ("imagenet32_new", extracted(imagenet(archives.imagenet_npz))),
    "new npz 64": ("imagenet64_new", imagenet(archives.imagenet_npz, 64)),
    "new tfrecords": ("imagenet32_new", imagenet(archives.authors_tfrecords)),
    "old tars": ("imagenet32_old", imagenet(archives.imagenet_old_tars)),
    "old tars 64": ("imagenet64_old", imagenet(archives.imagenet_old_tars, 64)),
    "old folder": ("imagenet32_old", extracted(imagenet(archives.imagenet_old_tars))),
    "old folders in one": (
        "imagenet32_old",
        in_one(extracted(imagenet(archives.imagenet_old_tars))),
    ),
    "image folder": ("image_folder", own_images),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_format_keeps_every_pixel(path, tmp_path, capsys):
    dataset, build = PATHS[path]
    (tmp_path / "source").mkdir()
    images, sources = build(tmp_path / "source")
    folder = prepare(dataset, sources, tmp_path / "data", "--allow_partial")
    recorded = json.loads((folder / "fingerprint.json").read_text())
    assert set(recorded) == set(images)
    printed = capsys.readouterr()
    for split, expected in images.items():
        found = read(folder, split)
        assert found.dtype == np.uint8
        assert same_images(found, expected)
        assert recorded[split] == json.loads(json.dumps(fingerprint(found).as_dict()))
        assert recorded[split]["sha256"] == hashlib.sha256(found.tobytes()).hexdigest()
        assert f"{len(expected):,} images of " in printed.out
    if dataset == "image_folder" or path == "new tfrecords":
        np.testing.assert_array_equal(read(folder, "train"), images["train"])
    data = tmp_path / "data"
    told = f"{dataset}.gin --tfds_data_dir={data}"
    if dataset == "image_folder":
        told = f"TfdsDataSource('image_folder/my_images:1.0.0', tfds_data_dir='{data}'"
    assert told in printed.out
    assert json.loads((folder / "metadata.json").read_text()) == {"partial": True}
    assert "WARNING" in printed.err
    assert [each.name for each in (tmp_path / "data").iterdir()] == [
        folder.relative_to(tmp_path / "data").parts[0]
    ]


def test_nothing_is_left_among_temporary_files(tmp_path, monkeypatch):
    _, sources = own_images(tmp_path / "source")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    prepare("image_folder", sources, tmp_path / "data")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cifar10 python", "cifar10:3.0.2"),
        ("new pickles", "downsampled_imagenet_new/32x32:2.0.0"),
        ("new tfrecords", "downsampled_imagenet_new/32x32:2.0.0"),
        ("image folder", "image_folder/my_images:1.0.0"),
    ],
)
def test_seqio_reads_it_without_builder_code(path, name, tmp_path):
    import seqio

    dataset, build = PATHS[path]
    (tmp_path / "source").mkdir()
    images, sources = build(tmp_path / "source")
    prepare(dataset, sources, tmp_path / "data", "--allow_partial")
    source = seqio.TfdsDataSource(name, tfds_data_dir=str(tmp_path / "data"), read_only=True)
    assert source.num_input_examples("train") == N_TRAIN
    found = [each["image"] for each in source.get_dataset("train", False).as_numpy_iterator()]
    assert same_images(found, images["train"])


# Order, ids and labels are those of TFDS's own builders


def test_folders_of_images_are_kept_as_labels(tmp_path):
    images, sources = own_images(tmp_path / "source")
    folder = prepare("image_folder", sources, tmp_path / "data")
    config = {"mixture_or_task_name": "image_folder", "batch_size": 1, "data_path": str(folder)}
    for split, each in images.items():
        found = loading.load_labels(data.DatasetConfig(**config, split=split), 2)
        expected = [2 * place // len(each) for place in range(len(each))]
        np.testing.assert_array_equal(found, expected)
    config["split"] = "train"
    assert loading.class_names(data.DatasetConfig(**config)) == ("a", "b")
    del config["split"]
    with pytest.raises(ValueError, match=r"has 2 classes \(0 a, 1 b\)"):
        loading.load_labels(data.DatasetConfig(**config, split="train"), 3)
    (sources[0] / "train" / "a" / "0000.png").rename(sources[0] / "train" / "one.png")
    without = prepare("image_folder", sources, tmp_path / "other")
    config["data_path"] = str(without)
    assert loading.load_labels(data.DatasetConfig(**config, split="train"), 2) is None


def official_builder(module, tmp_path, manager):
    """Build a dataset with TFDS's own builder from local archives; return its folder."""
    import tensorflow_datasets as tfds

    builder = module(tmp_path)
    builder._make_download_manager = lambda **_: types.SimpleNamespace(downloaded_size=0, **manager)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return pathlib.Path(builder.data_dir)


@pytest.mark.full_cases("cifar10_binary")
@pytest.mark.parametrize("source", [archives.cifar10_python, archives.cifar10_binary])
def test_cifar10_lies_in_the_order_of_tfds_own_builder(source, tmp_path):
    from tensorflow_datasets.image_classification import cifar

    source(tmp_path / "ours.tar.gz", 530, 120)
    archives.cifar10_binary(tmp_path / "theirs.tar.gz", 530, 120)
    with tarfile.open(tmp_path / "theirs.tar.gz") as archive:
        archive.extractall(tmp_path / "extracted", filter="data")
    official = official_builder(
        lambda path: cifar.Cifar10(data_dir=str(path / "official")),
        tmp_path,
        {"download_and_extract": lambda url: str(tmp_path / "extracted")},
    )
    ours = prepare("cifar10", [tmp_path / "ours.tar.gz"], tmp_path / "data", "--allow_partial")
    for split in ("train", "test"):
        for feature in ("image", "id", "label"):
            expected = read(official, split, feature)
            np.testing.assert_array_equal(read(ours, split, feature), expected)
    assert (ours / "label.labels.txt").read_text() == (official / "label.labels.txt").read_text()


def test_old_imagenet_lies_in_the_order_of_tfds_own_builder(tmp_path):
    from tensorflow_datasets.core.download import extractor, resource
    from tensorflow_datasets.datasets.downsampled_imagenet import (
        downsampled_imagenet_dataset_builder as module,
    )

    archives.imagenet_old_tars(tmp_path, 230, 70)
    tars = [tmp_path / "train_32x32.tar", tmp_path / "valid_32x32.tar"]
    official = official_builder(
        lambda path: module.Builder(config="32x32", data_dir=str(path / "official")),
        tmp_path,
        {
            "download": lambda urls: tars,
            "iter_archive": lambda path: extractor.iter_archive(path, resource.ExtractMethod.TAR),
        },
    )
    ours = prepare("imagenet32_old", tars, tmp_path / "data", "--allow_partial")
    for split in ("train", "validation"):
        np.testing.assert_array_equal(read(ours, split), read(official, split))
        name = f"downsampled_imagenet-{split}.tfrecord-00000-of-00001"
        assert (ours / name).read_bytes() == (official / name).read_bytes()


# Counts


def test_the_published_numbers_of_images_are_held_to(tmp_path, capsys, monkeypatch):
    archives.cifar10_python(tmp_path / "c.tar.gz", N_TRAIN, N_OTHER)
    folder = prepare("cifar10", [tmp_path / "c.tar.gz"], tmp_path / "data", code=2)
    assert "50,000 images in split 'train'; the sources hold 53" in capsys.readouterr().err
    assert not folder.exists()
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.setitem(datasets.CIFAR10.sizes, "train", N_TRAIN)
    monkeypatch.setitem(datasets.CIFAR10.sizes, "test", N_OTHER)
    prepare("cifar10", [tmp_path / "c.tar.gz"], tmp_path / "data")
    assert json.loads((folder / "metadata.json").read_text()) == {"partial": False}
    assert "PARTIAL" not in capsys.readouterr().out


def test_the_other_variants_number_of_images_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(datasets.OLD_SIZES, "train", 40)
    monkeypatch.setitem(datasets.NEW_SIZES, "train", N_TRAIN)
    archives.imagenet_old_tars(tmp_path, N_TRAIN, N_OTHER)
    prepare("imagenet32_old", sorted(tmp_path.iterdir()), tmp_path / "data", code=2)
    error = capsys.readouterr().err
    assert "has 40 images in split 'train'; the sources hold 53" in error
    assert "The new variant" in error


def test_published_numbers():
    sizes = {name: dict(each.sizes) for name, each in datasets.DATASETS.items()}
    assert sizes["cifar10"] == {"train": 50000, "test": 10000}
    assert sizes["mnist"] == sizes["fashion_mnist"] == {"train": 60000, "test": 10000}
    for size in (32, 64):
        assert sizes[f"imagenet{size}_old"] == {"train": 1281149, "validation": 49999}
        assert sizes[f"imagenet{size}_new"] == {"train": 1281167, "validation": 50000}
    folders = {name: each.folder for name, each in datasets.DATASETS.items()}
    assert folders == {
        "cifar10": "cifar10/3.0.2",
        "mnist": "mnist/3.0.1",
        "fashion_mnist": "fashion_mnist/3.0.1",
        "imagenet32_old": "downsampled_imagenet/32x32/2.0.0",
        "imagenet32_new": "downsampled_imagenet_new/32x32/2.0.0",
        "imagenet64_old": "downsampled_imagenet/64x64/2.0.0",
        "imagenet64_new": "downsampled_imagenet_new/64x64/2.0.0",
    }


# The wrong archive


def missing_val(folder):
    archives.imagenet_npz(folder, N_TRAIN, N_OTHER)
    return [folder / "Imagenet32_train_npz.zip"]


def part_one(folder):
    archives.imagenet_zip_pickles(folder, N_TRAIN, N_OTHER, size=64)
    return [folder / "Imagenet64_train_part1.zip", folder / "Imagenet64_val.zip"]


def both_forms(folder):
    archives.imagenet_zip_pickles(folder, N_TRAIN, N_OTHER)
    archives.imagenet_npz(folder, N_TRAIN, N_OTHER)
    return sorted(folder.iterdir())


def cifar100(folder):
    archives.cifar100_python(folder / "c.tar.gz", 20, 10)
    return [folder / "c.tar.gz"]


def cifar100_renamed(folder):
    fine = archives.python2_pickle({b"fine_labels": [1], b"data": [1]})
    names = archives.python2_pickle({b"label_names": [b"%d" % i for i in range(10)]})
    batches = ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
    files = {"batches.meta": names, **dict.fromkeys(batches, fine)}
    archives.tar(folder / "c.tar.gz", files, "w:gz")
    return [folder / "c.tar.gz"]


def web_page(folder):
    (folder / "cifar-10-python.tar.gz").write_bytes(b"<!DOCTYPE html><html>403</html>")
    return [folder / "cifar-10-python.tar.gz"]


def all_of(write, **options):
    def build(folder):
        write(folder, N_TRAIN, N_OTHER, **options)
        return sorted(folder.iterdir())

    return build


WRONG = {
    "old for new": ("imagenet32_new", all_of(archives.imagenet_old_tars), "old variant"),
    "new for old": ("imagenet32_old", all_of(archives.imagenet_zip_pickles), "new variant"),
    "npz for old": ("imagenet32_old", all_of(archives.imagenet_npz), "new variant"),
    "64 for 32": ("imagenet32_new", all_of(archives.imagenet_npz, size=64), "64x64 images"),
    "32 for 64": ("imagenet64_new", all_of(archives.imagenet_zip_pickles), "32x32 images"),
    "old 64 for 32": ("imagenet32_old", all_of(archives.imagenet_old_tars, size=64), "64x64"),
    "no validation": ("imagenet32_new", missing_val, "no validation images"),
    "one part of two": ("imagenet64_new", part_one, "Name the other archive too"),
    "both forms": ("imagenet32_new", both_forms, "given twice"),
    "cifar 100": ("cifar10", cifar100, "CIFAR-100"),
    "cifar 100 renamed": ("cifar10", cifar100_renamed, "CIFAR-100"),
    "imagenet as cifar": ("cifar10", all_of(archives.imagenet_npz), "cifar-10-python.tar.gz"),
    "web page": ("cifar10", web_page, "a web page"),
    "missing file": ("cifar10", lambda folder: [folder / "nope"], "No such file"),
    "empty folder": ("cifar10", lambda folder: [folder], "holds nothing of CIFAR-10"),
    "empty new": ("imagenet32_new", lambda folder: [folder], "holds no batch"),
    "empty old": ("imagenet32_old", lambda folder: [folder], "holds no file"),
    "no images": ("image_folder", lambda folder: [folder], "holds no images"),
    "file as folder": ("image_folder", web_page, "must be a folder"),
    "device": ("cifar10", lambda folder: [pathlib.Path("/dev/zero")], "device or pipe"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_what_was_expected(case, tmp_path, capsys):
    dataset, build, message = WRONG[case]
    (tmp_path / "source").mkdir()
    folder = prepare(dataset, build(tmp_path / "source"), tmp_path / "data", code=2)
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path / "source") in error or case == "device"
    assert not folder.exists()


# Ready tfrecords


@pytest.fixture
def ready(tmp_path):
    archives.authors_tfrecords(tmp_path, N_TRAIN, N_OTHER)
    return tmp_path / "downsampled_imagenet_new/32x32/2.0.0"


def lose_a_shard(folder):
    (folder / "downsampled_imagenet_new-train.tfrecord-00001-of-00003").unlink()


def cut_a_shard(folder):
    path = folder / "downsampled_imagenet_new-train.tfrecord-00001-of-00003"
    path.write_bytes(path.read_bytes()[:-7])


def change_a_pixel(folder):
    path = folder / "downsampled_imagenet_new-train.tfrecord-00001-of-00003"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def add_a_record(folder):
    path = folder / "downsampled_imagenet_new-train.tfrecord-00001-of-00003"
    other = folder / "downsampled_imagenet_new-train.tfrecord-00000-of-00003"
    path.write_bytes(path.read_bytes() + other.read_bytes())


def empty_info(folder):
    (folder / "dataset_info.json").write_text('{"name": "downsampled_imagenet_new"')


def other_name(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("downsampled_imagenet_new", "cifar10"))


def changed_info(key, value):
    def change(folder):
        path = folder / "dataset_info.json"
        info = json.loads(path.read_text())
        place = info if key in info or key == "unknown" else info["splits"][1]
        place[key] = value
        path.write_text(json.dumps(info))

    return change


def one_split_more(folder):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"].append({"name": "../../evil", "shardLengths": ["1"]})
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed_info("description", 5), "dataset_info.json is damaged: Failed to parse desc"),
        (changed_info("unknown", 5), "dataset_info.json is damaged: "),
        (changed_info("numBytes", "x"), "dataset_info.json is damaged: Failed to parse splits"),
        (
            changed_info("shardLengths", [{}]),
            "dataset_info.json is damaged: Failed to parse splits",
        ),
        (one_split_more, "dataset_info.json is damaged: "),
        (lose_a_shard, "lacks 1 of 3 shards"),
        (cut_a_shard, "its last record is not whole"),
        (change_a_pixel, "damaged"),
        (add_a_record, "must hold 18 records"),
        (empty_info, "dataset_info.json is damaged"),
        (other_name, "must have name 'downsampled_imagenet_new'"),
    ],
)
def test_damaged_tfrecords_are_refused(damage, message, ready, tmp_path, capsys):
    damage(ready)
    prepare("imagenet32_new", [ready], tmp_path / "data", "--allow_partial", code=2)
    error = capsys.readouterr().err
    assert message in error
    assert str(ready) in error
    assert not (tmp_path / "data/downsampled_imagenet_new").exists()


def test_a_wrong_checksum_is_found(ready, tmp_path, capsys):
    path = ready / "downsampled_imagenet_new-validation.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    prepare("imagenet32_new", [ready], tmp_path / "data", "--allow_partial", code=2)
    assert "is damaged" in capsys.readouterr().err


def test_pixels_that_read_back_otherwise_are_never_finished(tmp_path, capsys, monkeypatch):
    archives.image_folder(tmp_path / "mine", {"train": 5})
    encode = writer.png.encode
    monkeypatch.setattr(writer.png, "encode", lambda image: encode(image ^ np.uint8(1)))
    folder = prepare("image_folder", [tmp_path / "mine"], tmp_path / "data", code=2)
    assert "reads back with other pixels" in capsys.readouterr().err
    assert not folder.exists()


def test_partial_tfrecords_without_the_flag(ready, tmp_path, capsys):
    prepare("imagenet32_new", [ready], tmp_path / "data", code=2)
    assert "the sources hold 53" in capsys.readouterr().err


def test_a_foreign_description_of_features_is_not_used(tmp_path):
    """The description names classes, and TFDS would import them from any module."""
    archives.authors_tfrecords(tmp_path, N_TRAIN, N_OTHER)
    source = tmp_path / "downsampled_imagenet_new" / "32x32" / "2.0.0"
    (source / "features.json").write_text('{"type": "evil_module.Feature"}')
    (source / "metadata.json").write_text('{"partial": true}')
    folder = prepare("imagenet32_new", [source], tmp_path / "data", "--allow_partial")
    assert "evil_module" not in (folder / "features.json").read_text()
    assert len(read(folder, "train")) == N_TRAIN
