"""Archives made to harm: refused by name, nothing executed, nothing large allocated."""

import collections
import io
import pathlib
import pickle
import random
import re
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import archives
import numpy as np
import pytest

from tasks.prepare import (
    cifar10,
    datasets,
    image_folder,
    imagenet_new,
    imagenet_old,
    members,
    pickles,
    png,
    tfrecords,
)
from tasks.prepare.refusals import SourceError

MEGABYTE = 1 << 20
OLD, NEW = datasets.DATASETS["imagenet32_old"], datasets.DATASETS["imagenet32_new"]


def load(content):
    return pickles.load(lambda: io.BytesIO(content), len(content), "batch.pkl")


def drain(source):
    """Reads every record of every split, as the writer would; the number of images."""
    return sum(1 for records in source.splits.values() for _ in records())


@pytest.fixture(autouse=True)
def little_memory():
    """No refusal may need more than a few megabytes, whatever the archive claims."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * MEGABYTE


# Pickles


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_arrays_are_read(protocol):
    fields = {
        "data": np.arange(12, dtype=np.uint8).reshape(2, 6),
        "columns": np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(2, 6)),
        "big": np.arange(3, dtype=">i4"),
        "mean": np.linspace(0, 1, 6),
        "labels": [1, 300, 70000, 1 << 40],
        "name": "batch",
    }
    loaded = load(pickle.dumps(fields, protocol=protocol))
    assert loaded.keys() == fields.keys()
    for name, value in fields.items():
        np.testing.assert_array_equal(loaded[name], value)
    assert loaded["data"].dtype == np.uint8


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_follows_a_pickle_is_read_to_the_checksum(compression, tmp_path):
    content = pickle.dumps({"data": np.arange(12, dtype=np.uint8)}) + bytes(9_000)
    path = tmp_path / "v.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("val_data", content)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"PK\x01\x02") + 16] ^= 1  # the checksum itself
    path.write_bytes(damaged)
    (member,) = members.iterate(path, largest=10_000)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        pickles.load(member.open, member.size, str(member))


def test_python_2_pickles_are_read():
    data = np.arange(12, dtype=np.uint8).reshape(2, 6)
    loaded = load(archives.python2_pickle({b"data": data, b"labels": [1, 300], b"names": [b"a"]}))
    np.testing.assert_array_equal(loaded["data"], data)
    assert loaded["labels"] == [1, 300]
    assert loaded["names"] == [b"a"]
    own = pickle.loads(
        archives.python2_pickle({b"data": data, b"labels": [1, 300]}), encoding="bytes"
    )
    np.testing.assert_array_equal(own[b"data"], data)


class Runs:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(path):
    pathlib.Path(path).touch()


def global_call(module, name, argument):
    """`module.name(argument)` by the opcodes themselves."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(protocol, tmp_path):
    marker = tmp_path / "executed"
    content = pickle.dumps({"data": Runs(touch, str(marker))}, protocol=protocol)
    with pytest.raises(SourceError, match="touch|opcode"):
        load(content)
    assert not marker.exists()
    pickle.loads(content)  # it would have
    assert marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr")),
        *(("__builtin__", "eval"), ("subprocess", "Popen"), ("numpy", "load"), ("numpy", "array")),
        *(("numpy.core.multiarray", "fromfile"), ("numpy.testing._private.utils", "runstring")),
        *(
            ("_codecs", "decode"),
            ("numpy", "core.multiarray._reconstruct"),
            ("copyreg", "__newobj__"),
        ),
        *(("tasks.prepare.pickles", "_Unpickler"), ("numpy.core.multiarray", "scalar")),
    ],
)
def test_other_names_are_refused(module, name):
    with pytest.raises(SourceError, match=f"{module}.{name}"):
        load(global_call(module, name, "print(1)"))
    stack = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    stack += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    with pytest.raises(SourceError, match=f"{module}.{name}"):
        load(stack)


def array_pickle(shape=b"K\x02K\x03\x86", dtype=b"u1", raw=b"C\x06abcdef", start=b"K\x00\x85"):
    """A dict of one array, with the pieces that a forger would change."""
    return (
        b"\x80\x03}X\x04\x00\x00\x00datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + start
        + b"C\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nX"
        + struct.pack("<I", len(dtype))
        + dtype
        + b"K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + raw
        + b"tbs."
    )


