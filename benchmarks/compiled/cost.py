"""What a program does: every operation once, those of loops times their trips."""

from __future__ import annotations

import collections
import dataclasses
import math

from benchmarks.compiled.target import Chip
from gradxform.sharding.hlo import (
    COLLECTIVES,
    Computation,
    Module,
    Op,
    branches,
    bytes_of,
    hbm_bytes_of,
    received,
    trips_of,
)

FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "copy-done",
    "all-reduce-done",
    "all-gather-done",
    "collective-permute-done",
    "async-done",
    "async-update",
    "opt-barrier",
    "iota",
    "slice-done",
    "custom-call-done",
}
"""Kinds that move nothing."""
BOOKKEEPING = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
    "Sharding",
}
"""Custom calls that are no work of their own."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one operation, all its trips together.

    Attributes:
      op: which.
      trips: how often it runs.
      hbm_bytes: read from and written to HBM; of slices what they take.
      seconds: those bytes at the bandwidth of HBM, or, for a product, the compiler's cycles if they are more.
      cycles: the compiler's estimate.
      lookups: slices that its gathers take and its scatters put.
    """

    op: Op
    trips: float
    hbm_bytes: float
    seconds: float
    cycles: float
    lookups: float


@dataclasses.dataclass
class Work:
    """All that a program does.

    Attributes:
      costs: of each operation that costs something.
      kinds: how many operations there are of a kind in the text, a loop's once; those inside a fusion by fusion.
      collectives: of each its kind, its trips and the bytes of its results.
      unknown_loops: those whose trip counts the program does not say.
      alike: cycles, where the branches of a conditional are taken alike often; ``costs`` have the dearest alone.
    """

    costs: list[Cost]
    kinds: collections.Counter[str]
    collectives: list[tuple[str, float, float]]
    unknown_loops: list[str]
    alike: float = 0.0


def work_of(module: Module, chip: Chip, rounds: float = 1.0) -> Work:
    """Walks through a program; loops whose trip counts it does not say are taken to run for ``rounds``."""
    work = Work([], collections.Counter(), [], [])
    _walk(module, module.entry, 1.0, 1.0, work, chip, rounds)
    return work


def _walk(
    module: Module, computation: Computation, trips: float, share: float, work: Work, chip: Chip, rounds: float
) -> None:
    """Adds what a computation does in so many trips, a share of which comes here where branches are taken alike."""

    def into(name: str, trips: float, share: float = share) -> None:
        _walk(module, module.computations[name], trips, share, work, chip, rounds)

    for op in computation.ops.values():
        work.kinds.update(_kinds(module, op))
        if op.kind == "while":
            known = trips_of(module, op, computation)
            if known is None:
                work.unknown_loops.append(f"{op.name} {op.source}".strip())
            into(op.attribute("body"), trips * (rounds if known is None else known))
        elif op.kind == "conditional":
            # One branch is taken; which, the program does not say: the dearest.
            before, dearest = len(work.costs), list[Cost]()
            for name in branches(op):
                into(name, trips, share / len(branches(op)))
                mine, work.costs[before:] = work.costs[before:], []
                dearest = max(dearest, mine, key=lambda costs: sum(c.seconds + c.lookups * chip.lookup for c in costs))
            work.costs += dearest
        elif op.kind in ("call", "async-start"):
            name = op.attribute("to_apply") or op.attribute("calls")
            if name in module.computations:
                into(name, trips)
        elif (base := op.kind.removesuffix("-start")) in COLLECTIVES:
            work.collectives.append((base, trips, bytes_of(received(op))))
        elif op.kind not in FREE:
            work.costs.append(_cost(module, op, computation, trips, chip))
            work.alike += share * work.costs[-1].cycles


def _kinds(module: Module, op: Op) -> list[str]:
    """The names under which an operation is counted."""
    product = {"dot": "convolution"}
    if op.kind == "fusion":
        inside = {product.get(one.kind, one.kind) for one in module.inside(op)}
        counted = (
            "gather",
            "scatter",
            "sort",
            "convolution",
            "dynamic-slice",
            "dynamic-update-slice",
            "reduce",
            "transpose",
        )
        return ["fusion", *(kind for kind in counted if kind in inside)]
    if op.kind == "custom-call":
        return [] if op.target in BOOKKEEPING else ["custom-call", f"custom-call {op.target}"]
    if op.kind in ("copy-start", "slice-start"):
        return ["prefetch"]
    return [product.get(op.kind, op.kind)]


