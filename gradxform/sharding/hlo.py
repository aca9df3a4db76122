"""The text of an optimized program: computations, and the operations in them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

SIZES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "token": 0,
}
"""Bytes of an element."""
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


class Array(NamedTuple):
    """An array, and whether it is in HBM: the layout names a space of its own where it is not."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> float:
        """Bytes of the array."""
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
        return (
            int(op.operands[0])
            if op is not None and op.kind == "constant" and re.fullmatch(r"-?\d+", op.operands[0])
            else None
        )


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


def branches(op: Op) -> list[str]:
    """The computations of which a conditional takes one."""
    listed = op.attribute("branch_computations") or (
        f"{op.attribute('true_computation')} {op.attribute('false_computation')}"
    )
    return re.findall(r"[\w.\-]+", listed)


def received(op: Op) -> list[Array]:
    """What a collective gives: the start of an asynchronous one lists its operands before."""
    arrays = op.arrays[len(op.arrays) // 2 :] if op.kind.endswith("-start") and len(op.arrays) > 1 else op.arrays
    return [array for array in arrays if array.dtype != "token" and array[:2] != ("u32", ())]


def trips_of(module: Module, op: Op, computation: Computation) -> int | None:
    """How often a loop runs: a counter that starts at a constant and is compared to one, or to what never changes."""
    if op.known_trips is not None:
        return op.known_trips
    condition, body = module.called(op, "condition"), module.called(op, "body")
    compare = next(
        (inner for one in condition.ops.values() for inner in module.inside(one) if inner.kind == "compare"), None
    )
    init = computation.ops.get(op.operands[0])
    if compare is None or init is None or init.kind != "tuple":
        return None
    limits = [
        value
        for one in condition.ops.values()
        if one.kind == "constant" and (value := condition.integer(one.name)) is not None
    ]
    places = [int(one.attribute("index")) for one in condition.ops.values() if one.kind == "get-tuple-element"]
    starts = {place: computation.integer(init.operands[place]) for place in places}
    fixed = [place for place in places if _carried(body, place)]
    if not limits and len(places) == 2 and len(fixed) == 1:
        limits = [value for place in fixed if (value := starts[place]) is not None]
        places.remove(fixed[0])
    if len(limits) != 1 or len(places) != 1 or (start := starts[places[0]]) is None:
        return None
    return abs(limits[0] - start) + (compare.attribute("direction") in ("LE", "GE"))


def _carried(body: Computation, place: int) -> bool:
    """Whether a loop hands a place on as it was."""
    root = body.root
    one = body.ops.get(root.operands[place]) if root.kind == "tuple" else None
    return one is not None and one.kind == "get-tuple-element" and one.attribute("index") == str(place)


def _operation(line: str) -> Op | None:
    """``[ROOT] %name = arrays kind(operands), rest``."""
    left = re.match(r"^\s+(ROOT )?%([\w.\-]+) = ", line)
    if not left:
        return None
    right = line[left.end() :]
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind = re.match(r" *([\w\-]+)\(", right[end:])
    if not kind:
        return None
    start = end + kind.end() - 1
    stop = _closing(right, start)
    inside = right[start + 1 : stop]
    operands = (inside,) if kind[1] in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Op(left[2], kind[1], _arrays(right[:end]), operands, right[stop + 1 :], bool(left[1]))


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
