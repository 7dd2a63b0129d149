"""Pickled dicts of numbers, strings and arrays; a pickle that calls for anything else is refused.

A pickle is a program. `pickle.Unpickler` with a `find_class` that allows a few names stops it from
running others, and not even these run: stand-ins keep their arguments, and arrays are built
afterwards. That leaves what the opcodes themselves do. Measured with `find_class` alone: 9 bytes
ask for a memo of 32 GB, 15 bytes for a byte string of 10 GB, and 1 MB of nested tuples ends the
process with a segmentation fault. So `pickletools` reads the opcodes first, building nothing: it
compares every length with the bytes that are there, and numbers and nesting are bounded.
"""

import functools
import io
import pickle
import pickletools
import re
from typing import IO, Any

import numpy as np

from tasks.prepare import members
from tasks.prepare.refusals import SourceError

# A published batch has two opcodes per label and two per file name, and a hundred others.
_MOST_OPCODES = 1_000_000
_MOST_TUPLES = 1_000  # hashing a deeply nested tuple overflows the C stack
_MOST_BITS = 64  # of an integer: larger ones can be made to collide as the keys of a dict
_PIECE = 1 << 20


def load(member: members.Member) -> dict[str, Any]:
    """Return a pickled dict; arrays come as NumPy arrays, strings of Python 2 as bytes.

    Args:
        member: the pickle; opened twice. What is loaded takes little more than its size.

    Raises:
        SourceError: if it is damaged, or holds anything that a dict of arrays does not need.
    """
    what = str(member)
    try:
        with members.damage_named(what):
            with member.open() as stream:
                _check_opcodes(_InPieces(stream), what)
            with member.open() as stream:
                loaded = _Unpickler(_InPieces(stream), what).load()
                while stream.read(_PIECE):  # to the end, where a zip compares its checksum
                    pass
            if type(loaded) is not dict:
                raise SourceError(f"{what} must be a pickled dict, and is a {type(loaded)}.")
            return {
                _text(key, what): _array(value, what) if type(value) is _Object else value
                for key, value in loaded.items()
            }
    except (pickle.UnpicklingError, TypeError, AttributeError, MemoryError) as error:
        raise SourceError(
            f"{what} is not a whole pickle of arrays ({type(error).__name__}: {error!s:.200}). "
            "Download the archive again."
        ) from error


def _check_opcodes(stream: Any, what: str) -> None:
    """Raise SourceError or ValueError for a pickle that would take more than its own size."""
    tuples = 0
    argument: Any
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if number > _MOST_OPCODES:
            raise SourceError(f"{what} has more than {_MOST_OPCODES:,} opcodes.")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            # The unpickler allocates a table as long as the largest index.
            if not 0 <= argument <= number:
                raise SourceError(f"{what} numbers one of its parts {argument:,}.")
        elif opcode.name.startswith("TUPLE"):
            tuples += 1
            if tuples > _MOST_TUPLES:
                raise SourceError(f"{what} has more than {_MOST_TUPLES:,} tuples.")
        elif isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
            raise SourceError(f"{what} has a number of {argument.bit_length():,} bits.")


class _Object:
    """Stand-in for an array or a dtype: its arguments, and the state that a pickle gives it."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = (None, "|")

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads a pickle whose functions are stand-ins, made for it alone: it could change them."""

    def __init__(self, stream: Any, what: str) -> None:
        super().__init__(stream, encoding="bytes")
        self._what, self._stand_ins = what, _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name; raise SourceError if there is none."""
        if (module, name) not in self._stand_ins:
            raise SourceError(
                f"{self._what} is no pickle of arrays: it calls for {module}.{name}. Nothing of it "
                "was executed. Do not open this file with Python's pickle; download it again."
            )
        return self._stand_ins[module, name]


def _stand_ins() -> dict[tuple[str, str], Any]:
    """Return the names that pickles of arrays call for: those of NumPy 1 and 2, protocols 0 to 5.

    NumPy's own `_reconstruct` would allocate the shape that it is given.
    """

    def reconstruct(kind: Any, shape: Any, typecode: Any) -> _Object:
        return _Object()

    def from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Object:
        array = _Object()
        array.state = (1, shape, dtype, order == "F", buffer)
        return array

    @functools.cache  # else a few opcodes could encode a long text again and again
    def encode(text: str, encoding: str) -> bytes:
        """Stand-in for the function by which Python 3 writes bytes in protocol 2."""
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes written as {encoding!r:.50}")
        return text.encode("latin-1")

    stand_ins: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): lambda name, *flags: _Object(name),
        ("_codecs", "encode"): encode,
    }
    for core in ("numpy.core", "numpy._core"):
        stand_ins[f"{core}.multiarray", "_reconstruct"] = reconstruct
        stand_ins[f"{core}.numeric", "_frombuffer"] = from_buffer
    return stand_ins


class _InPieces:
    """A stream read in pieces: `zipfile` takes 2.7 times the memory of an array read at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.readline = stream, stream.readline

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or as many as there are: the size is only a claim."""
        if size <= _PIECE:
            return self._stream.read(size)
        content = io.BytesIO()
        while piece := self._stream.read(min(size - content.tell(), _PIECE)):
            content.write(piece)
        return content.getvalue()

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the stream goes; return the number of bytes."""
        done = 0
        while piece := self._stream.read(min(len(buffer) - done, _PIECE)):
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return done


def _text(value: Any, what: str) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise SourceError(f"{what} has a key that is no text: {type(value).__name__}.")
    return value


def _array(array: _Object, what: str) -> np.ndarray:
    """Return the array, on the bytes of the pickle: nothing is copied."""
    _, shape, dtype, is_fortran, raw = array.state[-5:]
    name, order = _text(dtype.arguments[0], what), _text(dtype.state[1], what)
    if not re.fullmatch(r"[|<>=]?([iu][1248]|f[248])", name):
        raise SourceError(f"{what} has an array of {name!r}, which is no plain number.")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise SourceError(f"{what} has an array of shape {shape!r:.80}.")
    if not isinstance(raw, bytes | bytearray):
        raise SourceError(f"{what} has an array without bytes.")
    kind = np.dtype((order if order in ("<", ">") else "=") + name[-2:])
    claimed = functools.reduce(lambda a, b: a * b, shape, kind.itemsize)
    if claimed != len(raw):
        raise SourceError(
            f"{what} has an array that claims {claimed:,} bytes and holds {len(raw):,}."
        )
    return np.frombuffer(raw, kind).reshape(shape, order="F" if is_fortran else "C")
