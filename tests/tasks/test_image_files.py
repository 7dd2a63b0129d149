"""Which files of a folder are images, and what is refused because pixels alone would lose it."""

import io
import os
import struct
import zlib

import archives
import numpy as np
import pytest
from PIL import ExifTags, Image

from tasks.formats import image_files
from tasks.prepare import image_folder, members
from tasks.prepare.refusals import SourceError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
LOSSLESS = {"png": {}, "webp": {"lossless": True}, "tiff": {}, "bmp": {}, "ppm": {}}


@pytest.fixture(params=["run", "prepare"])
def read(request):
    """Return a function that reads a file as a run does, or as `tasks.prepare` does."""
    if request.param == "prepare":
        return image_folder.decode
    return lambda path: image_files.read_image(path, image_files.image_shape(path))


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def before_end(png, *chunks):
    """Return a PNG file with chunks after its pixels."""
    at = png.index(b"IEND") - 4
    return png[:at] + b"".join(chunks) + png[at:]


# Which files there are


def png_at(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archives.png(np.full((4, 4, 1), value, np.uint8)))


def test_links_to_files_and_nested_folders_are_followed(tmp_path):
    png_at(tmp_path / "store" / "deep" / "far" / "1.png")
    png_at(tmp_path / "store" / "2.png")
    root = tmp_path / "train"
    png_at(root / "b" / "3.png")
    (root / "a").symlink_to(tmp_path / "store" / "deep")
    (root / "b" / "4.png").symlink_to(tmp_path / "store" / "2.png")
    files, problems = image_files.files_below(root)
    assert [each.relative_to(root).as_posix() for each in files] == [
        "a/far/1.png",
        "b/3.png",
        "b/4.png",
    ]
    assert problems == []


def test_the_folder_itself_may_be_a_link(tmp_path):
    png_at(tmp_path / "store" / "1.png")
    (tmp_path / "train").symlink_to(tmp_path / "store")
    assert image_files.files_below(tmp_path / "train")[0] == [tmp_path / "train" / "1.png"]


def test_a_link_to_a_folder_around_it_adds_nothing(tmp_path):
    png_at(tmp_path / "a" / "b" / "1.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "itself").symlink_to(tmp_path)
    assert image_files.files_below(tmp_path) == ([tmp_path / "a" / "b" / "1.png"], [])


def test_a_link_to_a_folder_above_adds_nothing(tmp_path):
    """What is beside a split, such as the test images, is not in it."""
    for split in ("train", "test"):
        png_at(tmp_path / "images" / split / "1.png")
    train = tmp_path / "images" / "train"
    (train / "up").symlink_to("..")
    (train / "farther").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(train)
    for root in (train, tmp_path / "alias"):
        assert image_files.files_below(root) == ([root / "1.png"], [])
        (member,) = members.iterate(root, largest=1000)
        assert member.name == "1.png"


def test_a_file_of_a_folder_that_may_not_be_entered_is_a_problem(tmp_path, monkeypatch):
    png_at(tmp_path / "1.png")
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "isfile", lambda path: False)  # as they answer then
        patch.setattr(os.path, "lexists", lambda path: False)
        files, (problem,) = image_files.files_below(tmp_path)
    assert files == []
    assert problem == f"{tmp_path}/1.png cannot be read: its folder may not be entered (x)."


def test_two_links_to_one_folder_are_a_problem(tmp_path):
    png_at(tmp_path / "store" / "1.png")
    for name in ("cats", "dogs"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).symlink_to(tmp_path / "store")
    files, problems = image_files.files_below(tmp_path / "train")
    assert len(files) == 1
    assert problems == [
        f"{tmp_path}/train/cats and {tmp_path}/train/dogs are one folder: remove one of the links."
    ]