def _cost(module: Module, op: Op, computation: Computation, trips: float, chip: Chip) -> Cost:
    inside = list(module.inside(op))
    named = computation.ops | {one.name: one for one in inside}
    lookups = sum(_slices(one, named) for one in inside if one.kind in ("gather", "scatter"))
    moved = _moved(module, op, computation)
    seconds = moved / chip.hbm
    if any(one.kind in ("convolution", "dot") for one in inside):
        seconds = max(seconds, op.cycles / chip.clock)
    return Cost(op, trips, trips * moved, trips * seconds, trips * op.cycles, trips * lookups)


def _slices(op: Op, named: dict[str, Op]) -> float:
    """How many slices a gather takes or a scatter puts."""
    if op.kind == "gather":
        return math.prod(op.arrays[0].dims) / max(math.prod(op.numbers("slice_sizes")), 1)
    updates, window = named[op.operands[(len(op.operands) - 1) // 2 + 1]], op.numbers("update_window_dims")
    return math.prod(size for axis, size in enumerate(updates.arrays[0].dims) if axis not in window)


def _moved(module: Module, op: Op, computation: Computation) -> float:
    """Bytes of HBM that an operation reads and writes."""
    written, operands = hbm_bytes_of(op.arrays), computation.operands(op)
    if op.kind in ("copy-start", "slice-start"):
        # (destination, source, ..) of a copy, (source, destination, ..) of a slice.
        return op.arrays[0 if op.kind == "copy-start" else 1].bytes * sum(array.in_hbm for array in op.arrays[:2])
    if op.kind in ("dynamic-slice", "slice", "gather"):
        return written + min(hbm_bytes_of(operands[0]), bytes_of(op.arrays))
    if op.kind == "dynamic-update-slice":
        return min(written, bytes_of(operands[1])) + hbm_bytes_of(operands[1])
    if op.kind != "fusion":
        return written + sum(map(hbm_bytes_of, operands))
    body = module.called(op, "calls")
    total = _written(body, op)
    for parameter, arrays in zip(body.parameters, operands, strict=False):
        if size := hbm_bytes_of(arrays):
            total += min(size, _read(module, body, parameter.name))
    return total


def _read(module: Module, body: Computation, name: str) -> float:
    """Bytes read of a parameter of a fusion: infinitely many but where it is only sliced."""
    total = 0.0
    for op in body.ops.values():
        if name not in op.operands:
            continue
        if op.kind in ("dynamic-slice", "slice", "gather") and op.operands[0] == name:
            total += bytes_of(op.arrays)
        elif op.kind in ("dynamic-update-slice", "scatter") and op.operands[0] == name:
            continue  # in place
        elif op.kind in ("bitcast", "get-tuple-element") or _is_view(module, op):
            total += _read(module, body, op.name)
        elif op.kind == "fusion":
            inner = module.called(op, "calls")
            total += sum(
                _read(module, inner, parameter.name)
                for parameter, operand in zip(inner.parameters, op.operands, strict=True)
                if operand == name
            )
        else:
            return math.inf
    return total


def _is_view(module: Module, op: Op) -> bool:
    """Whether a fusion gives the memory of its operand another layout; inside one that slices it nothing moves."""
    return (
        op.kind == "fusion"
        and "output_to_operand_aliasing" in op.rest
        and {one.kind for one in module.inside(op)} <= {"parameter", "copy", "bitcast"}
    )


def _written(body: Computation, op: Op) -> float:
    """Bytes that a fusion writes: of what is updated in place the update."""
    roots = [body.ops[name] for name in body.root.operands] if body.root.kind == "tuple" else [body.root]
    total = 0.0
    for root, array in zip(roots, op.arrays, strict=False):
        while root.kind == "bitcast":
            root = body.ops[root.operands[0]]
        size = hbm_bytes_of([array])
        if size and root.kind in ("dynamic-update-slice", "scatter"):
            change = root.operands[1 if root.kind == "dynamic-update-slice" else -1]
            size = min(size, bytes_of(body.ops[change].arrays))
        total += size
    return total
