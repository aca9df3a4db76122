"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding

from gradxform.core.types import PyTree
from gradxform.sharding.hlo import COLLECTIVES, Computation, Module, Op, branches, bytes_of, parse, received, trips_of
from gradxform.sharding.specs import AnyMesh, check_axes, known_sharding, names, parts

UNKNOWN = "?"


@dataclasses.dataclass(frozen=True)
class Sent:
    """Collectives of one kind along the same axes of the mesh.

    Attributes:
      kind: such as ``"reduce-scatter"``.
      axes: the axes of the mesh; ``("?",)`` where the groups are none of the mesh, or no mesh is known.
      count: how often they run in one run of the program.
      bytes: what a device sends in all of them, by the ring that sends least.
    """

    kind: str
    axes: tuple[str, ...]
    count: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a program sends; prints as a table.

    Attributes:
      sent: by kind and axes, the most first.
      least: bytes that a device has to send to sum the gradients of the params; None where no params were given.
      unknown_loops: those whose collectives count once, since the program does not say how often they run.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> print(gx.sharding.traffic(jax.jit(jnp.sin).lower(jnp.ones(8)).compile()))
      collective  along  runs  bytes a device
      all                   0               0
    """

    sent: tuple[Sent, ...]
    least: float | None
    unknown_loops: tuple[str, ...]

    @property
    def bytes(self) -> float:
        """What a device sends in all."""
        return sum(one.bytes for one in self.sent)

    def __str__(self) -> str:
        rows = [("collective", "along", "runs", "bytes a device")]
        rows += [(one.kind, " ".join(one.axes), f"{one.count:g}", f"{one.bytes:,.0f}") for one in self.sent]
        rows.append(("all", "", f"{sum(one.count for one in self.sent):g}", f"{self.bytes:,.0f}"))
        if self.least is not None:
            rows.append(("least for the gradients", "", "", f"{self.least:,.0f}"))
        wide = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}" for a, b, c, d in rows]
        return "\n".join([*lines, *(f"a loop of unknown length counts once: {name}" for name in self.unknown_loops)])


def traffic(
    compiled: jax.stages.Compiled, params: PyTree | None = None, axis: str | tuple[str, ...] = "data"
) -> Traffic:
    """What each device sends in one run of a compiled program, as the compiler of its backend has made it.

    Loops count as often as they run, collectives inside fusions and asynchronous ones are found, and a sum of which
    a device keeps a piece is a reduce-scatter whatever the compiler calls it.

    Args:
      compiled: ``jax.jit(step).lower(...).compile()``, for devices that are there or for a topology.
      params: the params as they lie in the program, arrays or structs with shardings: of their bytes on a device
        ``2 (n - 1) / n`` have to be sent to sum a gradient over ``n`` devices, in one all-reduce or in a reduce-scatter
        and an all-gather.
      axis: the axis, or axes, of the mesh over which the data is divided.

    Returns:
      A table by kind and axes of the mesh.

    Raises:
      TypeError: ``compiled`` has no program's text.
      ValueError: the program names groups of devices in a spelling that is not known.
      ShardingError: ``axis`` is not in the mesh of the params.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.sharding.traffic(jax.jit(jnp.sum).lower(jnp.ones(8)).compile()).sent
      ()
    """
    text = compiled.as_text() if callable(getattr(compiled, "as_text", None)) else None
    if not isinstance(text, str):
        raise TypeError(f"compiled: expected jax.jit(...).lower(...).compile(), got {type(compiled).__name__}")
    mesh, module = _mesh(compiled), parse(text)
    count: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
    size: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
    unknown: list[str] = []
    for op, kind, trips, result in _collectives(module, module.entry, 1.0, unknown):
        groups = _groups(op)
        everyone = 1 if mesh is None else mesh.size
        sent = _bytes(kind, result, len(groups[0]) if groups else everyone)
        if sent:
            key = kind, _axes(mesh, kind, groups)
            count[key] += trips
            size[key] += trips * sent
    found = [Sent(kind, axes, count[kind, axes], size[kind, axes]) for kind, axes in count]
    return Traffic(tuple(sorted(found, key=lambda one: -one.bytes)), _least(params, names(axis)), tuple(unknown))


def _collectives(
    module: Module, computation: Computation, trips: float, unknown: list[str]
) -> Iterator[tuple[Op, str, float, float]]:
    """Each collective, its kind, how often it runs and the bytes of its result on a device."""
    for op in computation.ops.values():
        base = op.kind.removesuffix("-start")
        if base in COLLECTIVES:
            yield op, base, trips, bytes_of(received(op))
        elif op.kind == "while":
            known = trips_of(module, op, computation)
            if known is None:
                unknown.append(op.name)
            yield from _collectives(module, module.called(op, "body"), trips * (1 if known is None else known), unknown)
        elif op.kind == "conditional":
            each = [list(_collectives(module, module.computations[name], trips, unknown)) for name in branches(op)]
            yield from max(each, key=lambda found: sum(result for *_, result in found), default=[])
        else:
            name = op.attribute("to_apply") or op.attribute("calls")
            if op.kind not in ("call", "async-start", "fusion") or name not in module.computations:
                continue
            for inner, kind, runs, result in _collectives(module, module.computations[name], trips, unknown):
                # A device keeps a piece of the sum: the compiler for TPU has no other word for it.
                kept = bytes_of(op.arrays) if kind == "all-reduce" and name.startswith("all-reduce-scatter") else None
                yield (inner, kind, runs, result) if kept is None else (inner, "reduce-scatter", runs, kept)


def _bytes(kind: str, result: float, n: int) -> float:
    """What a device sends of a collective among ``n`` devices by the size of its result."""
    if kind == "collective-permute":
        return result
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1}.get(kind, (n - 1) / n)
    return share * result


def _groups(op: Op) -> list[tuple[int, ...]]:
    """The devices that take part in a collective together; of a permutation, pairs of a sender and a receiver."""
    if op.kind.startswith("collective-permute"):
        return [
            (int(a), int(b))
            for a, b in re.findall(r"\{(\d+),(\d+)\}", _braces(op.rest, "source_target_pairs"))
            if a != b
        ]
    tiles = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if listed := re.search(rf"replica_groups=\[([\d,]+)\]<={tiles}", op.rest):
        return _rows(_devices(listed[2], listed[3]), _numbers(listed[1])[-1])
    if named := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\({tiles}\))? *\{{([^}}]*)\}}", op.rest):
        mesh, order, axes, chosen = *named.groups()[:3], named[4]
        groups = _along(mesh, chosen)
        ids = _devices(order, axes).ravel() if order else np.arange(sum(map(len, groups)))
        return [tuple(int(ids[i]) for i in group) for group in groups]
    if not re.search(r"replica_groups=\{(\}|\{)", op.rest):
        raise ValueError(f"compiled: expected groups of devices that are known, got {op.rest[:200]!r} of {op.name}")
    return [tuple(_numbers(group)) for group in re.findall(r"\{([\d,]+)\}", _braces(op.rest, "replica_groups"))]


def _numbers(text: str | None) -> list[int]:
    return [int(x) for x in (text or "").split(",") if x]


def _devices(tiles: str, order: str | None) -> np.ndarray[tuple[int, ...], np.dtype[np.signedinteger]]:
    """Devices as the compiler lists them: their numbers in the shape of ``tiles``, its axes then put in an order."""
    dims = _numbers(tiles)
    return np.transpose(np.arange(math.prod(dims)).reshape(dims), _numbers(order) or range(len(dims)))


def _along(mesh: str, axes: str) -> list[tuple[int, ...]]:
    """Groups along axes of a mesh that the compiler has named, such as ``'a'=4,'b'=2`` and ``'a'``, or ``'a':(2)2`` for
    that part of an axis which comes after the first 2 and has 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    shape: list[int] = []
    chosen: list[int] = []
    pieces = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    for name, size in sizes.items():
        cuts = sorted(
            {
                1,
                size,
                *(
                    cut
                    for one, before, count in pieces
                    if one == name and before
                    for cut in (int(before), int(before) * int(count))
                ),
            }
        )
        for low, high in itertools.pairwise(cuts):
            chosen += (
                [len(shape)]
                if any(
                    one == name and (not before or int(before) <= low < int(before) * int(count))
                    for one, before, count in pieces
                )
                else []
            )
            shape.append(high // low)
    rest = [axis for axis in range(len(shape)) if axis not in chosen]
    devices = np.arange(math.prod(shape)).reshape(shape)
    return _rows(np.transpose(devices, (*rest, *chosen)), math.prod(shape[axis] for axis in chosen))


def _rows(devices: np.ndarray[tuple[int, ...], np.dtype[np.signedinteger]], size: int) -> list[tuple[int, ...]]:
    return [tuple(map(int, group)) for group in devices.reshape(-1, size).tolist()]


def _braces(text: str, name: str) -> str:
    """What stands in the braces of an attribute, braces inside included."""
    start = text.find(f"{name}={{")
    if start < 0:
        return ""
    depth = 0
    for i in range(start + len(name) + 1, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + len(name) + 2 : i]
    return ""


def _axes(mesh: AnyMesh | None, kind: str, groups: list[tuple[int, ...]]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group lie."""
    if mesh is None or not groups or max(map(max, groups)) >= mesh.size:
        return (UNKNOWN,)
    shape = tuple(mesh.shape.values())
    if kind == "collective-permute":
        moved = [np.unravel_index(a, shape) != np.array(np.unravel_index(b, shape)) for a, b in groups]
        return tuple(name for name, any_moved in zip(mesh.axis_names, np.any(moved, 0), strict=True) if any_moved)
    wanted = {frozenset(group) for group in groups}
    places = np.arange(mesh.size).reshape(shape)
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    for some in itertools.chain.from_iterable(itertools.combinations(wide, n) for n in range(1, len(wide) + 1)):
        rest = [axis for axis in range(len(shape)) if axis not in some]
        size = math.prod(shape[axis] for axis in some)
        lined = np.transpose(places, (*rest, *some)).reshape(-1, size)
        if {frozenset(map(int, group)) for group in lined} == wanted:
            return tuple(mesh.axis_names[axis] for axis in some)
    return (UNKNOWN,)


def _mesh(compiled: jax.stages.Compiled) -> AnyMesh | None:
    for shardings in (getattr(compiled, "input_shardings", None), getattr(compiled, "output_shardings", None)):
        for one in jax.tree.leaves(shardings):
            if isinstance(one, NamedSharding):
                return one.mesh
    return None


def _least(params: PyTree | None, axes: tuple[str, ...]) -> float | None:
    if params is None:
        return None
    total = 0.0
    for leaf in jax.tree.leaves(params):
        if (sharding := known_sharding(leaf)) is not None:
            check_axes("axis", axes, sharding.mesh)
            n = parts(sharding.mesh, axes)
            total += 2 * (n - 1) / n * math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total
