"""A batch over the devices of a mesh: each device works on its own part, and nothing is sent.

A loop over a batch, a branch that each element takes for itself and a hand-written kernel are things that XLA's
partitioner does on every device for the whole batch. Where a mesh is known they are put into ``shard_map`` here. JAX
tells the mesh of an array at trace time, of Auto axes too; of those it does not tell which of them divide the array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform.core.types import PyTree

Whole = TypeVar("Whole")
Batch = TypeVar("Batch")
Results = TypeVar("Results")


def mesh_around(x: jax.Array) -> AbstractMesh:
    """The mesh that an array lies on, or that is in context; an empty one where neither is known."""
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.get_abstract_mesh() if mesh.empty else mesh


def is_local(x: jax.Array) -> bool:
    """Whether what is traced here runs on one device by itself, as far as is known: a kernel can be called."""
    mesh = mesh_around(x)
    return all(
        size == 1 or kind == AxisType.Manual for size, kind in zip(mesh.axis_sizes, mesh.axis_types or (), strict=True)
    )


def dividing_axes(x: jax.Array) -> tuple[str, ...]:
    """The axes of a mesh over which the elements of a batch are to be divided.

    Those that divide it by its type on an Explicit mesh; on an Auto mesh as many as its size is a multiple of.

    Args:
      x: an array whose first axis is the batch.

    Returns:
      Names of axes; none where there is one device, or inside ``shard_map``.
    """
    mesh = mesh_around(x)
    if mesh.empty or mesh.manual_axes:
        return ()
    spec = jax.typeof(x).sharding.spec
    named = spec[0] if len(spec) else None
    if isinstance(named, (str, tuple)):
        return (named,) if isinstance(named, str) else named
    axes: tuple[str, ...] = ()
    parts = 1
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True):
        if kind == AxisType.Auto and size > 1 and isinstance(x.shape[0], int) and x.shape[0] % (parts * size) == 0:
            axes, parts = (*axes, name), parts * size
    return axes


def each_its_own(function: Callable[[Whole, Batch], Results], whole: Whole, batch: Batch, like: jax.Array) -> Results:
    """``function(whole, batch)``, with each device working on its own part of the batch and nothing sent.

    Args:
      function: of what all devices have and of a part of the batch; its results have the batch in front.
      whole: a tree of arrays that all devices have.
      batch: a tree of arrays with the batch in front.
      like: the array of the batch whose mesh counts, divided over its ``dividing_axes``.

    Returns:
      The results of all parts, divided over the axes.
    """
    return divided(lambda whole, batch, _: function(whole, batch), whole, batch, like)


def divided(
    function: Callable[[Whole, Batch, tuple[str, ...] | None], Results], whole: Whole, batch: Batch, like: jax.Array
) -> Results:
    """``function(whole, batch, axis_name)``, with each device working on its own part of the batch.

    As ``each_its_own``, of a function that looks at the parts of others: ``axis_name`` is the axes of the mesh over
    which the batch is divided, None where there is one part.
    """
    axes = dividing_axes(like)
    if not axes:
        return function(whole, batch, None)
    mesh, spec = mesh_around(like), P(axes)
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        batch, whole = _placed(batch, mesh, spec), _placed(whole, mesh, P())
    results: Results = jax.shard_map(
        lambda whole, batch: function(whole, batch, axes), mesh=mesh, in_specs=(P(), spec), out_specs=spec
    )(whole, batch)
    return results


def spread_like(tree: PyTree, like: jax.Array) -> PyTree:
    """The arrays of a tree that have the batch in front, divided as an Explicit mesh divides that of ``like``."""
    lies = jax.typeof(like).sharding
    first = lies.spec[0] if like.ndim and len(lies.spec) else None
    if not isinstance(first, (str, tuple)):
        return tree

    def spread(array: jax.Array) -> jax.Array:
        if jnp.shape(array)[:1] != like.shape[:1]:
            return array
        return jax.sharding.reshard(jnp.asarray(array), NamedSharding(lies.mesh, P(first)))

    return jax.tree.map(spread, tree)


def _placed(tree: PyTree, mesh: AbstractMesh, spec: P) -> PyTree:
    def placed(array: jax.Array) -> jax.Array:
        # What is on no mesh yet, a number made outside of jit, shard_map places by itself; of what a program makes it
        # takes only what is whole.
        if jax.typeof(array).sharding.mesh.empty and (spec == P() or not isinstance(array, jax.core.Tracer)):
            return array
        return jax.sharding.reshard(array, NamedSharding(mesh, spec))

    return jax.tree.map(placed, tree)
