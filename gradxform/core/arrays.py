"""Checks of arrays, of random keys, and of the numbers that shape arrays."""

from __future__ import annotations

from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gradxform.core import checks


def floating(name: str, x: object) -> jax.Array:
    """``x`` as an array.

    Raises:
      TypeError: it is no array of real floating-point numbers.
    """
    return _of_kind(name, x, (jnp.floating,), "floating-point numbers")


def integers(name: str, x: object) -> jax.Array:
    """``x`` as an array.

    Raises:
      TypeError: it is no array of integers.
    """
    return _of_kind(name, x, (jnp.integer,), "integers")


def mask(name: str, x: object, shape: tuple[int, ...], of: str) -> jax.Array:
    """``x`` as an array of the shape that ``of`` describes.

    Raises:
      TypeError: it is no array of truth values or real numbers.
      ValueError: its shape is another.
    """
    x = _of_kind(name, x, (jnp.bool_, jnp.integer, jnp.floating), "truth values")
    same_shape(name, x, shape, of)
    return x


def same_shape(name: str, x: jax.Array, shape: tuple[int, ...], of: str) -> None:
    """Refuses an array of another shape than the one that ``of`` describes.

    Raises:
      ValueError: for another shape.
    """
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, {of}, got {x.shape}")


def size(name: str, value: SupportsIndex, *, at_least: int = 1, at_most: int | None = None) -> int:
    """``value``, an integer that decides over shapes.

    Raises:
      TypeError: it is no integer, or none that is known before the program runs.
      ValueError: it is out of range.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name}: expected an integer that is known before the program runs, since shapes depend on "
            f"it, got {value}; mark it as static"
        )
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer):
        value = int(value)
    checks.integer(name, value, at_least=at_least, at_most=at_most)
    return int(value)


def number(
    name: str,
    value: float | jax.Array,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """``value``, a real number that decides over shapes.

    Raises:
      TypeError: it is no real number, or none that is known before the program runs.
      ValueError: it is out of range.
    """
    if isinstance(value, jax.core.Tracer) or jnp.ndim(value) != 0:
        raise TypeError(
            f"{name}: expected a number that is known before the program runs, since shapes depend on it, got {value}"
        )
    checks.real(name, value, at_least=at_least, above=above, below=below)
    return float(value)


def pair(
    name: str, value: SupportsIndex | tuple[SupportsIndex, ...] | list[SupportsIndex], *, at_least: int = 1
) -> tuple[int, int]:
    """``value`` as two sizes, rows before columns; a single one is both.

    Raises:
      TypeError: it is neither an integer nor a pair of them.
      ValueError: one is out of range.
    """
    if not isinstance(value, (tuple, list)):
        one = size(name, value, at_least=at_least)
        return one, one
    if len(value) != 2:
        raise TypeError(f"{name}: expected an integer or a pair of them, got {value!r}")
    return size(name, value[0], at_least=at_least), size(name, value[1], at_least=at_least)


def one_key(name: str, key: object) -> jax.Array:
    """``key`` as a typed key, whether it is one already or the raw data of one.

    Raises:
      TypeError: it is no key, or several.
    """
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.ndim == 0:
                return jnp.asarray(key)
            raise TypeError(
                f"{name}: expected one key, got an array of keys of shape {key.shape}; vmap over it, or "
                f"take one of them"
            )
        if key.dtype == jnp.uint32 and key.ndim == 1:
            try:
                return jax.random.wrap_key_data(jnp.asarray(key))
            except (TypeError, ValueError):
                pass
        found = f"an array of dtype {key.dtype} and shape {key.shape}"
    else:
        found = repr(key)
    raise TypeError(f"{name}: expected a key from jax.random.key or jax.random.PRNGKey, got {found}")


def _of_kind(name: str, x: object, kinds: tuple[DTypeLike, ...], what: str) -> jax.Array:
    dtype = getattr(x, "dtype", None)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(f"{name}: expected an array of {what}, got {repr(x) if dtype is None else f'dtype {dtype}'}")
    return jnp.asarray(x)
