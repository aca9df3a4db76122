"""How arrays lie on a mesh: for each axis of an array the names of the mesh axes that divide it."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
from flax.core import meta
from flax.linen import spmd
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform.core.boxes import is_box
from gradxform.core.manual import ShardingError
from gradxform.core.trees import flatten, named_leaves, subtrees
from gradxform.core.types import PyTree

AnyMesh: TypeAlias = Mesh | AbstractMesh
Entry: TypeAlias = str | tuple[str, ...] | None
Leaf: TypeAlias = jax.Array | jax.ShapeDtypeStruct
"""What has a shape and a dtype, with values or without."""
AUTO = "(axes of this mesh are Auto)"
"""An axis of length 1 that tells whoever is traced on a mesh taken as Explicit that its types stand for Auto ones."""


def entries(spec: P | Sequence[Entry], ndim: int) -> list[Entry]:
    """What divides each of ``ndim`` axes."""
    return [*spec, *[None] * (ndim - len(spec))]


def names(entry: Any) -> tuple[str, ...]:
    """The axes of the mesh in one entry of a spec."""
    return () if entry in (None, P.UNCONSTRAINED) else (entry,) if isinstance(entry, str) else tuple(entry)


def entry_of(axes: Sequence[str]) -> Entry:
    """The entry of a spec that names these axes."""
    return axes[0] if len(axes) == 1 else tuple(axes) or None


def parts(mesh: AnyMesh, axes: Sequence[str]) -> int:
    """How many pieces some axes of a mesh make of what they divide."""
    return math.prod(mesh.shape[name] for name in axes)


def check_axes(what: str, axes: Sequence[str], mesh: AnyMesh) -> None:
    """Refuses names that no axis of a mesh has.

    Raises:
      ShardingError: with the names that there are.
    """
    for name in axes:
        if name not in mesh.axis_names:
            raise ShardingError(
                f"{what}: expected an axis of the mesh, {', '.join(map(repr, mesh.axis_names))}, got {name!r}"
            )


def check_spec(path: str, shape: tuple[int, ...], spec: P, mesh: AnyMesh) -> None:
    """Refuses a spec by which an array of this shape cannot lie on a mesh.

    Raises:
      ShardingError: it is longer than the shape, names an axis that is not there, or an axis does not divide.
    """
    if len(spec) > len(shape):
        raise ShardingError(f"'{path}': expected a spec of at most {len(shape)} entries for shape {shape}, got {spec}")
    for axis, (size, entry) in enumerate(zip(shape, entries(spec, len(shape)), strict=True)):
        check_axes(f"'{path}'", names(entry), mesh)
        if size % (count := parts(mesh, names(entry))):
            raise ShardingError(
                f"'{path}': expected a multiple of {count} along axis {axis}, divided over {entry!r}, "
                f"got {size} of shape {shape}"
            )


def known_sharding(leaf: object) -> NamedSharding | None:
    """Where a leaf lies as far as it says: an array on a mesh, a struct with a sharding, a sharding itself."""
    if isinstance(leaf, NamedSharding):
        return leaf
    if isinstance(leaf, jax.core.Tracer):
        sharding = jax.typeof(leaf).sharding
        return None if sharding.mesh.empty else sharding
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def context_mesh() -> AnyMesh | None:
    """The mesh of ``jax.set_mesh``, or of what is traced; None where there is none."""
    with contextlib.suppress(ValueError):  # in a trace there is no real one
        concrete: AnyMesh = jax.sharding.get_mesh()
        if not concrete.empty:
            return concrete
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def mesh_of(tree: PyTree, what: str) -> AnyMesh:
    """The one mesh that the leaves of a tree lie on; the one in context where they name none.

    Raises:
      ShardingError: there is none, or there are two.
    """
    found: dict[AnyMesh, str] = {}
    for path, leaf in named_leaves(tree):
        if (sharding := known_sharding(leaf)) is not None:
            found.setdefault(sharding.mesh, path)
    if len(found) > 1:
        (one, here), (two, there), *_ = found.items()
        raise ShardingError(
            f"{what}: expected leaves on one mesh, got {_short(one)} at '{here}' and {_short(two)} at '{there}'"
        )
    mesh = next(iter(found), None) or context_mesh()
    if mesh is None:
        raise ShardingError(
            f"{what}: expected a mesh, got none: put it in context with jax.set_mesh(mesh), or hand in "
            "arrays that lie on it"
        )
    return mesh


def shardings_of(params: PyTree, shardings: PyTree | None) -> list[NamedSharding]:
    """Where each leaf lies: as given, else as it or its box of Flax's says, else whole on every device.

    Raises:
      ShardingError: no mesh, or two; a spec that does not fit its leaf, with its path.
      ValueError: ``shardings`` has another structure, with the first path that differs.
    """
    leaves, treedef = flatten(params)
    given = [None] * len(leaves) if shardings is None else subtrees(treedef, params, shardings, "shardings", "params")
    mesh = mesh_of(params if shardings is None else shardings, "params" if shardings is None else "shardings")
    found = []
    for (path, leaf), own, boxed in zip(named_leaves(params), given, boxed_specs(params), strict=True):
        sharding = own if own is not None else known_sharding(leaf)
        spec = own if isinstance(own, P) else P(*boxed) if sharding is None else sharding.spec
        check_spec(path, leaf.shape, spec, mesh)
        found.append(NamedSharding(mesh, spec))
    return found


def as_explicit(mesh: AnyMesh) -> AbstractMesh:
    """A mesh of the same axes on which types say how arrays lie; with ``AUTO`` if on the mesh itself they do not."""
    auto = any(kind == AxisType.Auto for kind in mesh.axis_types)
    sizes = (*mesh.axis_sizes, *[1] * auto)
    return AbstractMesh(sizes, (*mesh.axis_names, *[AUTO] * auto), axis_types=(AxisType.Explicit,) * len(sizes))


def boxed_specs(params: PyTree) -> list[tuple[Entry, ...]]:
    """For each leaf the axes of the mesh that its box of Flax's names, by the logical rules in context."""
    found: list[tuple[Entry, ...]] = []
    nnx: Any = sys.modules.get("flax.nnx")  # who has a variable has imported it
    for node in jax.tree.leaves(params, is_leaf=is_box):
        spec: Any = ()
        if isinstance(node, spmd.LogicallyPartitioned):
            spec = spmd.logical_to_mesh_axes(tuple(node.get_partition_spec())) or ()
        elif isinstance(node, meta.Partitioned):
            spec = node.get_partition_spec()
        elif is_box(node):
            spec = nnx.get_partition_spec(nnx.State({"": node}))[""].get_value() or ()
        found += [tuple(spec)] * len(jax.tree.leaves(node))
    return found


def _short(mesh: AnyMesh) -> str:
    return " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
