"""Archives made to harm: refused by name, nothing executed, nothing large allocated."""

import io
import pickle
import random
import struct
import tarfile
import tracemalloc
import zipfile

import archives
import numpy as np
import pytest
from hostile import (
    MEGABYTE,
    NEW,
    OLD,
    ROUNDS,
    Runs,
    drain,
    fuzz,
    little_memory,  # noqa: F401
    read_tar,
    tar_of,
    touch,
)

from tasks.prepare import cifar10, datasets, imagenet_new, imagenet_old, members
from tasks.prepare.refusals import SourceError


def write_and(read):
    def act(path, content):
        path.write_bytes(content)
        drain(read(path))

    return act


def sources(tmp_path):
    """Return name of a small archive -> a function that reads a file like it."""
    archives.cifar10_python(tmp_path / "p.tar.gz", 5, 2)
    archives.cifar10_binary(tmp_path / "b.tar.gz", 5, 2)
    archives.imagenet_zip_pickles(tmp_path, 10, 2)
    archives.imagenet_npz(tmp_path, 10, 2)
    archives.imagenet_old_tars(tmp_path, 3, 2)

    def read_cifar10(path):
        return cifar10.read([path], partial=True)

    def read_new(path):
        return imagenet_new.read(NEW, [path], partial=True)

    def read_old(path):
        return imagenet_old.read(OLD, [path], partial=True)

    return {
        "p.tar.gz": read_cifar10,
        "b.tar.gz": read_cifar10,
        "Imagenet32_train.zip": read_new,
        "Imagenet32_val_npz.zip": read_new,
        "train_32x32.tar": read_old,
    }


