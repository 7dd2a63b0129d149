"""Images and records made to harm: refused by name, nothing large allocated."""

import io
import re
import struct
import zlib

import archives
import numpy as np
import pytest
from hostile import NEW, ROUNDS, TEN_GIGABYTES, fuzz, little_memory, read_tar, tar_of  # noqa: F401
from PIL import Image

from tasks.prepare import datasets, image_folder, on_cpu, png, tfrecords
from tasks.prepare.refusals import SourceError

on_cpu.tfds()  # imported before any test counts memory


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_images(rounds):
    content = archives.png(archives.photos(1)[0])
    outcomes = fuzz(content, lambda c: png.decode(c, "image", shape=(32, 32, 3)), rounds, 0)
    assert outcomes["refused"] > rounds // 2
    # With the checksums made right again, so that the decoder itself meets the damage.
    fuzz(content, lambda c: png.decode(with_checksums(c), "image", shape=(32, 32, 3)), rounds, 1)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_records(rounds):
    content = archives.example(b"abc" * 20)
    assert tfrecords.image_of(content, "record") == b"abc" * 20
    fuzz(content, lambda c: tfrecords.image_of(c, "record"), rounds, 0)


def test_a_record_that_claims_gigabytes(tmp_path):
    archives.authors_tfrecords(tmp_path, 3, 2, num_shards=1)
    folder = tmp_path / "downsampled_imagenet_new" / "32x32" / "2.0.0"
    (shard,) = folder.glob("*-train.tfrecord-*")
    with shard.open("r+b") as file:
        file.write(struct.pack("<Q", TEN_GIGABYTES))
        file.truncate(TEN_GIGABYTES + 16)  # sparse: it takes no disk
    source = tfrecords.read(NEW, folder, partial=True)
    with pytest.raises(SourceError, match=f"{shard} has a record of 10,000,000,000 bytes"):
        list(source.splits["train"]())


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_checksums(content):
    """Return the same chunks with correct checksums."""
    fixed, position = content[:8], 8
    while position + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, position)
        if position + 12 + size > len(content):
            break
        fixed += chunk(content[position + 4 : position + 8], content[position + 8 :][:size])
        position += 12 + size
    return fixed


def claims(width, height, depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


GOOD = archives.photos(1)[0]
BAD_PNGS = {
    "bomb": (claims(50_000, 50_000), "exceeds limit of"),
    "other size": (archives.png(archives.photos(1, 16)[0]), "must measure 32x32, got 16x16"),
    "grey": (archives.png(GOOD[..., :1]), "has colour mode L, not RGB"),
    "palette": (claims(32, 32, colour=3), "has colour mode P, not RGB"),
    "16 bits": (claims(32, 32, depth=16), "has 16 bits per channel"),
    "alpha": (
        archives.png(np.concatenate([GOOD, GOOD[..., :1]], -1)),
        "has colour mode RGBA",
    ),
    "few pixels": (claims(32, 32), "cannot be decoded"),
    "truncated": (archives.png(GOOD)[:-20], "cannot be decoded"),
    "flipped": (archives.png(GOOD)[:200] + b"x" + archives.png(GOOD)[201:], "checksum in b'IDAT'"),
    "no pixels": (claims(32, 32)[:33] + chunk(b"IEND", b""), "cannot be decoded"),
    "two headers": (claims(32, 32)[:33] + claims(64, 64)[8:], "must measure 32x32, got 64x64"),
    "signature alone": (SIGNATURE, "cannot be read as PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0abc", "cannot be read as PNG"),
    "empty": (b"", "cannot be read as PNG"),
}


@pytest.mark.parametrize("case", BAD_PNGS)
def test_bad_pngs_are_refused_by_name(case, tmp_path):
    content, message = BAD_PNGS[case]
    with pytest.raises(SourceError, match=message) as refusal:
        read_tar(tar_of(tmp_path / "t.tar", content=content))
    assert "train_32x32/2.png in " in str(refusal.value)


def test_png_round_trip():
    for channels in (1, 3, 4):
        image = archives.photos(1, 32, channels=channels)[0]
        with Image.open(io.BytesIO(png.encode(image))) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded).reshape(32, 32, channels), image)
    np.testing.assert_array_equal(png.decode(png.encode(GOOD), "image", shape=(32, 32, 3)), GOOD)


