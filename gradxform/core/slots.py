"""What a transformation keeps for each leaf of the params: how it starts, and how it is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import ArrayLike, DTypeLike

from gradxform.core import checks
from gradxform.core.boxes import map_cut
from gradxform.core.numbers import cast, real_dtype, wide_dtype, widen
from gradxform.core.trees import is_inexact, refuse_integers
from gradxform.core.types import Axes, DType, Params, PyTree, Scalar, Shape


@dataclasses.dataclass(frozen=True)
class Slot:
    """One accumulator for each leaf, such as Adam's ``mu``.

    Attributes:
      dtype: what it is stored in; by default the dtype of the leaf, float32 at least. One that is asked for is a real
        one, so the accumulator of a complex leaf stays complex unless it is ``real``.
      real: whether a complex leaf has a real accumulator.
      nonnegative: whether no number in it is ever below 0, as in a mean of squares: a codec may keep its root.
      fill: the number it starts from.
      axes: ``axes(shape)``, which axes of a leaf of this shape the accumulator has: a row of a matrix has ``(0,)``.
        None for a leaf that has no such accumulator, where one number stands in its place. By default all axes.
      start: ``start(params)``, a tree like ``params`` of new arrays to start from in place of a number; they keep their
        dtypes. Where it has an empty node nothing is kept, and the brick is given None.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.Slot(jnp.bfloat16).new({"w": jnp.ones(2)})
      {'w': Array([0, 0], dtype=bfloat16)}
    """

    dtype: DType = None
    real: bool = False
    fill: Scalar = 0.0
    axes: Callable[[Shape], Axes] | None = None
    start: Callable[[Params], PyTree] | None = None
    nonnegative: bool = False

    def __post_init__(self) -> None:
        checks.inexact_dtype("dtype", self.dtype)

    def new(self, params: Params) -> PyTree:
        """The accumulators that a run starts with.

        Args:
          params: the params; their leaves are arrays or ``jax.ShapeDtypeStruct``.

        Returns:
          A tree like ``params``.

        Raises:
          TypeError: a leaf of integers, bools or keys, with its path.
        """
        if self.start is not None:
            return self.start(params)
        refuse_integers(params, "params")
        return jax.tree.map(self._of, params) if self.axes is None else map_cut(self._of, params, self._axes)

    def shape(self, leaf: Shape) -> Shape:
        """The shape that is kept for a leaf of this shape."""
        axes = self._axes(leaf)
        return (1,) if axes is None else tuple(leaf[axis] for axis in axes)

    def read(self, kept: jax.Array) -> jax.Array:
        """What was kept, in the dtype it is computed in."""
        return widen(kept) if is_inexact(kept) else kept

    def write(self, x: ArrayLike, old: jax.Array, leaf: Shape) -> jax.Array:
        """What is kept of ``x`` for a leaf of this shape, stored as ``old`` was."""
        # A number that stands for nothing is written anew: handed through from the old state, it keeps the compiler for
        # a TPU from finishing one leaf before the next (Adafactor: 18.0 bytes a param to and from HBM, not 13.9).
        return jnp.zeros_like(old) if self._axes(leaf) is None else stored_as(old, x)

    def _axes(self, leaf: Shape) -> Axes:
        axes = tuple(range(len(leaf))) if self.axes is None else self.axes(leaf)
        return None if axes is None else tuple(axis % len(leaf) for axis in axes)

    def _of(self, leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        own = jnp.result_type(leaf)
        dtype: DTypeLike = real_dtype(own) if self.real else wide_dtype(own)
        if self.dtype is not None and not jnp.issubdtype(dtype, jnp.complexfloating):
            dtype = self.dtype
        shape = jnp.shape(leaf)
        axes, shape = self._axes(shape), self.shape(shape)
        if not isinstance(leaf, jax.Array) or axes is None or list(axes) != sorted({*axes}):
            return jnp.full(shape, self.fill, dtype)
        if isinstance(leaf, jax.core.Tracer):
            # A constant has no layout under jit. One that looks as if it depended on the leaf is laid out like it.
            never = (leaf != leaf) & (leaf == leaf)
            gone = tuple(axis for axis in range(leaf.ndim) if axis not in axes)
            never = jnp.any(never, axis=gone) if gone else never
            return jnp.where(never, jnp.ones([], dtype), jnp.full([], self.fill, dtype))
        return jnp.full(shape, self.fill, dtype, device=_layout(leaf, axes))


def copy_like(x: ArrayLike, leaf: ArrayLike) -> jax.Array:
    """``x`` in a buffer of its own, laid out as a leaf of its shape."""
    if isinstance(leaf, jax.core.Tracer):
        # As above: what has nothing to do with the leaf would be whole on every device.
        return jnp.where((leaf != leaf) & (leaf == leaf), jnp.zeros([], jnp.result_type(x)), x)
    placed = _layout(leaf, tuple(range(leaf.ndim))) if isinstance(leaf, jax.Array) else None
    return jax.device_put(x if isinstance(x, jax.Array) else np.asarray(x), placed, may_alias=False)


def stored_as(old: jax.Array, x: ArrayLike) -> jax.Array:
    """``x`` in the dtype of the value that it takes the place of; a key as it is."""
    return jnp.asarray(x) if jnp.issubdtype(old.dtype, jax.dtypes.extended) else cast(x, old.dtype)


def _layout(leaf: jax.Array, axes: tuple[int, ...]) -> Sharding | None:
    """Where an array with some of the axes of a leaf lies; None where nobody has said where the leaf is to lie."""
    sharding = leaf.sharding if leaf.committed else None
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec)))
        return NamedSharding(
            sharding.mesh, PartitionSpec(*(spec[axis] for axis in axes)), memory_kind=sharding.memory_kind
        )
    return sharding if isinstance(sharding, SingleDeviceSharding) or len(axes) == leaf.ndim else None
