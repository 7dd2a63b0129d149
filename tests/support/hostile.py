"""Hostile archives, damage at random, and a bound on the memory that a refusal may take."""

import collections
import io
import pathlib
import random
import tarfile
import tracemalloc

import archives
import pytest

from tasks.prepare import datasets, imagenet_old
from tasks.prepare.refusals import SourceError

MEGABYTE = 1 << 20
TEN_GIGABYTES = 10 * 10**9
OLD, NEW = datasets.DATASETS["imagenet32_old"], datasets.DATASETS["imagenet32_new"]
ROUNDS = [300, pytest.param(30_000, marks=pytest.mark.full)]


@pytest.fixture(autouse=True)
def little_memory():
    """Fail a test whose refusal takes more than 64 MB, whatever the archive claims."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * MEGABYTE


def drain(source):
    """Read every record of every split, as the writer would; return the number of images."""
    return sum(1 for records in source.splits.values() for _ in records())


class Runs:
    """An object that is pickled as a function call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(path):
    pathlib.Path(path).touch()


def corrupted(content, rng):
    """Return the content with one kind of damage."""
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
    """Pass damaged copies to a reader, which may read them or raise SourceError; count both."""
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


def tar_of(path, **fields):
    """Write a tar with one good image, and after it one whose header is forged by `fields`."""
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