@pytest.mark.parametrize("rounds", [60, pytest.param(3_000, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "name",
    ["p.tar.gz", "b.tar.gz", "Imagenet32_train.zip", "Imagenet32_val_npz.zip", "train_32x32.tar"],
)
def test_fuzzed_archives(name, rounds, tmp_path):
    read = sources(tmp_path)[name]
    assert drain(read(tmp_path / name)) > 0
    (tmp_path / "damaged").mkdir()
    target = tmp_path / "damaged" / name
    act = write_and(read)
    outcomes = fuzz((tmp_path / name).read_bytes(), lambda c: act(target, c), rounds, name)
    assert outcomes["refused"] > rounds // 4
    assert sorted(each.name for each in (tmp_path / "damaged").iterdir()) == [name]


@pytest.mark.parametrize("name", ["p.tar.gz", "b.tar.gz"])
def test_no_flipped_bit_in_a_compressed_tar_goes_unnoticed(name, tmp_path):
    """The checksum of gzip is at the end of the file, behind the end mark of the tar."""
    read = sources(tmp_path)[name]
    target = tmp_path / f"flipped.{name}"
    content = (tmp_path / name).read_bytes()
    rng = random.Random(name)
    for place in [*(rng.randrange(32, len(content)) for _ in range(40)), *range(-8, 0)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        target.write_bytes(flipped)
        with pytest.raises(SourceError, match=str(target)):
            drain(read(target))


def test_a_tar_that_goes_on_after_its_end_mark(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr(members, "_LARGEST_END", 20_480)
    archives.tar(tmp_path / "plain.tar", {"a": b"b"})
    content = (tmp_path / "plain.tar").read_bytes()
    for more, fits in ((10_000, True), (30_000, False)):
        path = tmp_path / "t.tar.gz"
        path.write_bytes(gzip.compress(content + bytes(more)))
        found = (member.read() for member in members.iterate(path, largest=9))
        if fits:
            assert list(found) == [b"b"]
        else:
            with pytest.raises(SourceError, match="t.tar.gz has more than 20,480 bytes"):
                list(found)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_tars_inside_their_compression(rounds, tmp_path):
    # Without gzip, whose checksum would find the damage first.
    archives.tar(tmp_path / "t.tar", {"a/b.png": b"abc" * 300, "a/" + "c" * 120: b"d"})
    content = (tmp_path / "t.tar").read_bytes()[:4096]

    def read(damaged):
        (tmp_path / "x.tar").write_bytes(damaged)
        for member in members.iterate(tmp_path / "x.tar", largest=2048):
            member.read()

    assert fuzz(content, read, rounds, 0)["refused"] > 0


def val_zip(path, name="val_data", content=None, **info):
    """Write a zip with one member whose header is forged by `info`."""
    if content is None:
        images = archives.photos(3)
        content = pickle.dumps({"data": archives.channel_first(images), "labels": [1, 2, 3]})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(name)
        member.compress_type = zipfile.ZIP_DEFLATED
        for field, value in info.items():
            setattr(member, field, value)
        archive.writestr(member, content)
    return path


def read_val(path):
    return drain(imagenet_new.read(NEW, [path], partial=True))


def test_the_forgers_zip_is_read_when_nothing_is_forged(tmp_path):
    assert read_val(val_zip(tmp_path / "v.zip")) == 3


@pytest.mark.parametrize(
    "name", ["../val_data", "/val_data", "a/../../val_data", "C:/val_data", "..\\val_data"]
)
def test_zip_slip(name, tmp_path):
    with pytest.raises(SourceError, match="leads out of the archive"):
        read_val(val_zip(tmp_path / "v.zip", name))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["v.zip"]


def test_links_in_a_zip(tmp_path):
    with pytest.raises(SourceError, match=r"val_data in .* is a link"):
        read_val(val_zip(tmp_path / "v.zip", content=b"/etc/passwd", external_attr=0o120777 << 16))


def test_encrypted_members(tmp_path):
    path = val_zip(tmp_path / "v.zip")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match="is encrypted. This is not"):
        read_val(path)


def forged_size(path, size):
    """Make a zip's only member claim another size, in both places that state it."""
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[22:26] = content[central + 24 : central + 28] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def test_a_zip_that_claims_gigabytes(tmp_path):
    path = forged_size(val_zip(tmp_path / "v.zip", "a/val_data"), 0xFFFFFFF0)
    with pytest.raises(SourceError, match=r"a/val_data in .*claims 4,294,967,280 bytes"):
        read_val(path)


def test_a_member_as_large_as_the_whole_split(tmp_path):
    """A batch holds a tenth of the split, and is held in memory."""
    largest = int(1.05 * 128_117) * 3072 + 16 * MEGABYTE
    path = forged_size(val_zip(tmp_path / "v.zip"), largest + 1)
    with pytest.raises(SourceError, match=rf"val_data in .* claims {largest + 1:,} bytes"):
        read_val(path)
    assert read_val(forged_size(path, largest)) == 3
    alone = tmp_path / "val_data"
    with alone.open("wb") as file:
        file.truncate(largest + 1)  # sparse: it takes no disk
    with pytest.raises(SourceError, match="val_data in .* claims"):
        read_val(alone)


def test_more_images_than_any_batch_has(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.NEW_SIZES, "train", 10)
    monkeypatch.setitem(datasets.NEW_SIZES, "validation", 2)
    for path in (val_zip(tmp_path / "v.zip"), npz(tmp_path)):
        with pytest.raises(SourceError, match="holds 3 images, more than any batch of the new"):
            read_val(path)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
HUGE = b"\xff\xff\xff\x7f"
FORGED_ZIPS = {
    "directory before the file": (END, {16: HUGE}),
    "directory larger than the file": (END, {12: HUGE}),
    "member beyond the file": (CENTRAL, {42: HUGE}),
    "name without letters": (CENTRAL, {46: b"\0"}),
    "name not in UTF-8": (CENTRAL, {8: b"\0\x08", 46: b"\xff"}),
    "name at the member not in UTF-8": (LOCAL, {6: b"\0\x08", 30: b"\xff"}),
    "unknown compression": (CENTRAL, {10: b"\x63\0"}),
    "version 99": (CENTRAL, {6: b"\xff\0"}),
}


@pytest.mark.parametrize("case", FORGED_ZIPS)
@pytest.mark.parametrize("write", ["zip", "npz"])
def test_forged_directories_of_a_zip(write, case, tmp_path):
    path = val_zip(tmp_path / "v.zip") if write == "zip" else npz(tmp_path)
    marker, changes = FORGED_ZIPS[case]
    content = bytearray(path.read_bytes())
    for at, value in changes.items():
        start = content.index(marker) + at
        content[start : start + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(SourceError, match=path.name):
        read_val(path)


def test_a_zip_that_claims_another_size(tmp_path):
    with pytest.raises(SourceError, match="val_data"):
        read_val(forged_size(val_zip(tmp_path / "v.zip"), 10))
    # A claim above the content but within bounds allocates nothing; the images are complete.
    assert read_val(forged_size(val_zip(tmp_path / "v.zip"), 1_000_000)) == 3


def test_a_bomb_of_zeros(tmp_path):
    # 40 MB of zeros in 40 kB, within bounds: no pickle, so reading stops at the first byte.
    with pytest.raises(SourceError, match="val_data"):
        read_val(val_zip(tmp_path / "v.zip", content=bytes(40 * MEGABYTE)))


def test_a_truncated_zip(tmp_path):
    path = val_zip(tmp_path / "v.zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SourceError, match="v.zip is cut short"):
        read_val(path)


def npz(tmp_path, header=None, **arrays):
    """Write `val_data.npz`; `header` replaces that of "data"."""
    fields = {"data": archives.channel_first(archives.photos(3)), "labels": np.arange(3), **arrays}
    path = tmp_path / "val_data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in fields.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, value, allow_pickle=True)
            content = buffer.getvalue()
            if name == "data" and header is not None:
                padded = header.encode().ljust(117) + b"\n"
                content = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + padded + content[128:]
            archive.writestr(f"{name}.npy", content)
    return path


def test_the_forgers_npz_is_read_when_nothing_is_forged(tmp_path):
    assert read_val(npz(tmp_path)) == 3
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 3072)}"
    assert read_val(npz(tmp_path, header)) == 3


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (3000000, 3072)}", "and holds 9,216"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-3, -3072)}", "and holds 9,216"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 3072, 0)}", "and holds 9,216"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 3072)}", "and holds 9,216"),
        ("{'descr': '|u1', 'fortran_order': True, 'shape': (3, 3072)}", "column by column"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (3, 384)}", "must hold numbers"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (3, 1536)}", "must hold uint8"),
        (
            "{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').getcwd()}",
            "not an array",
        ),
        (
            "((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((",
            "not an array",
        ),
        ("{'descr': '|u1'}", "not an array"),
        ("", "not an array"),
    ],
)
def test_forged_npz_headers(header, message, tmp_path):
    with pytest.raises(SourceError, match=message) as refusal:
        read_val(npz(tmp_path, header))
    assert "val_data.npz" in str(refusal.value)