def test_all_problems_of_a_folder_are_told_at_once(tmp_path):
    archives.image_folder(tmp_path, {"train": 4, "test": 2}, shape=(8, 8, 3))
    rgb = archives.photos(1, 8)[0]
    bad = {
        "truncated.png": archives.png(rgb)[:-20],
        "bomb.png": claims(12_000, 12_000),
        "bomb2.png": claims(50_000, 50_000),
        "deep.png": claims(8, 8, depth=16),
        "grey.png": archives.png(rgb[..., :1]),
        "large.png": archives.png(archives.photos(1, 9)[0]),
        "text.jpg": b"hello",
        "empty.webp": b"",
        "moving.gif": b"GIF89a",
        "colours.png": None,
        "ink.jpg": None,
    }
    for name, content in bad.items():
        if content is not None:
            (tmp_path / "train" / name).write_bytes(content)
    Image.fromarray(rgb).convert("P").save(tmp_path / "train" / "colours.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "train" / "ink.jpg")
    Image.fromarray(rgb).save(tmp_path / "lost.png")
    dataset = datasets.image_folder("mine")
    with pytest.raises(SourceError) as refusal:
        image_folder.read(dataset, [tmp_path], partial=False)
    message = str(refusal.value)
    assert "12 files are refused" in message
    assert "and 2 more" in message
    assert "bomb.png claims to be 12000 x 12000" in message
    assert "deep.png must have 8 bits per channel, got 16 bits per channel. Convert" in message
    assert re.search(r"colours\.png must be one picture of 8-bit grey, .* got mode 'P'", message)
    assert sum(name in message for name in [*bad, "lost.png"]) == 10
    assert len(message) < 3000
    for name in [*bad, "lost.png"]:
        path = tmp_path / "train" / name if name in bad else tmp_path / name
        path.unlink()
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    source = image_folder.read(dataset, [tmp_path], partial=False)
    assert source.sizes == {"train": 4, "test": 2}
    assert source.dataset.image_shape == (8, 8, 3)


@pytest.mark.parametrize("shares", [None, (0.5, 0.0, 0.5)])
def test_classes_that_look_alike(shares, tmp_path):
    """Names from a Mac, whose accents are characters of their own."""
    inside = tmp_path if shares else tmp_path / "train"
    for name in ("caf\u00e9", "cafe\u0301"):
        archives.image_folder(inside, {name: 4})
    with pytest.raises(SourceError, match="look alike and would be two classes"):
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False, shares=shares)


def test_an_image_file_of_gigabytes(tmp_path):
    archives.image_folder(tmp_path, {"train": 2})
    with (tmp_path / "train" / "huge.bmp").open("wb") as file:
        file.truncate(TEN_GIGABYTES)
    with pytest.raises(SourceError, match="huge.bmp is larger than 268,435,456 bytes"):
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)


@pytest.mark.parametrize("name", archives.not_8_bits())
def test_depths_that_pillow_would_change(name, tmp_path):
    content, found = archives.not_8_bits()[name]
    archives.image_folder(tmp_path, {"train": 2}, shape=(6, 5, 3))
    (tmp_path / "train" / name).write_bytes(content)
    with pytest.raises(SourceError, match=re.escape(f"train/{name} ") + ".*" + re.escape(found)):
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_of_a_folder(suffix, channels, tmp_path):
    (tmp_path / "train" / "deeper").mkdir(parents=True)
    images = archives.photos(3, 9, channels=channels)
    for i, image in enumerate(images):
        target = tmp_path / "train" / "deeper" / f"{i}{suffix}"
        options = {"lossless": True} if suffix == ".webp" else {}
        Image.fromarray(image.squeeze()).save(target, **options)
    if suffix == ".webp" and channels == 1:
        images = images.repeat(3, axis=-1)  # WebP knows no grey
    (records,) = image_folder.read(
        datasets.image_folder("mine"), [tmp_path], partial=False
    ).splits.values()
    np.testing.assert_array_equal([record.image for record in records()], images)


def test_links_that_lead_in_circles(tmp_path):
    archives.image_folder(tmp_path, {"train": 2})
    (tmp_path / "train" / "again").symlink_to(tmp_path / "train", target_is_directory=True)
    (tmp_path / "train" / "broken.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="broken.png"):
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)
