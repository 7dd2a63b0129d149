"""A user's own images in an .npz file: read as they are, or refused with the array's name."""

import io
import struct
import zipfile

import fake_tfds
import numpy as np
import pytest

from idode_gin.feed import data, loading

SHAPE = (6, 5, 3)


def load(path, split="train"):
    config = data.DatasetConfig(
        mixture_or_task_name="image_npz", split=split, batch_size=1, data_path=str(path)
    )
    return loading.load_split(config).images


def test_integers_above_255_are_read_from_an_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 1 << 16, (7, *SHAPE)).astype(np.uint16)
    np.savez(tmp_path / "own.npz", train=images)
    found = load(tmp_path / "own.npz")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, images)


def npy(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


class Evil:
    """Unpickled, it would call what must never be called."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def huge() -> bytes:
    """An array's header that claims 12 TB."""
    out = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1_000_000_000, 64, 64, 3)}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def header_of(text: str) -> bytes:
    """An array whose header is this text."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode().ljust(118) + bytes(99)


BAD_ARRAYS = {
    "float": (npy(np.zeros((2, 6, 5, 3))), r"must be uint8 or .* \[N, H, W, C\] .* got float64"),
    "no channels": (
        npy(np.zeros((2, 6, 5), np.uint8)),
        r"got uint8 \[2, 6, 5\]\. Grey .* images\[\.\.\., None\]",
    ),
    "channels first": (
        npy(np.zeros((2, 3, 9, 9), np.uint8)),
        r"must be \[N, H, W, C\], got \[2, 3, 9, 9\], .* Save numpy\.moveaxis\(images, 1, -1\)",
    ),
    "one channel first": (
        npy(np.zeros((2, 1, 6, 6), np.uint8)),
        "images of 6 channels: .*moveaxis",
    ),
    "empty": (npy(np.zeros((0, 6, 5, 3), np.uint8)), r"not empty, got uint8 \[0, 6, 5, 3\]"),
    "huge": (huge(), "claims 12,288,000,000,128 bytes, and the file holds"),
    "cut": (
        npy(fake_tfds.random_images(27, (6, 5, 3)))[:-9],
        "claims 2,558 bytes, and the file holds 2,549",
    ),
    "no array": (b"text", "cannot be read"),
    "another version": (b"\x93NUMPY\x09\x00" + bytes(99), "cannot be read"),
    "an open bracket": (header_of("((((("), "cannot be read"),
    "an odd indent": (header_of("  a\n b"), "cannot be read"),
    "no shape": (header_of("{'descr': '|u1'}"), "cannot be read"),
    "wide": (npy(np.zeros((2, 6, 5, 3), np.int64)), r"must be uint8 or uint16 .* got int64"),
    "more than it says": (npy(np.zeros((2, 6, 5, 3), np.uint8)) + b"x", "holds more than"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_a_bad_array_is_refused(kind, tmp_path):
    content, message = BAD_ARRAYS[kind]
    path = npz(tmp_path / "own.npz", train=content)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_member_that_is_no_array_by_its_name_is_none(tmp_path):
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train", npy(np.zeros((2, 6, 5, 3), np.uint8)))
    with pytest.raises(ValueError, match="own.npz cannot be .* no array 'train'; arrays: none"):
        load(path)


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_read_whole_or_named(compress, tmp_path):
    from tasks.support import npz_arrays

    images = fake_tfds.random_images(3, SHAPE)
    out = io.BytesIO()
    compress(out, train=images)
    path, rng = tmp_path / "own.npz", np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(out.getvalue())
        start = int(rng.integers(len(content)))
        content[start : start + 4] = [b"\xff" * 4, bytes(4), rng.bytes(4)][rng.integers(3)]
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(npz_arrays.read_array(path, "train"), images)
        except ValueError as error:
            assert type(error) is ValueError
            assert str(path) in str(error)
            refused += 1
    assert refused > 200


def test_a_pickle_is_refused_and_not_run(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, train=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match=r"own\.npz cannot be read"):
        load(path)


def test_a_file_that_is_no_npz_or_lacks_the_split_is_named(tmp_path):
    path = tmp_path / "own.npz"
    for content in (b"", b"PK text", npy(np.zeros((2, 6, 5, 3), np.uint8))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"own\.npz cannot be read"):
            load(path)
    np.savez(path, train=np.zeros((2, 6, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="there is no array 'test'; arrays: train"):
        load(path, "test")
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path)