def test_links_to_nothing_and_pipes_are_problems(tmp_path):
    png_at(tmp_path / "1.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "gone").symlink_to(tmp_path / "no folder")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    os.mkfifo(tmp_path / "pipe.png")
    files, problems = image_files.files_below(tmp_path)
    assert files == [tmp_path / "1.png"]
    assert sorted(problems) == [
        f"{tmp_path}/gone is a link to nothing. Remove it.",
        f"{tmp_path}/gone.png is a link to nothing. Remove it.",
        f"{tmp_path}/pipe.png is a pipe or a device. Remove it.",
        f"{tmp_path}/round.png is a link to nothing. Remove it.",
    ]


def test_a_folder_that_may_not_be_read_is_a_problem(tmp_path, monkeypatch):
    png_at(tmp_path / "1.png")
    png_at(tmp_path / "closed" / "2.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files, problems = image_files.files_below(tmp_path)
    assert files == [tmp_path / "1.png"]
    assert problems == [f"{tmp_path}/closed cannot be read: Permission denied."]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    for name in ("1.png", ".2.png", ".cache/3.png", "a/.4/5.png"):
        png_at(tmp_path / name)
    assert image_files.files_below(tmp_path) == ([tmp_path / "1.png"], [])


@pytest.mark.parametrize(
    "name", ["a.JPG", "b.pjpeg", "c.jpg_large", "d.tmp", "e", "f.png", "g.jpg.1", "h "]
)
def test_the_content_decides_whatever_the_name(name, tmp_path, read):
    path = tmp_path / name
    Image.fromarray(PIXELS).save(path, "JPEG", quality=90)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read(path), np.asarray(opened))


@pytest.mark.parametrize("name", ["scan.heic", "icon.ico", "photo.avif", "logo.svg"])
def test_images_of_other_formats_are_named(name, tmp_path, read):
    path = tmp_path / name
    path.write_bytes(b"<svg>" if name.endswith("svg") else bytes(range(64)))
    with pytest.raises(ValueError, match=f"{name} is not an image that can be read .PNG, JPEG"):
        read(path)


def test_a_folder_with_files_that_are_no_images_is_not_prepared_in_part(tmp_path):
    from tasks.prepare import datasets

    png_at(tmp_path / "train" / "1.png")
    (tmp_path / "train" / "metadata.jsonl").write_text("{}")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "lost.png").symlink_to("nowhere")
    png_at(tmp_path / "val" / "no suffix")
    (tmp_path / "README.md").write_text("# Images")
    with pytest.raises(SourceError) as caught:
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)
    for text in (
        "3 files are refused",
        "train/metadata.jsonl is not an image",
        "test/lost.png is a link to nothing",
        "val/no suffix lies in none of train, validation, test.",
    ):
        assert text in str(caught.value)
    assert "README.md" not in str(caught.value)


def test_files_of_any_name_and_linked_splits_are_prepared(tmp_path):
    from tasks.prepare import datasets

    for value, name in enumerate(("1.pjpeg", "2", "deep/3.PNG~")):
        png_at(tmp_path / "store" / name, value)
    for split in ("train", "test"):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / split).symlink_to(tmp_path / "store")
    source = image_folder.read(datasets.image_folder("mine"), [tmp_path / "own"], partial=False)
    assert source.sizes == {"train": 3, "test": 3}
    for records in source.splits.values():
        assert [int(record.image[0, 0, 0]) for record in records()] == [0, 1, 2]


# Orientation


@pytest.mark.parametrize("orientation", [2, 3, 8])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_an_orientation_is_refused_in_every_format(kind, orientation, tmp_path, read):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(PIXELS).save(path, exif=exif)
    with pytest.raises(ValueError, match=rf"a\.{kind} has EXIF orientation {orientation}: .*exif_"):
        read(path)


@pytest.mark.parametrize("orientation", [0, 1, 9])
@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_exif_data_that_turns_nothing_is_accepted(kind, orientation, tmp_path, read):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "a camera"
    Image.fromarray(PIXELS).save(tmp_path / "a", kind, exif=exif, **LOSSLESS[kind])
    np.testing.assert_array_equal(read(tmp_path / "a"), PIXELS)


def test_an_orientation_behind_the_pixels_of_a_png_is_found(tmp_path, read):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 5
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    path = tmp_path / "a.png"
    path.write_bytes(before_end(archives.png(PIXELS), chunk(b"eXIf", content)))
    with pytest.raises(ValueError, match=r"a\.png has EXIF orientation 5"):
        read(path)


