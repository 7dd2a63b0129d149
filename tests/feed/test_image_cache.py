"""The cache of decoded images: written once, whole or not at all, and never believed blindly."""

import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest

from idode_gin.feed import image_cache, image_fingerprints

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)


def never():
    raise AssertionError("decoded again")


def pieces():
    return iter(np.split(IMAGES, [7, 20]))


def load(folder, decode=pieces, key="k1", **changes):
    return image_cache.load(folder, "made/train", key, decode, **({"memory_map": True} | changes))


@pytest.mark.parametrize("memory_map", [False, True])
def test_decoded_once(tmp_path, memory_map):
    first = load(tmp_path, memory_map=memory_map)
    again = load(tmp_path, never, memory_map=memory_map)
    for found in (first, again):
        np.testing.assert_array_equal(found.images, IMAGES)
        assert isinstance(found.images, np.memmap) == memory_map
        assert not found.images.flags.writeable
        assert found.fingerprint == image_fingerprints.fingerprint(IMAGES)
    (path,) = tmp_path.glob("*.npy")
    assert path.name == f"made_train-k1-{first.fingerprint.sha256[:16]}.npy"
    np.testing.assert_array_equal(np.load(path), IMAGES)  # an ordinary NumPy file


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16])
def test_any_number_and_type_of_images(tmp_path, dtype):
    for count in (1, 9, 10, 1000):
        images = np.arange(count * 6, dtype=dtype).reshape(count, 1, 2, 3)
        found = load(tmp_path, lambda images=images: [images], key=f"{count}")
        np.testing.assert_array_equal(found.images, images)
        assert found.images.dtype == dtype


def test_what_killed_processes_left_is_gone_before_the_room_is_checked(tmp_path, monkeypatch):
    """Of this split alone: another one may be decoded at the same time."""
    for name in ("made_train-k1", "made_train-k2"):
        (tmp_path / f".{name}.1_ab.partial").touch()
    seen = []
    monkeypatch.setattr(
        image_cache, "check_space", lambda *_: seen.extend(tmp_path.glob(".*.partial"))
    )
    load(tmp_path)
    assert [each.name for each in seen] == [".made_train-k2.1_ab.partial"]


def test_other_files_are_decoded_for_themselves(tmp_path):
    load(tmp_path)
    other = load(tmp_path, lambda: [IMAGES[:3]], key="k2")
    assert len(other.images) == 3
    assert len(load(tmp_path, never).images) == 50


def test_a_copied_cache_is_looked_at_and_used(tmp_path):
    load(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)
    np.testing.assert_array_equal(load(tmp_path / "b", never).images, IMAGES)


HARMS = ["flipped bit", "cut short", "empty", "gone", "no json", "half a json"]


@pytest.mark.parametrize("how", HARMS)
def test_damage_is_found_and_decoded_again(tmp_path, how):
    load(tmp_path)
    (path,) = tmp_path.glob("*.npy")
    described = path.with_suffix(".json")
    if how == "flipped bit":
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    elif how == "no json":
        described.unlink()
    else:
        described.write_text(described.read_text()[:40])
    np.testing.assert_array_equal(load(tmp_path).images, IMAGES)
    np.testing.assert_array_equal(load(tmp_path, never).images, IMAGES)


def test_a_failing_decoder_leaves_nothing(tmp_path):
    def failing():
        yield IMAGES[:7]
        raise ValueError("image 7 is unreadable")

    with pytest.raises(ValueError, match="image 7"):
        load(tmp_path, failing)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def die(folder):
    def dying():
        yield IMAGES[:7]
        os._exit(9)

    load(folder, dying)


def decode_slowly(folder, queue):
    def slowly():
        queue.put("decoded")
        yield from pieces()

    assert len(load(folder, slowly).images) == 50


def test_a_process_that_dies_leaves_nothing_that_counts(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not list(tmp_path.glob("*.json"))
    np.testing.assert_array_equal(load(tmp_path).images, IMAGES)


def test_of_several_processes_one_decodes(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=decode_slowly, args=(tmp_path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert queue.get() == "decoded"
    assert queue.empty()


def test_a_folder_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be kept in .*cache_dir = ''"):
        load(tmp_path / "file")
    with pytest.raises(ValueError, match=r"needs 1000000000\.00 GB"):
        load(tmp_path, expected_bytes=10**18)
    assert json.dumps([path.name for path in tmp_path.glob("*.npy")]) == "[]"


def test_an_error_of_the_files_that_are_decoded_is_theirs(tmp_path):
    def unreadable():
        yield IMAGES[:7]
        raise PermissionError(13, "Permission denied", str(tmp_path / "mine" / "a.png"))

    with pytest.raises(PermissionError, match=r"mine/a\.png"):
        load(tmp_path / "cache", unreadable)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IDODE_CACHE_DIR", raising=False)
    assert image_cache.default_directory() == tmp_path / "idode_gin"
    monkeypatch.setenv("IDODE_CACHE_DIR", "/somewhere")
    assert str(image_cache.default_directory()) == "/somewhere"


def test_a_whole_cache_is_used_without_writing(tmp_path, monkeypatch):
    """A shared folder may be read-only."""
    load(tmp_path)
    monkeypatch.setattr(image_cache, "only_one", never)
    monkeypatch.setattr(image_cache.files, "write_atomically", never)
    np.testing.assert_array_equal(load(tmp_path, never).images, IMAGES)
