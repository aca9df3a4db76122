"""Arrays inside ``shard_map``, where JAX knows which differ from device to device: pieces of larger ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from gradxform.core.trees import named_leaves
from gradxform.core.types import Arrays, PyTree

AxisName: TypeAlias = str | tuple[str, ...] | Mapping[str, int] | None
"""The named axes along which leaves are in pieces, and maybe which axis of a leaf each of them divides."""


class ShardingError(ValueError):
    """What needs a whole leaf got a piece of one, inside ``shard_map``, and was not told how to see the rest.

    Example:
      >>> import gradxform as gx
      >>> issubclass(gx.ShardingError, ValueError)
      True
    """


def check_axis_name(axis_name: AxisName) -> None:
    """Refuses what names no axes.

    Raises:
      TypeError: neither a name, nor a tuple of names, nor a dict from a name to an axis of a leaf, nor None.
    """
    known = (
        axis_name is None
        or isinstance(axis_name, (str, tuple))
        or (isinstance(axis_name, Mapping) and all(isinstance(axis, int) for axis in axis_name.values()))
    )
    if not known or not all(isinstance(name, str) for name in _names(axis_name)):
        raise TypeError(
            "axis_name: expected the name of an axis, a tuple of them, or a dict from a name to the axis "
            f"of a leaf that it divides, got {axis_name!r}"
        )


def refuse_pieces(what: str, axis_name: AxisName, *trees: PyTree) -> None:
    """Refuses pieces where nobody has said what to do with them.

    Raises:
      ShardingError: ``axis_name`` is None and a leaf differs from device to device.
    """
    if axis_name is not None or not jax.sharding.get_abstract_mesh().manual_axes:
        return
    for path, leaf in (named for tree in trees for named in named_leaves(tree)):
        if along := sorted(_varying(leaf)):
            name = repr(along[0] if len(along) == 1 else tuple(along))
            raise ShardingError(
                f"{what}: expected whole leaves, got a piece that differs along {name} at '{path}'; "
                f"axis_name={name} takes the pieces together, axis_name=() each device by itself"
            )


def spread(x: jax.Array, axis_name: AxisName, axes: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """The named axes along which a reduction of ``x`` over ``axes`` has to go on, None for all of them.

    Where JAX tracks what differs (``shard_map`` with ``check_vma=True``), an array that does not is whole. Elsewhere
    each is taken for a piece.

    Raises:
      ShardingError: ``x`` is a piece, and along which of its axes is not known.
    """
    along = tuple(
        name for name in _names(axis_name) if name in _varying(x) or name not in _varying(lax.axis_index(name))
    )
    inside = set(range(x.ndim)) if axes is None else {axis % x.ndim for axis in axes}
    if not along or len(inside) == x.ndim:
        return along
    if not isinstance(axis_name, Mapping):
        raise ShardingError(
            f"axis_name: expected which axis of a leaf {along[0]!r} divides, such as "
            f"{{{along[0]!r}: 0}}, got {axis_name!r} for a piece of shape {x.shape}"
        )
    return tuple(name for name in along if axis_name[name] % x.ndim in inside)


def total(
    x: jax.Array, axis_name: AxisName, axes: tuple[int, ...] | None = None, *, keepdims: bool = False
) -> jax.Array:
    """The sum over some axes of the array that ``x`` is a piece of."""
    along, own = spread(x, axis_name, axes), jnp.sum(x, axes, keepdims=keepdims)
    return lax.psum(own, along) if along else own


def size(x: jax.Array, axis_name: AxisName) -> int:
    """The number of elements of the array that ``x`` is a piece of."""
    return x.size * lax.axis_size(along) if (along := spread(x, axis_name)) else x.size


def everywhere(flag: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether a flag is set on all devices along the named axes."""
    along = spread(flag, axis_name)
    return lax.psum(jnp.where(flag, 0, 1), along) == 0 if along else flag


def known_devices(tree: PyTree) -> int:
    """How many devices a trace knows of: by the mesh in context, ``shard_map``'s included, or by the types of arrays.

    On a mesh of Auto axes that only the arrays handed in name it knows of none, and this is 1.
    """
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree))]
    return max(mesh.size for mesh in meshes if not mesh.empty) if any(not mesh.empty for mesh in meshes) else 1


def varying_like(reference: Arrays, arrays: Arrays) -> Arrays:
    """``arrays`` made to differ from device to device along all manual axes along which ``reference`` does.

    Inside ``shard_map`` JAX would do so where they meet; done before, the gradient of an array that all devices share
    is summed over devices in the size of that array, and not of what it is combined with.

    Args:
      reference: an array, or a tree of them.
      arrays: a tree of arrays.

    Returns:
      The same tree.
    """
    wanted = frozenset[str]().union(*map(_varying, jax.tree.leaves(reference)))

    def cast(array: jax.Array) -> jax.Array:
        missing = wanted - _varying(array)
        return lax.pcast(array, tuple(missing), to="varying") if missing else array

    return jax.tree.map(cast, arrays)


def _varying(array: ArrayLike) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying


def _names(axis_name: AxisName) -> tuple[str, ...]:
    return () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