def test_pickled_objects_in_an_npz(tmp_path):
    marker = tmp_path / "executed"
    objects = np.array([Runs(touch, str(marker))] * 3, object)
    with pytest.raises(SourceError, match=r"labels in val_data.npz"):
        read_val(npz(tmp_path, labels=objects))
    with pytest.raises(SourceError, match=r"data in val_data.npz"):
        read_val(npz(tmp_path, data=objects))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(4), "4 labels for 3 images"),
        (np.array(3), r"none \[N\] for 3 images"),
        (np.ones((3, 2), int), r"none \[N\] for 3 images"),
    ],
)
def test_labels_of_another_number(labels, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        read_val(npz(tmp_path, labels=labels))
    fields = {"data": archives.channel_first(archives.photos(3)), "labels": labels}
    with pytest.raises(SourceError, match=message):
        read_val(val_zip(tmp_path / "v.zip", content=pickle.dumps(fields)))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_forgers_tar_is_read_when_nothing_is_forged(form, tmp_path):
    assert read_tar(tar_of(tmp_path / "t.tar", format=form)) == 2
    assert read_tar(tar_of(tmp_path / "t.tar", format=form, name="train_32x32/._2.png")) == 1
    long = f"train_32x32/{'a' * 150}.png"
    if form != tarfile.USTAR_FORMAT:
        path = tar_of(tmp_path / "t.tar", format=form, name=long, mtime=1.5)
        (records,) = imagenet_old.read(OLD, [path], partial=True).splits.values()
        assert [record.key for record in records()] == ["train_32x32/1.png", long]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "/etc/passwd"}, "named '/etc/passwd', which leads out"),
        ({"name": "../2.png"}, "named '../2.png', which leads out"),
        ({"name": "train_32x32/../../2.png"}, "leads out"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "2.png in .* is a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "train_32x32/1.png"}, "is a link"),
        ({"type": tarfile.CHRTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a device"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "sparse"),
        ({"size": 10 * 10**9}, "2.png in .* claims 10,000,000,000 bytes"),
        ({"size": 60_000}, "2.png in .* is cut short"),
        ({"name": "train_32x32/1.png"}, "1.png in .* is there twice"),
        ({"name": "train_32x32/2.txt"}, "2.txt in .* is no PNG"),
        ({"content": b"abc"}, "2.png in .* cannot be read as PNG"),
        (
            {"format": tarfile.PAX_FORMAT, "pax_headers": {"GNU.sparse.realsize": "10000000000"}},
            "sparse",
        ),
        ({"format": tarfile.PAX_FORMAT, "pax_headers": {"path": "../../x.png"}}, "leads out"),
        ({"format": tarfile.PAX_FORMAT, "pax_headers": {"comment": "a" * 2 * MEGABYTE}}, "header"),
    ],
)
def test_forged_tars(fields, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        read_tar(tar_of(tmp_path / "t.tar", **fields))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["t.tar"]


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 3000])
def test_truncated_tars(keep, tmp_path):
    path = tar_of(tmp_path / "t.tar")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=str(path)):
        read_tar(path)


