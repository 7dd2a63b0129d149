"""MNIST's files: read to the pixel, refused by name when damaged, and nothing large allocated."""

import gzip
import hashlib
import json
import re
import struct
import tracemalloc

import archives
import numpy as np
import pytest
from hostile import MEGABYTE, ROUNDS, drain, fuzz, little_memory  # noqa: F401
from test_prepare import official_builder, prepare, read, same_images

from tasks.prepare import datasets, idx, on_cpu
from tasks.prepare.refusals import SourceError

on_cpu.tfds()  # imported before any test counts memory

DATASET = datasets.DATASETS["fashion_mnist"]
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.fixture
def folder(tmp_path):
    archives.mnist(tmp_path / "source", 53, 12)
    return tmp_path / "source"


def refusal(folder, partial=True):
    with pytest.raises(SourceError) as caught:
        drain(idx.read(DATASET, [folder], partial=partial))
    return str(caught.value)


# What is kept


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dataset", idx.NAMES)
def test_images_and_labels_are_kept(dataset, packed, tmp_path):
    images = archives.mnist(tmp_path / "source", 53, 12, packed=packed)
    folder = prepare(dataset, [tmp_path / "source"], tmp_path / "data", "--allow_partial")
    recorded = json.loads((folder / "fingerprint.json").read_text())
    for split, expected in images.items():
        found, ids = read(folder, split), read(folder, split, "id")
        assert same_images(found, expected)
        order = [int(each.decode().removeprefix(f"{split}_")) for each in ids]
        np.testing.assert_array_equal(found, expected[order])
        np.testing.assert_array_equal(
            read(folder, split, "label"), archives.labels(len(expected))[order]
        )
        assert recorded[split]["sha256"] == hashlib.sha256(found.tobytes()).hexdigest()
    names = (folder / "label.labels.txt").read_text().split("\n")[:10]
    assert names[0] == {"mnist": "0", "fashion_mnist": "T-shirt/top"}[dataset]


@pytest.mark.parametrize("dataset", idx.NAMES)
def test_they_lie_in_the_order_of_tfds_own_builder(dataset, tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    archives.mnist(tmp_path / "source", 530, 120, packed=False)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 530)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 120)
    own = {"mnist": mnist.MNIST, "fashion_mnist": mnist.FashionMNIST}[dataset]

    def extracted(names):
        return {
            key: str(tmp_path / "source" / url.rpartition("/")[2][:-3])
            for key, url in names.items()
        }

    official = official_builder(
        lambda path: own(data_dir=str(path / "official")),
        tmp_path,
        {"download_and_extract": extracted},
    )
    ours = prepare(dataset, [tmp_path / "source"], tmp_path / "data", "--allow_partial")
    assert ours.relative_to(tmp_path / "data") == official.relative_to(tmp_path / "official")
    for feature in ("image", "label"):
        np.testing.assert_array_equal(read(ours, "test", feature), read(official, "test", feature))
    if dataset == "fashion_mnist":  # digits are no names to TFDS
        names = [(each / "label.labels.txt").read_text() for each in (ours, official)]
        assert names[0] == names[1]


def test_names_of_mirrors_single_files_and_archives(folder, tmp_path):
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    renamed = tmp_path / "mirror"
    renamed.mkdir()
    for name, content in files.items():
        other = name.replace("-idx", ".idx").removesuffix(".gz")
        (renamed / other).write_bytes(gzip.decompress(content))
    archives.zipped(tmp_path / "a.zip", files)
    archives.tar(tmp_path / "a.tar", files)
    for sources in (
        [renamed],
        sorted(folder.iterdir()),
        [tmp_path / "a.zip"],
        [tmp_path / "a.tar"],
        [folder, renamed],  # the same, packed and unpacked, as torchvision leaves them
    ):
        assert drain(idx.read(DATASET, sources, partial=True)) == 65


def test_the_published_numbers_of_images_are_held_to(folder, tmp_path, capsys):
    prepare("fashion_mnist", [folder], tmp_path / "data", code=2)
    assert "60,000 images in split 'train'; the sources hold 53" in capsys.readouterr().err
    assert not list(tmp_path.glob("data/*"))


def test_another_dataset_of_that_form_is_told_by_its_mean(folder, monkeypatch):
    for dataset in (each for name, each in datasets.DATASETS.items() if name in idx.NAMES):
        monkeypatch.setitem(dataset.sizes, "train", 53)
        monkeypatch.setitem(dataset.sizes, "test", 12)
    images, header = (
        np.full((53, 28, 28, 1), 73, np.uint8),
        struct.pack(">BBBB3I", 0, 0, 8, 3, 53, 28, 28),
    )
    images[:3] = 69  # mean 72.77 is neither's
    (folder / IMAGES).write_bytes(gzip.compress(header + images.tobytes()))
    assert "Fashion-MNIST have a mean of 72.94, the given ones 72.77" in refusal(folder, False)
    images[:] = 33
    images[: 53 // 3] = 34  # 33.32, MNIST's
    (folder / IMAGES).write_bytes(gzip.compress(header + images.tobytes()))
    assert "given ones 33.32. These are those of `mnist`" in refusal(folder, False)
    mnist = datasets.DATASETS["mnist"]
    assert drain(idx.read(mnist, [folder], partial=False)) == 65


# What is refused


def header(*sizes, kind=8):
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, kind, len(sizes), *sizes)