def test_an_orientation_in_xmp_is_found(tmp_path, read):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="7"/></x:xmpmeta>'
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", xmp=xmp)
    with pytest.raises(ValueError, match=r"a\.jpg has EXIF orientation 7"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_one_picture_is_one_array_in_every_format(kind, tmp_path, read):
    Image.fromarray(PIXELS).save(tmp_path / "a", kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(read(tmp_path / "a"), PIXELS)


# Transparency, and what else Pillow drops


@pytest.mark.parametrize(("mode", "mark"), [("L", 7), ("RGB", (1, 2, 3))])
def test_a_transparent_colour_is_refused(mode, mark, tmp_path, read):
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "a.png", transparency=mark)
    with pytest.raises(ValueError, match=rf"a\.png marks a colour .* {mode} .*convert\('RGBA'\)"):
        read(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        opened.convert("RGBA").save(tmp_path / "b.png")  # as the message says
    assert read(tmp_path / "b.png").shape == (6, 9, 4)


def test_a_transparent_grey_of_a_gif_is_refused(tmp_path, read):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    grey.save(tmp_path / "a.gif")
    np.testing.assert_array_equal(read(tmp_path / "a.gif")[..., 0], np.asarray(grey))
    grey.save(tmp_path / "b.gif", transparency=3)
    with pytest.raises(ValueError, match=r"b\.gif .*convert\('RGBA'\)"):
        read(tmp_path / "b.gif")


@pytest.mark.parametrize(
    ("mode", "advice"), [("LA", "RGBA"), ("P", "RGB"), ("PA", "RGBA"), ("1", "L"), ("CMYK", "RGB")]
)
def test_advice_for_a_colour_mode_keeps_what_the_image_holds(mode, advice, tmp_path, read):
    source = Image.fromarray(PIXELS)
    image = source.convert("LA").convert("PA") if mode == "PA" else source.convert(mode)
    image.save(tmp_path / "a", {"CMYK": "JPEG", "PA": "TIFF"}.get(mode, "PNG"))
    with pytest.raises(ValueError, match=rf"got mode '{mode}' .*Image\.convert\('{advice}'\)`\."):
        read(tmp_path / "a")


@pytest.mark.parametrize("kind", [0, 1])
def test_extra_samples_of_a_tiff_are_refused(kind, tmp_path, read):
    """Pillow drops those of kind 0, and divides by those of kind 1, premultiplied alpha."""
    rgba = Image.fromarray(np.concatenate([PIXELS, PIXELS[..., :1]], -1))
    rgba.save(tmp_path / "2.tif")
    entry, content = struct.Struct("<HHIH"), (tmp_path / "2.tif").read_bytes()
    changed = content.replace(entry.pack(338, 3, 1, 2), entry.pack(338, 3, 1, kind))
    (tmp_path / f"{kind}.tif").write_bytes(changed)
    np.testing.assert_array_equal(read(tmp_path / "2.tif"), np.asarray(rgba))
    with pytest.raises(ValueError, match=rf"{kind}\.tif has ExtraSamples \({kind},\)"):
        read(tmp_path / f"{kind}.tif")


# Damage


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "bmp", "ppm", "gif"])
def test_a_file_that_is_cut_short_is_named(kind, tmp_path, read):
    out = io.BytesIO()
    every_grey = np.random.default_rng(0).permutation(1600).astype(np.uint8).reshape(40, 40)
    Image.fromarray(every_grey).save(out, kind)
    content = out.getvalue()
    path = tmp_path / f"a.{kind}"
    for end in (3, len(content) // 2, len(content) * 3 // 4):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=rf"a\.{kind} (cannot be|is not)"):
            read(path)


def test_a_changed_byte_of_a_png_is_found_by_its_checksum(tmp_path, read):
    content = bytearray(before_end(archives.png(PIXELS), chunk(b"tEXt", b"Title\0a picture")))
    content[content.index(b"picture")] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded: .*checksum"):
        read(tmp_path / "a.png")
