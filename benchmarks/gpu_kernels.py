"""Kernels of a program that XLA compiled for a GPU: what each moves, and what it stems from."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s16": 2, "f32": 4, "s32": 4}
BYTES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"}
FREE |= {"conditional", "call", "partition-id", "replica-id", "opt-barrier", "copy-done"}
KINDS = (
    ("convolution", r"__cudnn\$conv|conv_general"),
    ("attention", r"attention"),
    ("product", r"cublas|triton_gemm|dot_general|einsum"),
    ("norm, swish, dropout", r"norm_|silu|bernoulli|_uniform|select_n|_where"),
    ("skips", r"concatenate|split|slice"),
    ("optimizer", r"/(sqrt|sub|mul|add|div|integer_pow)$"),
)
"""Kind of a kernel, by what its instructions were traced from; the first that fits."""

SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d(?:fn)?)?)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    operands: list[str]
    line: str

    def called(self, key: str) -> str | None:
        """Name of the computation that it calls as `key`."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.line)
        return found and found[1]


Computations = dict[str, list[Instruction]]


def size_of(shape: str) -> int:
    """Bytes of a shape or of a tuple of them."""
    return sum(
        BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in SHAPE.findall(shape)
    )


def parse(text: str) -> tuple[Computations, str]:
    """Return the instructions of every computation, and the name of the first to run."""
    computations: Computations = {}
    entry, current = "", []
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line and not line.startswith(" "):
            name = re.search(r"%?([\w.\-]+) \(", line.removeprefix("ENTRY "))
            assert name is not None, line
            current = computations[name[1]] = []
            entry = name[1] if line.startswith("ENTRY") else entry
            continue
        found = INSTRUCTION.match(line)
        if not found:
            continue
        rest = found[3]
        shape, rest = _split_shape(rest)
        opcode, _, rest = rest.partition("(")
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        current.append(Instruction(found[2], opcode.strip(), shape, operands, line))
    return computations, entry


def _split_shape(text: str) -> tuple[str, str]:
    """Split "shape opcode(...": a tuple's shape has spaces of its own."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :].lstrip()
    raise ValueError(text)


@dataclasses.dataclass
class Kernel:
    """One launch, and how often the step makes it."""

    instruction: Instruction
    times: int
    bytes: int
    kind: str


def kernels(computations: Computations, entry: str) -> Iterator[Kernel]:
    """Every kernel of the computation, those in loops once with their number of turns."""

    def walk(name: str, times: int) -> Iterator[Kernel]:
        shapes = {each.name: each.shape for each in computations[name]}
        for each in computations[name]:
            if each.opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', each.line)
                body = each.called("body")
                assert body is not None, each.line
                yield from walk(body, times * (int(trips[1]) if trips else 1))
            elif each.opcode in ("call", "conditional", "async-start"):
                inner = each.called("to_apply") or each.called("calls")
                if inner:
                    yield from walk(inner, times)
            elif each.opcode not in FREE and not each.opcode.endswith("-done"):
                moved = _moved(each, shapes, computations)
                yield Kernel(each, times, moved, _kind(each, computations))

    yield from walk(entry, 1)


def _moved(each: Instruction, shapes: dict[str, str], computations: Computations) -> int:
    """Bytes read and written; a fusion that slices an operand, or updates one, moves the part."""
    result = size_of(each.shape)
    if each.opcode == "dynamic-update-slice":
        return 2 * size_of(shapes[each.operands[1]])
    if each.opcode in ("dynamic-slice", "slice"):
        return 2 * result
    inner = computations.get(each.called("calls") or "", [])
    read = 0
    for number, operand in enumerate(each.operands):
        read += _read(inner, number, size_of(shapes.get(operand, "")))
    return read + _written(inner, result)


def _read(inner: list[Instruction], number: int, whole: int) -> int:
    """Bytes that a fusion reads of one operand."""
    names = [e.name for e in inner if e.opcode == "parameter" and f"parameter({number})" in e.line]
    if not names:
        return whole
    names += [e.name for e in inner if e.opcode == "bitcast" and e.operands[:1] == names[:1]]
    users = [e for e in inner if set(names) & set(e.operands) and e.name not in names]
    read = 0
    for user in users:
        if user.opcode in ("dynamic-slice", "slice"):
            read += size_of(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] in names:
            continue
        else:
            return whole
    return min(read, whole)


def _written(inner: list[Instruction], result: int) -> int:
    """Bytes that a fusion writes: of a buffer updated in place, the update."""
    shapes = {each.name: each.shape for each in inner}
    for each in inner:
        if each.opcode == "dynamic-update-slice" and size_of(each.shape) * 2 > result:
            return result - size_of(each.shape) + size_of(shapes[each.operands[1]])
    return result


def _kind(each: Instruction, computations: Computations) -> str:
    inner = computations.get(each.called("calls") or "", [])
    target = re.search(r'custom_call_target="([^"]*)"', each.line)
    own = (target[1] if target else "") + " " + origin(each.line)
    if each.opcode == "copy" or each.opcode.startswith("copy"):
        return "copy"
    if target:
        return _first_kind(own) or "other"
    opcodes = {e.opcode for e in inner}
    if "dynamic-update-slice" in opcodes and each.opcode == "fusion":
        return "into a loop's stack"
    if inner and opcodes <= {"parameter", "constant", "broadcast"}:
        return "zeros"
    if inner and opcodes <= {"parameter", "copy", "transpose", "bitcast"}:
        return "copy"
    origins = collections.Counter(_first_kind(origin(e.line)) for e in inner)
    for kind in ("norm, swish, dropout", "attention", "skips", "optimizer"):
        if origins[kind]:
            return kind
    return _first_kind(own) or "other"


def origin(line: str) -> str:
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1] if found else ""


def _first_kind(text: str) -> str | None:
    return next((kind for kind, pattern in KINDS if re.search(pattern, text)), None)


def has_float32(shape: str, least: int) -> bool:
    """Return True if a shape holds a float32 array of at least `least` bytes."""
    return any(
        dtype == "f32" and 4 * math.prod(int(n) for n in dims.split(",") if n) >= least
        for dtype, dims in SHAPE.findall(shape)
    )