PIXELS = bytes(53 * 784)
BAD = {
    "images cut": (
        IMAGES,
        header(53, 28, 28) + PIXELS[:-1],
        "is cut short: 41,552 bytes must foll",
    ),
    "labels cut": (LABELS, header(53) + bytes(52), "is cut short: 53 bytes must follow, 52 can"),
    "header cut": (IMAGES, header(53, 28, 28)[:9], "is cut short: 12 bytes must follow, 5 can be"),
    "empty": (IMAGES, b"", "which starts with"),
    "more images": (IMAGES, header(53, 28, 28) + PIXELS + b"x", "more than the 53 images of its"),
    "more labels": (LABELS, header(53) + bytes(54), "holds more than the 53 labels of its header"),
    "labels as images": (IMAGES, header(53) + bytes(53), "holds labels: the file has the wrong na"),
    "images as labels": (LABELS, header(53, 28, 28) + PIXELS, "which holds images: the file has"),
    "floats": (IMAGES, header(53, 28, 28, kind=13) + 4 * PIXELS, r"got b'\x00\x00\r\x03'"),
    "no magic": (IMAGES, b"hello, world", "got b'hell'"),
    "web page": (IMAGES, b"<!DOCTYPE html>", "a web page: the download was refused"),
    "other size": (IMAGES, header(53, 32, 32) + bytes(53 * 1024), "images of 28x28, got 32x32"),
    "none": (IMAGES, header(0, 28, 28), "claims 0 images"),
    "too many": (IMAGES, header(60_001, 28, 28), "claims 60,001 images; Fashion-MNIST has 60,000"),
    "huge": (IMAGES, header(2**32 - 1, 28, 28), "claims 4,294,967,295 images"),
    "huge axes": (IMAGES, header(1, 2**32 - 1, 2**32 - 1), "got 4,294,967,295x4,294,967,295"),
    "huge labels": (LABELS, header(2**32 - 1), "claims 4,294,967,295 labels"),
    "fewer labels": (LABELS, header(52) + bytes(52), "holds 53 images, but"),
    "fewer images": (IMAGES, header(52, 28, 28) + PIXELS[784:], "holds 52 images, but"),
    "label 10": (LABELS, header(53) + bytes([10] * 53), "must hold labels 0 to 9, got 10"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_name(case, packed, tmp_path):
    name, content, message = BAD[case]
    archives.mnist(tmp_path, 53, 12, packed=packed)
    name = name if packed else name.removesuffix(".gz")
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    error = refusal(tmp_path)
    assert message in error
    assert name in error


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_damaged_gzip_files(name, folder):
    content = (folder / name).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    checksum = bytearray(content)
    checksum[-8] ^= 1
    damages = {
        "not gzip": gzip.decompress(content),
        "cut": content[:-1],
        "half": content[: len(content) // 2],
        "flipped": bytes(flipped),
        "checksum": bytes(checksum),
        "trailer": content + b"trailing",
        "second member": content + gzip.compress(b"more"),
        "empty": b"",
    }
    for what, damaged in damages.items():
        (folder / name).write_bytes(damaged)
        assert name in refusal(folder), what


def test_a_gzip_bomb_is_not_unpacked(folder):
    bomb = gzip.compress(header(53, 28, 28) + bytes(300 * MEGABYTE), 1)
    (folder / IMAGES).write_bytes(bomb)
    tracemalloc.clear_traces()
    assert "holds more than the 53 images" in refusal(folder)
    assert tracemalloc.get_traced_memory()[1] < 16 * MEGABYTE


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_files(rounds, folder):
    for name in (IMAGES, LABELS):
        content = (folder / name).read_bytes()
        unpacked = gzip.decompress(content)

        def read_damaged(damaged, name=name):
            (folder / name).write_bytes(damaged)
            drain(idx.read(DATASET, [folder], partial=True))

        fuzz(content, read_damaged, rounds // 4, 0)
        fuzz(unpacked, lambda each, read=read_damaged: read(gzip.compress(each, 1)), rounds // 4, 1)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train-images", "The sources lack train-images-idx3-ubyte.gz, which belongs to train-lab"),
        ("t10k-labels", "The sources lack t10k-labels-idx1-ubyte.gz, which belongs to t10k-images"),
        ("t10k-", "There are no test images"),
        ("train-", "There are no train images"),
        ("", "holds nothing of Fashion-MNIST"),
    ],
)
def test_missing_files(missing, message, folder):
    for each in folder.glob(f"{missing}*"):
        each.unlink()
    assert message in refusal(folder, partial=False)
    if missing.endswith("k-"):
        assert drain(idx.read(DATASET, [folder], partial=True)) == 53


def test_two_versions_of_a_file(folder, tmp_path):
    archives.mnist(tmp_path / "other", 53, 12, seed=5)
    with pytest.raises(SourceError, match=re.escape(f"ubyte.gz in {folder} and t10k-images-")):
        idx.read(DATASET, [folder, tmp_path / "other"], partial=True)


def test_a_refusal_loses_nothing(folder, tmp_path, capsys):
    prepared = prepare("mnist", [folder], tmp_path / "data", "--allow_partial")
    before = {each: each.read_bytes() for each in prepared.iterdir()}
    (folder / LABELS).write_bytes(b"\x1f\x8b damaged")
    prepare("mnist", [folder], tmp_path / "data", "--allow_partial", "--overwrite", code=2)
    assert f"{LABELS} in {folder} is cut short or damaged" in capsys.readouterr().err
    assert {each: each.read_bytes() for each in prepared.iterdir()} == before
