"""Params divided over the devices that share the data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform.core import checks
from gradxform.core.selectors import compile_pattern
from gradxform.core.trees import named_leaves, structure
from gradxform.core.types import Params, PyTree
from gradxform.sharding.specs import (
    AnyMesh,
    Entry,
    Leaf,
    boxed_specs,
    check_axes,
    check_spec,
    entries,
    entry_of,
    names,
    parts,
)

Division: TypeAlias = tuple[tuple[str, ...], ...]
"""For each dimension of a leaf the axes of the mesh that are to divide it."""
Rules: TypeAlias = Sequence[tuple[str, P | tuple[Entry, ...] | None]]
MIN_SIZE = 2**16
"""Bytes of the least leaf that is divided: what is sent of a smaller one costs more in latency than it saves."""


def fsdp(
    params: Params, mesh: AnyMesh, axis: str | tuple[str, ...] = "data", *, rules: Rules = (), min_size: int = MIN_SIZE
) -> PyTree:
    """Shardings by which each param is divided over the data axis: a place for each, decided by its global shape.

    The first rule whose pattern is found in the path of a leaf decides over it. Else the axes that its box of Flax's
    names stay as they are, and ``axis`` divides the largest dimension that is left and that it divides evenly; where
    there is none, each of several axes may divide another one, as 256 x 4 devices do a kernel of 512 x 1,536.

    Args:
      params: a tree of arrays or ``jax.ShapeDtypeStruct``, in boxes of Flax's or not, or an ``nnx.State``.
      mesh: the mesh.
      axis: the axis of the mesh, or several as one.
      rules: pairs ``(pattern, spec)`` of a regular expression of paths and a ``PartitionSpec``, a tuple, or None for
        whole on every device.
      min_size: bytes from which on a leaf is divided, >= 0.

    Returns:
      A tree like ``params`` of ``NamedSharding``.

    Raises:
      TypeError: a pattern is not a string, or ``min_size`` not an integer.
      ValueError: a pattern is not a regular expression, or ``min_size`` is negative.
      ShardingError: an axis that is not in the mesh; a spec longer than the shape; a dimension that does not divide.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> shapes = {"w": jax.ShapeDtypeStruct((256, 512), jnp.float32), "b": jax.ShapeDtypeStruct((512,), jnp.float32)}
      >>> [sharding.spec for sharding in jax.tree.leaves(gx.sharding.fsdp(shapes, mesh))]
      [P(None,), P(None, 'data')]
    """
    axes = names(axis)
    check_axes("axis", axes, mesh)
    checks.integer("min_size", min_size, at_least=0, known=True)
    compiled = [(compile_pattern("rules", pattern), spec) for pattern, spec in rules]
    treedef = structure(params)
    found = []
    for (path, leaf), boxed in zip(named_leaves(params), boxed_specs(params), strict=True):
        ruled = [spec for pattern, spec in compiled if pattern.search(path)]
        if ruled:
            spec = ruled[0] if isinstance(ruled[0], P) else P(*(() if ruled[0] is None else ruled[0]))
        else:
            own = entries([_present(entry, mesh) for entry in boxed], leaf.ndim)
            if size_of(leaf) >= min_size and not any(name in names(entry) for entry in own for name in axes):
                along = division(leaf.shape, own, mesh, axes)
                own = [entry_of(some) if some else entry for entry, some in zip(own, along, strict=True)]
            spec = P(*own)
        check_spec(path, leaf.shape, spec, mesh)
        found.append(NamedSharding(mesh, spec))
    return treedef.unflatten(found)


def division(shape: tuple[int, ...], own: Sequence[Entry], mesh: AnyMesh, axes: Sequence[str]) -> Division:
    """Which of ``axes`` are to divide which dimensions, of those that nothing divides.

    The dimension that some of them bring into the most equal pieces, of several the largest, is divided by these; the
    other axes go on with the other dimensions alike, and those that divide none divide nothing.
    """
    found: list[tuple[str, ...]] = [()] * len(shape)
    free = [dim for dim, size in enumerate(shape) if own[dim] is None and size]
    left = tuple(axes)
    while fits := [
        (parts(mesh, some), shape[dim], len(some), -dim, some)
        for dim in free
        for count in range(1, len(left) + 1)
        for some in itertools.combinations(left, count)
        if shape[dim] % parts(mesh, some) == 0
    ]:
        *_, place, some = max(fits)
        found[-place] = some
        free.remove(-place)
        left = tuple(name for name in left if name not in some)
    return tuple(found)


def size_of(leaf: Leaf) -> int:
    """Bytes of a whole leaf."""
    return int(leaf.size) * jax.numpy.dtype(leaf.dtype).itemsize if leaf.ndim else 0


def _present(entry: Entry, mesh: AnyMesh) -> Entry:
    """What of an entry are axes of a mesh: a logical axis that nothing maps to one divides nothing."""
    return entry_of([name for name in names(entry) if name in mesh.axis_names])
