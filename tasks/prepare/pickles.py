"""Pickled dicts of numbers, strings and arrays; anything else is refused before it is executed.

A pickle is a program. This one may name a handful of NumPy's functions, and even those are not
NumPy's own but stand-ins that only keep their arguments. Every claim is checked first, in a pass
over the opcodes that builds nothing: `pickle` allocates what a length says before it reads.
"""

import contextlib
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from tasks.prepare.refusals import SourceError

_OPCODE_NAMES = (
    "PROTO FRAME STOP MARK POP POP_MARK EMPTY_DICT DICT EMPTY_LIST LIST APPEND APPENDS SETITEM "
    "SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE INT BININT BININT1 "
    "BININT2 LONG LONG1 FLOAT BINFLOAT BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 PUT BINPUT "
    "LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_OPCODES = frozenset(_OPCODE_NAMES.split())
# A published batch has two opcodes per label and two per file name, and a hundred others.
_MOST_OPCODES = 4_000_000
# Hashing or comparing a deeply nested tuple overflows the C stack.
_MOST_TUPLES = 1_000


def load(open_stream: Callable[[], IO[bytes]], size: int, what: str) -> dict[str, Any]:
    """A pickled dict; arrays come as NumPy arrays, Python 2's strings as bytes.

    Args:
        open_stream: the pickle; opened twice.
        size: its length, bytes.
        what: its name, for messages.

    Raises:
        SourceError: for anything that no pickle of arrays needs, by name, and for a damaged one.
    """
    with contextlib.closing(open_stream()) as stream:
        _check_opcodes(_Limited(stream, size, what), what)
    try:
        with contextlib.closing(open_stream()) as stream:
            loaded = _Unpickler(_Limited(stream, size, what), size, what).load()
            while stream.read(1 << 20):  # to the end, where a zip compares its checksum
                pass
        if type(loaded) is not dict:
            raise SourceError(f"{what} must be a pickled dict, and is a {type(loaded).__name__}.")
        return {_text(key, what): _plain(value, what) for key, value in loaded.items()}
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError) as error:
        _raise_refusal(error, what)
    except (AttributeError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        _raise_refusal(error, what)
    raise AssertionError


def _raise_refusal(error: Exception, what: str) -> None:
    if isinstance(error, SourceError):
        raise error
    raise SourceError(
        f"{what} is not a whole pickle of arrays ({type(error).__name__}: {str(error)[:200]}). "
        "Download the archive again."
    ) from error


def _check_opcodes(stream: Any, what: str) -> None:
    tuples = 0
    try:
        for number, (opcode, given, _) in enumerate(pickletools.genops(stream)):
            name: str = opcode.name
            argument: Any = given
            if name not in _OPCODES or number > _MOST_OPCODES:
                raise SourceError(
                    f"{what} is no pickle of arrays: opcode {name} at {number:,}. "
                    "Nothing of it was executed. Download the archive again."
                )
            if name == "GLOBAL":
                module, _, attribute = argument.partition(" ")
                _check_global(module, attribute, what)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                # The unpickler allocates a table as long as the largest index.
                if not 0 <= argument <= _MOST_OPCODES:
                    raise SourceError(f"{what} numbers one of its parts {argument:,}.")
            elif name.startswith("TUPLE"):
                tuples += 1
                if tuples > _MOST_TUPLES:
                    raise SourceError(f"{what} has more than {_MOST_TUPLES:,} tuples.")
            elif isinstance(argument, int) and argument.bit_length() > 64:
                raise SourceError(f"{what} has a number of {argument.bit_length():,} bits.")
    except (ValueError, OverflowError, MemoryError, RecursionError) as error:
        _raise_refusal(error, what)


class _Limited:
    """A stream that refuses to be asked for more than it can hold."""

    def __init__(self, stream: IO[bytes], size: int, what: str) -> None:
        self._stream, self._left, self._what = stream, size, what

    def read(self, size: int) -> bytes:
        self._check(size)
        content = self._stream.read(size)
        self._left -= len(content)
        return content

    def _check(self, size: int) -> None:
        if not 0 <= size <= self._left:
            # Both readers of pickles ask for what a length claims, and read ahead no further.
            raise SourceError(
                f"{self._what} claims a part of {size:,} bytes where {self._left:,} are left. "
                "It is cut short or forged: download the archive again."
            )

    def readinto(self, buffer: memoryview) -> int:
        done = 0
        self._check(len(buffer))
        while done < len(buffer):  # in pieces: an array is held once, not twice
            content = self.read(min(len(buffer) - done, 1 << 20))
            if not content:
                break
            buffer[done : done + len(content)] = content
            done += len(content)
        return done

    def readline(self) -> bytes:
        content = self._stream.readline(self._left)
        self._left -= len(content)
        return content


def _check_global(module: str, name: str, what: str) -> None:
    if (module, name) not in _STAND_INS:
        raise SourceError(
            f"{what} is no pickle of arrays: it calls for {module}.{name}. Nothing of it was "
            "executed. Do not open this file with Python's pickle; download the archive again."
        )


class _Array:
    """What the pickle says of an array."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DataType:
    """What the pickle says of a dtype."""

    __slots__ = ("byte_order", "name")

    def __init__(self, name: Any) -> None:
        self.name, self.byte_order = name, "|"

    def __setstate__(self, state: Any) -> None:
        self.byte_order = state[1]


class _Reconstruct:
    """For NumPy's `_reconstruct(type, shape, typecode)`, which would allocate `shape`."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, typecode: Any) -> _Array:
        return _Array()


class _FromBuffer:
    """For NumPy's `_frombuffer(buffer, dtype, shape, order)`, of protocol 5."""

    __slots__ = ()

    def __call__(self, buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        array = _Array()
        array.state = (1, shape, dtype, order == "F", buffer)
        return array


class _MakeDataType:
    """For `numpy.dtype(name, align, copy)`."""

    __slots__ = ()

    def __call__(self, name: Any, *flags: Any) -> _DataType:
        return _DataType(name)


def _encoder(budget: int) -> Callable[[Any, Any], bytes]:
    """For `_codecs.encode(text, "latin1")`: how Python 3 writes bytes in protocol 2.

    A function, whose budget a pickle cannot reach: it can set attributes of objects.
    """
    left = budget

    def encode(text: Any, encoding: Any) -> bytes:
        nonlocal left
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes written as {encoding!r:.50}")
        left -= len(text)
        if left < 0:
            raise ValueError("one string is made into bytes again and again")
        return text.encode("latin-1")

    return encode


_MODULES = ("numpy.core", "numpy._core")
_STAND_INS: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _MakeDataType(),
    ("_codecs", "encode"): "encode",
    **{(f"{module}.multiarray", "_reconstruct"): _Reconstruct() for module in _MODULES},
    **{(f"{module}.numeric", "_frombuffer"): _FromBuffer() for module in _MODULES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: _Limited, size: int, what: str) -> None:
        super().__init__(stream, encoding="bytes")  # type: ignore[arg-type]
        self._what, self._encode = what, _encoder(size)

    def find_class(self, module: str, name: str) -> Any:
        _check_global(module, name, self._what)
        return self._encode if module == "_codecs" else _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise SourceError(f"{self._what} refers to something outside itself.")


def _text(value: Any, what: str) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise SourceError(f"{what} has a key that is no text: {type(value).__name__}.")
    return value


def _plain(value: Any, what: str) -> Any:
    return _to_numpy(value, what) if type(value) is _Array else value


def _to_numpy(array: _Array, what: str) -> np.ndarray:
    """The array, on the bytes of the pickle: nothing is copied."""
    _, shape, dtype, fortran, raw = array.state[-5:]
    name = _text(dtype.name, what)
    if not re.fullmatch(r"[|<>=]?([iu][1248]|f[248])", name):
        raise SourceError(f"{what} has an array of {name!r}, which is no plain number.")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise SourceError(f"{what} has an array of shape {shape!r:.80}.")
    order = _text(dtype.byte_order, what)
    kind = np.dtype((order if order in ("<", ">") else "=") + name[-2:])
    if not isinstance(raw, bytes | bytearray):
        raise SourceError(f"{what} has an array without bytes.")
    claimed = kind.itemsize
    for size in shape:
        claimed *= size
    if claimed != len(raw):
        raise SourceError(
            f"{what} has an array that claims {claimed:,} bytes and holds {len(raw):,}."
        )
    return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")