def test_the_forgers_array_is_an_array_when_nothing_is_forged():
    np.testing.assert_array_equal(
        load(array_pickle())["data"], np.frombuffer(b"abcdef", np.uint8).reshape(2, 3)
    )
    # `_reconstruct` itself is never given a shape to allocate.
    huge = b"\x8a\x05" + (10**10).to_bytes(5, "little") + b"\x85"
    assert load(array_pickle(start=huge))["data"].shape == (2, 3)


TEN_GIGABYTES = 10 * 10**9
HOSTILE = {
    "array claims 10 GB": array_pickle(shape=b"\x8a\x05\x00\xe4\x0bT\x02K\x01\x86"),
    "negative shape": array_pickle(shape=b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff\x86"),
    "shape of texts": array_pickle(shape=b"X\x01\x00\x00\x00aK\x03\x86"),
    "objects": array_pickle(dtype=b"O8"),
    "structure": array_pickle(dtype=b"u1,u1"),
    "text dtype": array_pickle(dtype=b"S6"),
    "raw is a list": array_pickle(raw=b"](K\x01K\x02e"),
    "10 GB of bytes": b"\x80\x04\x8e" + struct.pack("<Q", TEN_GIGABYTES) + b"abc.",
    "10 GB of text": b"\x80\x04\x8d" + struct.pack("<Q", TEN_GIGABYTES) + b"abc.",
    "10 GB of bytearray": b"\x80\x05\x96" + struct.pack("<Q", TEN_GIGABYTES) + b"abc.",
    "2^63 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b"abc.",
    "4 GB of bytes": b"\x80\x03B\xff\xff\xff\xffabc.",
    "2 GB string": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "negative string": b"\x80\x02T\xff\xff\xff\xffabc.",
    "2 GB number": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "number of many bits": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    "memo of 32 GB": b"\x80\x02}r\xff\xff\xff\x7f.",
    "memo of 2^60": b"}p1152921504606846976\n.",
    "frame of 10 GB": b"\x80\x04\x95" + struct.pack("<Q", TEN_GIGABYTES) + b"}.",
    "deep tuples": b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "deep lists": b"(" * 10_000 + b"l" * 10_000 + b".",
    "persistent": b"Pabc\n.",
    "binary persistent": b"K\x01Q.",
    "extension": b"\x80\x02\x82\x01.",
    "instance": b"(ios\nsystem\n.",
    "object": b"(cos\nsystem\no.",
    "new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "state for a stand-in": b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
    "slots of a stand-in": b"cnumpy\ndtype\n(N}X\x08\x00\x00\x00__call__K\x01stb.",
    "call without arguments": b"cnumpy.core.multiarray\n_reconstruct\n)R.",
    "call of a text": b"X\x01\x00\x00\x00a)R.",
    "list": b"].",
    "number": b"K\x01.",
    "dict with a number for a key": b"}K\x01K\x02s.",
    "no stop": b"\x80\x03}",
    "empty": b"",
    "protocol 99": b"\x80\x63}.",
    "zeros": b"\0" * 100,
    "empty stack": b"0.",
    "bytes again and again": (
        b"\x80\x02X"
        + struct.pack("<I", 50_000)
        + b"a" * 50_000
        + b"q\x010]("
        + 900 * (b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R")
        + b"e."
    ),
    "another codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
}


# Each by the check that is meant for it, not by what `pickle` would say later.
REASONS = {
    **dict.fromkeys(["array claims 10 GB"], "claims 10,000,000,000 bytes and holds 6"),
    **dict.fromkeys(["negative shape", "shape of texts"], "array of shape"),
    **dict.fromkeys(["objects", "structure", "text dtype"], "which is no plain number"),
    "raw is a list": "array without bytes",
    **dict.fromkeys(["10 GB of bytes", "10 GB of text", "10 GB of bytearray"], "10,000,000,000"),
    **dict.fromkeys(["4 GB of bytes", "2 GB string", "2 GB number"], "where 4 are left"),
    "number of many bits": "number of 2,039 bits",
    "memo of 32 GB": "numbers one of its parts 2,147,483,647",
    "memo of 2^60": "numbers one of its parts 1,152",
    "deep tuples": "more than 1,000 tuples",
    **dict.fromkeys(["persistent", "binary persistent", "extension"], "opcode"),
    **dict.fromkeys(["instance", "new object"], "opcode"),
    "bytes again and again": "again and again",
    "another codec": "bytes written as",
    **dict.fromkeys(["list", "number"], "must be a pickled dict"),
    "dict with a number for a key": "a key that is no text",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_forged_pickles_are_refused(case):
    with pytest.raises(SourceError, match=REASONS.get(case, "batch.pkl")) as refusal:
        load(HOSTILE[case])
    assert "batch.pkl" in str(refusal.value)


def corrupted(content, rng):
    """One of the ways in which a file goes wrong."""
    content = bytearray(content)
    kind = rng.randrange(5)
    at = rng.randrange(len(content))
    if kind == 0:
        return bytes(content[:at])
    if kind == 1:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        content[at] = rng.randrange(256)
    elif kind == 3:
        content[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
    else:
        other = rng.randrange(len(content))
        content[at : at + 8] = content[other : other + 8]
    return bytes(content)


def fuzz(content, read, rounds, seed):
    """Feeds damaged copies to a reader: it may read them or refuse them, nothing else."""
    rng = random.Random(seed)
    outcomes = collections.Counter()
    for _ in range(rounds):
        damaged = content
        for _ in range(rng.randrange(1, 4)):
            damaged = corrupted(damaged, rng) or b"\0"
        try:
            read(damaged)
            outcomes["read"] += 1
        except SourceError as error:
            assert str(error)
            outcomes["refused"] += 1
    return outcomes


ROUNDS = [300, pytest.param(30_000, marks=pytest.mark.full)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_pickles(rounds):
    fields = {"data": np.arange(12, dtype=np.uint8).reshape(2, 6), "labels": [1, 300]}
    python2 = archives.python2_pickle({k.encode(): v for k, v in fields.items()})
    for number, content in enumerate(
        [python2, *(pickle.dumps(fields, protocol=each) for each in (2, 3, 4, 5))]
    ):
        outcomes = fuzz(content, load, rounds, number)
        assert outcomes["refused"] > rounds // 10


def write_and(read):
    def act(path, content):
        path.write_bytes(content)
        drain(read(path))

    return act


def sources(tmp_path):
    """Per reader, a small archive and a function that reads a file like it."""
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
    """The checksum of gzip is at the very end, behind the end mark of the tar."""
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
            with pytest.raises(SourceError, match="t.tar.gz goes on for more than 20,480 bytes"):
                list(found)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_tars_inside_their_compression(rounds, tmp_path):
    # Damage that the checksum of gzip would have caught.
    archives.tar(tmp_path / "t.tar", {"a/b.png": b"abc" * 300, "a/" + "c" * 120: b"d"})
    content = (tmp_path / "t.tar").read_bytes()[:4096]

    def read(damaged):
        (tmp_path / "x.tar").write_bytes(damaged)
        for member in members.iterate(tmp_path / "x.tar", largest=2048):
            member.read()

    assert fuzz(content, read, rounds, 0)["refused"] > 0


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_images(rounds):
    content = archives.png(archives.photos(1)[0])
    outcomes = fuzz(content, lambda c: png.decode_rgb(c, (32, 32, 3), "image"), rounds, 0)
    assert outcomes["refused"] > rounds // 2
    # With the checksums made right again, so that the decoder itself meets the damage.
    fuzz(content, lambda c: png.decode_rgb(with_checksums(c), (32, 32, 3), "image"), rounds, 1)


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
        list(source.check_records())


# Zip


def val_zip(path, name="val_data", content=None, **info):
    """A zip with one member, forged."""
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
    """Makes a zip's only member claim another size, wherever the size is written."""
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
    """A batch is a tenth of it, and is held in memory."""
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
    # More than there is, within bounds: nothing is allocated for it, and the images are whole.
    assert read_val(forged_size(val_zip(tmp_path / "v.zip"), 1_000_000)) == 3


def test_a_bomb_of_zeros(tmp_path):
    # 40 MB of nothing in 40 kB: within the bounds, and no pickle; read no further than needed.
    with pytest.raises(SourceError, match="val_data"):
        read_val(val_zip(tmp_path / "v.zip", content=bytes(40 * MEGABYTE)))


def test_a_truncated_zip(tmp_path):
    path = val_zip(tmp_path / "v.zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SourceError, match="v.zip is cut short"):
        read_val(path)


# npz


def npz(tmp_path, header=None, **arrays):
    """`val_data.npz`; `header` replaces that of "data"."""
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


# Tar


def tar_of(path, **fields):
    """`train_32x32.tar` with one good image and one forged member after it."""
    with tarfile.open(path, "w", format=fields.pop("format", tarfile.GNU_FORMAT)) as archive:
        good = archives.png(archives.photos(1)[0])
        content = fields.pop("content", good)
        first = tarfile.TarInfo("train_32x32/1.png")
        first.size = len(good)
        archive.addfile(first, io.BytesIO(good))
        second = tarfile.TarInfo(fields.pop("name", "train_32x32/2.png"))
        second.size = len(content)
        for field, value in fields.items():
            setattr(second, field, value)
        # Not `addfile`, which would hold the claim to the content.
        archive.fileobj.write(second.tobuf(archive.format, archive.encoding, archive.errors))
        archive.fileobj.write(content + bytes(-len(content) % 512) + bytes(1024))
    return path


def read_tar(path):
    return drain(imagenet_old.read(OLD, [path], partial=True))


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
        ({"content": b"abc"}, "2.png in .* must be a PNG file"),
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


# PNG


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_checksums(content):
    """The same chunks with the right checksums."""
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
    return png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


GOOD = archives.photos(1)[0]
BAD_PNGS = {
    "bomb": (claims(50_000, 50_000), "must measure 32x32, got 50000x50000"),
    "other size": (archives.png(archives.photos(1, 16)[0]), "must measure 32x32, got 16x16"),
    "grey": (archives.png(GOOD[..., :1]), "must be 8-bit RGB, got 8-bit grey"),
    "palette": (claims(32, 32, colour=3), "got 8-bit palette"),
    "16 bits": (claims(32, 32, depth=16), "got 16-bit RGB"),
    "alpha": (archives.png(np.concatenate([GOOD, GOOD[..., :1]], -1)), "got 8-bit RGB with alpha"),
    "few pixels": (claims(32, 32), "cannot be decoded"),
    "truncated": (archives.png(GOOD)[:-20], "cut short"),
    "flipped": (archives.png(GOOD)[:200] + b"x" + archives.png(GOOD)[201:], "wrong checksum"),
    "no pixels": (png.SIGNATURE + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b""), "lacks"),
    "signature alone": (png.SIGNATURE, "not a whole PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0abc", "must be a PNG file"),
    "empty": (b"", "must be a PNG file"),
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
        assert png.header(png.encode(image), "image")[:3] == (32, 32, 8)
    np.testing.assert_array_equal(png.decode_rgb(png.encode(GOOD), (32, 32, 3), "image"), GOOD)


# Image folders


def test_all_problems_of_a_folder_are_told_at_once(tmp_path):
    from PIL import Image

    archives.image_folder(tmp_path, {"train": 4, "test": 2}, shape=(8, 8, 3))
    rgb = archives.photos(1, 8)[0]
    bad = {
        "truncated.png": archives.png(rgb)[:-20],
        "bomb.png": claims(8_000, 8_000),
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
    assert "12 files are no good" in message
    assert "and 2 more" in message
    assert "bomb.png: claims 8,000 x 8,000 pixels" in message
    assert "deep.png: 16 bits per channel, where 8 bits are read. Convert" in message
    assert "colours.png: colour mode P" in message
    assert sum(name in message for name in [*bad, "lost.png"]) == 10
    assert len(message) < 3000
    for name in [*bad, "lost.png"]:
        path = tmp_path / "train" / name if name in bad else tmp_path / name
        path.unlink()
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "notes.txt").write_bytes(b"x")
    source = image_folder.read(dataset, [tmp_path], partial=False)
    assert source.sizes == {"train": 4, "test": 2}
    assert source.image_shape == (8, 8, 3)


def test_an_image_file_of_gigabytes(tmp_path):
    archives.image_folder(tmp_path, {"train": 2})
    with (tmp_path / "train" / "huge.bmp").open("wb") as file:
        file.truncate(TEN_GIGABYTES)
    with pytest.raises(SourceError, match="huge.bmp: larger than 268,435,456 bytes"):
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)


@pytest.mark.parametrize("name", archives.not_8_bits())
def test_depths_that_pillow_would_change(name, tmp_path):
    content, found = archives.not_8_bits()[name]
    archives.image_folder(tmp_path, {"train": 2}, shape=(6, 5, 3))
    (tmp_path / "train" / name).write_bytes(content)
    if name.endswith(".tif"):
        found = "is not read"
    with pytest.raises(SourceError, match=re.escape(f"train/{name}: ") + ".*" + re.escape(found)):
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_of_a_folder(suffix, channels, tmp_path):
    from PIL import Image

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


def test_splits_mixed_in_one_tar(tmp_path):
    path = tar_of(tmp_path / "t.tar", name="valid_32x32/2.png")
    with pytest.raises(SourceError, match="valid_32x32/2.png in .* is not of split 'train'"):
        read_tar(path)