def test_a_tar_without_its_end_mark(tmp_path):
    path = tar_of(tmp_path / "t.tar")
    content = path.read_bytes()
    path.write_bytes(
        content.rstrip(b"\0").ljust(-(-len(content.rstrip(b"\0")) // 512) * 512, b"\0")
    )
    with pytest.raises(SourceError, match="lacks the end mark"):
        read_tar(path)


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path):
    """`tarfile` would stop before it, without an error."""
    path = tar_of(tmp_path / "t.tar")
    content = bytearray(path.read_bytes())
    content[content.index(b"train_32x32/2.png")] ^= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match="t.tar is cut short or damaged .bad checksum"):
        read_tar(path)


def test_a_damaged_header_is_found_by_newer_pythons_too(tmp_path, monkeypatch):
    """From 3.12.14 on, `fromtarfile` calls `_frombuf`, which is told where the archive begins."""
    original = tarfile.TarInfo.__dict__.get("_frombuf")
    if original is None:

        def _frombuf(cls, buf, encoding, errors, *, dircheck=True):
            return tarfile.TarInfo.frombuf.__func__(cls, buf, encoding, errors)

        def fromtarfile(cls, tar):
            header = cls._frombuf(tar.fileobj.read(512), tar.encoding, tar.errors, dircheck=False)
            header.offset = tar.fileobj.tell() - 512
            return header._proc_member(tar)

        monkeypatch.setattr(tarfile.TarInfo, "_frombuf", classmethod(_frombuf), raising=False)
        monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(fromtarfile))
    path = tar_of(tmp_path / "t.tar")
    read_tar(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"train_32x32/2.png")] ^= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match="t.tar is cut short or damaged .bad checksum"):
        read_tar(path)


def test_headers_of_a_tar_are_not_kept(tmp_path):
    archives.tar(tmp_path / "t.tar", {f"{i:05}.png": b"" for i in range(20_000)})
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    assert sum(1 for _ in members.iterate(tmp_path / "t.tar", largest=9)) == 20_000
    assert tracemalloc.get_traced_memory()[1] - before < 2 * MEGABYTE


def test_splits_mixed_in_one_tar(tmp_path):
    path = tar_of(tmp_path / "t.tar", name="valid_32x32/2.png")
    with pytest.raises(SourceError, match="valid_32x32/2.png in .* is not of split 'train'"):
        read_tar(path)
