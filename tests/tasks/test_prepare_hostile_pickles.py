"""Pickles made to harm: refused by name, nothing executed, nothing large allocated."""

import functools
import io
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import archives
import numpy as np
import pytest
from hostile import MEGABYTE, ROUNDS, TEN_GIGABYTES, Runs, fuzz, little_memory, touch  # noqa: F401

from tasks.prepare import members, pickles
from tasks.prepare.refusals import SourceError


def load(content):
    opened = functools.partial(io.BytesIO, content)
    source = pathlib.Path("archive.zip")
    member = members.Member(source=source, name="batch.pkl", size=len(content), open=opened)
    return pickles.load(member)


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
    with pytest.raises(SourceError, match="val_data in .*CRC"):
        pickles.load(member)


def test_an_array_is_held_in_memory_once(tmp_path):
    data = np.random.default_rng(0).integers(0, 9, 16 * MEGABYTE, np.uint8)
    with zipfile.ZipFile(tmp_path / "v.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("val_data", pickle.dumps({"data": data}))
    (member,) = members.iterate(tmp_path / "v.zip", largest=1 << 30)
    tracemalloc.clear_traces()
    loaded = pickles.load(member)
    assert tracemalloc.get_traced_memory()[1] < data.nbytes + 8 * MEGABYTE
    assert loaded["data"].tobytes() == data.tobytes()
    tracemalloc.clear_traces()


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


def global_call(module, name, argument):
    """Return the opcodes of `module.name(argument)`."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(protocol, tmp_path):
    marker = tmp_path / "executed"
    content = pickle.dumps({"data": Runs(touch, str(marker))}, protocol=protocol)
    with pytest.raises(SourceError, match="calls for hostile.touch"):
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
    """Return a pickled dict of one array; the arguments replace parts of it."""
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
    "deep tuples": b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.",
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
        + struct.pack("<I", 200_000)
        + b"a" * 200_000
        + b"q\x010]("
        + 900 * (b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R")
        + b"e."
    ),
    "another codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
}
# The check that must refuse each, rather than a later error of `pickle`.
REASONS = {
    **dict.fromkeys(["array claims 10 GB"], "claims 10,000,000,000 bytes and holds 6"),
    **dict.fromkeys(["negative shape", "shape of texts"], "array of shape"),
    **dict.fromkeys(["objects", "structure", "text dtype"], "which is no plain number"),
    "raw is a list": "array without bytes",
    **dict.fromkeys(["10 GB of bytes", "10 GB of text", "10 GB of bytearray"], "only 4 remain"),
    **dict.fromkeys(["4 GB of bytes", "2 GB string"], "only 4 remain"),
    "2 GB number": "not enough data",
    "number of many bits": "number of 2,039 bits",
    "memo of 32 GB": "numbers one of its parts 2,147,483,647",
    "memo of 2^60": "numbers one of its parts 1,152",
    "deep tuples": "more than 1,000 tuples",
    **dict.fromkeys(["persistent", "binary persistent"], "persistent"),
    "extension": "unregistered extension",
    "instance": "calls for os.system",
    "new object": "must be a type",
    "bytes again and again": "must be a pickled dict",
    "another codec": "bytes written as",
    **dict.fromkeys(["list", "number"], "must be a pickled dict"),
    "dict with a number for a key": "a key that is no text",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_forged_pickles_are_refused(case):
    with pytest.raises(SourceError, match=REASONS.get(case, "batch.pkl")) as refusal:
        load(HOSTILE[case])
    assert "batch.pkl" in str(refusal.value)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fuzzed_pickles(rounds):
    fields = {"data": np.arange(12, dtype=np.uint8).reshape(2, 6), "labels": [1, 300]}
    python2 = archives.python2_pickle({k.encode(): v for k, v in fields.items()})
    for number, content in enumerate(
        [python2, *(pickle.dumps(fields, protocol=each) for each in (2, 3, 4, 5))]
    ):
        outcomes = fuzz(content, load, rounds, number)
        assert outcomes["refused"] > rounds // 10
