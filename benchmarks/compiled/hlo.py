"""The text of an optimized program: computations, and the operations in them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
         "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "token": 0}
"""Bytes of an element."""


class Array(NamedTuple):
    """An array, and whether it is in HBM: the layout names a space of its own where it is not."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> float:
        if self.dtype not in SIZES:
            raise ValueError(f"program: expected elements of {', '.join(SIZES)}, got {self.dtype}")
        return SIZES[self.dtype] * math.prod(self.dims)


def bytes_of(arrays: Iterable[Array]) -> float:
    """The bytes of arrays, wherever they are."""
    return sum(array.bytes for array in arrays)


def hbm_bytes_of(arrays: Iterable[Array]) -> float:
    """The bytes of those arrays that are in HBM."""
    return sum(array.bytes for array in arrays if array.in_hbm)


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation.

    Attributes:
      name: unique in the program.
      kind: as ``fusion`` or ``all-reduce-start``.
      arrays: its results.
      operands: the names of what it takes; of a constant its value, of a parameter its number.
      rest: what stands behind the operands: attributes and metadata.
      root: whether it is what its computation returns.
    """

    name: str
    kind: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    def attribute(self, name: str) -> str:
        """The value of ``name=`` up to the next comma or brace; empty where there is none."""
        return _first(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest).lstrip("%")

    def numbers(self, name: str) -> list[int]:
        """The numbers in an attribute, as in ``slice_sizes={1,128}``."""
        return [int(x) for x in re.findall(r"\d+", self.attribute(name))]

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where there is none."""
        return int(_first(r'"estimated_cycles":"(\d+)"', self.rest) or 0)

    @property
    def source(self) -> str:
        """The name that JAX gave it."""
        return _first(r'op_name="([^"]*)"', self.rest)

    @property
    def target(self) -> str:
        """What a custom call calls."""
        return _first(r'custom_call_target="([^"]*)"', self.rest)

    @property
    def known_trips(self) -> int | None:
        """How often the body of a loop runs, where the compiler has written it down."""
        found = _first(r'known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(found) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Operations by name, in order."""

    name: str
    ops: dict[str, Op]

    @property
    def root(self) -> Op:
        """What it returns."""
        return next(op for op in self.ops.values() if op.root)

    @property
    def parameters(self) -> list[Op]:
        """Its parameters by number."""
        return sorted((op for op in self.ops.values() if op.kind == "parameter"), key=lambda op: int(op.operands[0]))

    def operands(self, op: Op) -> list[tuple[Array, ...]]:
        """The arrays of each operand of one of its operations."""
        return [self.ops[name].arrays for name in op.operands if name in self.ops]

    def integer(self, name: str) -> int | None:
        """The value of an operation, where it is an integer constant."""
        op = self.ops.get(name)
        while op is not None and op.kind in ("copy", "bitcast"):
            op = self.ops.get(op.operands[0])
        return int(op.operands[0]) if op is not None and op.kind == "constant" and re.fullmatch(
            r"-?\d+", op.operands[0]) else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computations by name, and the one that it starts with."""

    computations: dict[str, Computation]
    entry: Computation

    def called(self, op: Op, attribute: str) -> Computation:
        """The computation that an operation calls under an attribute."""
        return self.computations[op.attribute(attribute)]

    def inside(self, op: Op) -> Iterator[Op]:
        """The operations of a fusion and of those within it; any other operation itself."""
        if op.kind != "fusion":
            yield op
            return
        for one in self.called(op, "calls").ops.values():
            yield from self.inside(one)


def parse(text: str) -> Module:
    """Reads a program.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry: Computation | None = None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            current = computations[head[2]] = Computation(head[2], {})
            entry = current if head[1] else entry
        elif current is not None and (op := _operation(line)):
            current.ops[op.name] = op
    if entry is None:
        raise ValueError(f"program: expected a computation marked ENTRY, got {len(computations)} without")
    return Module(computations, entry)


def _operation(line: str) -> Op | None:
    """``[ROOT] %name = arrays kind(operands), rest``."""
    left = re.match(r"^\s+(ROOT )?%([\w.\-]+) = ", line)
    if not left:
        return None
    right = line[left.end():]
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind = re.match(r" *([\w\-]+)\(", right[end:])
    if not kind:
        return None
    start = end + kind.end() - 1
    stop = _closing(right, start)
    inside = right[start + 1:stop]
    operands = (inside,) if kind[1] in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Op(left[2], kind[1], _arrays(right[:end]), operands, right[stop + 1:], bool(left[1]))


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in re.findall(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](\{[^}]*\})?", text):
        space = _first(r"S\((\d+)\)", layout)
        found.append(Array(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), space in ("", "0")))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at ``start`` is closed."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
