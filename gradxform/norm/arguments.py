"""Checks of what a norm is given, and its arrays in shapes that broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core import checks
from gradxform.core.arrays import floating
from gradxform.core.types import DType, Scalar

Axes = int | Sequence[int]
AxisName = str | Sequence[str] | None
Groups = Sequence[Sequence[int]] | None


def result_dtype(dtype: DType, x: jax.Array) -> np.dtype:
    """The dtype of the result: ``dtype``, or that of ``x``.

    Raises:
      TypeError: ``dtype`` is not floating-point.
    """
    if dtype is None:
        return x.dtype
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype!r}")
    return jnp.dtype(dtype)


def canonical(name: str, axes: Axes, ndim: int) -> tuple[int, ...]:
    """``axes`` counted from the front, in order.

    Raises:
      TypeError: an axis is no integer.
      ValueError: an axis is out of range or named twice.
    """
    given = tuple(axes) if isinstance(axes, (Sequence, set, frozenset)) and not isinstance(axes, str) else (axes,)
    for axis in given:
        checks.integer(name, axis)
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{name}: expected axes of an array of {ndim} dimensions"
                f"{f', from {-ndim} to {ndim - 1}' if ndim else ', which has none'}, got {axes!r}"
            )
    found = sorted(axis % ndim for axis in given)
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: expected different axes, got {axes!r} for an array of {ndim} dimensions")
    return tuple(int(axis) for axis in found)


def others(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes that are not among ``axes``."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def feature_array(name: str, array: jax.Array | None, x: jax.Array, axes: tuple[int, ...]) -> jax.Array | None:
    """An array with a number for each feature, in the shape that broadcasts against ``x``; None stays None.

    Raises:
      TypeError: it is no floating-point array.
      ValueError: its shape is not that of the feature axes of ``x``.
    """
    if array is None:
        return None
    array = floating(name, array)
    expected = tuple(x.shape[axis] for axis in axes)
    if array.shape != expected:
        raise ValueError(
            f"{name}: expected shape {expected}, a number for each feature along {_named(axes)} of x of "
            f"shape {x.shape}, got {array.shape}"
        )
    return jnp.expand_dims(array, others(axes, x.ndim))


def values(x: jax.Array, axes: tuple[int, ...], name: str = "x") -> None:
    """Refuses statistics over no value.

    Raises:
      ValueError: an axis of ``axes`` has length 0.
    """
    if math.prod(x.shape[axis] for axis in axes) == 0:
        raise ValueError(
            f"{name}: expected at least one value along {_named(axes)} to take statistics of, got an "
            f"empty array of shape {x.shape}"
        )


def several(x: jax.Array, axes: tuple[int, ...], name: str = "x", *, known: bool = True) -> None:
    """Refuses statistics over no value; and over one, which is its own mean, so that all would be normalized to 0.

    Args:
      x: the input.
      axes: what statistics are taken over.
      name: of the input.
      known: whether these are all values: neither a mask nor a named axis says otherwise.

    Raises:
      ValueError: the axes have no place, or a single one and ``known``.
    """
    values(x, axes, name)
    count = math.prod(x.shape[axis] for axis in axes)
    if known and isinstance(count, int) and count == 1:  # what is exported may have dimensions without a number
        along = f"along {_named(axes)}" if axes else "to each feature"
        raise ValueError(
            f"{name}: expected more than one value {along} to take statistics of, got shape {x.shape}; "
            "a value less the mean of itself is 0, whatever it is"
        )


def boolean(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """A mask as a boolean array with as many dimensions as ``x``; None stays None.

    Raises:
      TypeError: the mask is no array of numbers or truth values.
      ValueError: it does not broadcast to ``x``; or it has fewer dimensions, and fits the first ones of ``x`` as well
        as the last, which are those that it would be taken along.
    """
    if mask is None:
        return None
    kind = (mask if hasattr(mask, "dtype") else np.asarray(mask)).dtype
    if not (kind == jnp.bool_ or jnp.issubdtype(kind, jnp.number)):
        raise TypeError(f"mask: expected an array of truth values, got dtype {kind}")
    mask = jnp.asarray(mask)
    if not _broadcasts(mask.shape, x.shape):
        raise ValueError(f"mask: expected a shape that broadcasts to that of x, {x.shape}, got {mask.shape}")
    missing = x.ndim - mask.ndim
    if missing and mask.size > 1 and _broadcasts(mask.shape + (1,) * missing, x.shape):
        first, last = (", ".join(parts) for parts in (["...", *["None"] * missing], [*["None"] * missing, "..."]))
        raise ValueError(
            f"mask: expected {x.ndim} dimensions, as x has, since shape {mask.shape} fits the first axes "
            f"of x of shape {x.shape} as well as the last; write mask[{first}] for the first, "
            f"mask[{last}] for the last"
        )
    return mask.astype(jnp.bool_).reshape((1,) * (x.ndim - mask.ndim) + mask.shape)


def nonnegative(name: str, value: Scalar) -> Scalar:
    """``value``, a real number from 0 on.

    Raises:
      TypeError: it is no real number.
      ValueError: it is negative or NaN.
    """
    checks.real(name, value, at_least=0)
    return value


def names(axis_name: AxisName) -> str | tuple[str, ...] | None:
    """``axis_name`` so that it can be hashed."""
    return axis_name if axis_name is None or isinstance(axis_name, str) else tuple(axis_name)


def index_groups(groups: Groups) -> tuple[tuple[int, ...], ...] | None:
    """``axis_index_groups`` so that they can be hashed."""
    return None if groups is None else tuple(tuple(int(index) for index in group) for group in groups)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _named(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
