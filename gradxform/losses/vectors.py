"""Checks of embeddings, and their directions."""

from __future__ import annotations

from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from gradxform.core import arrays, checks
from gradxform.core.numbers import widen
from gradxform.core.types import Scalar

Precision = str | lax.Precision
"""Of products of float32 vectors, as JAX names it."""
REDUCTIONS = ("mean", "sum", "none")


def embeddings(name: str, z: jax.Array, *, at_least: int = 1) -> jax.Array:
    """``z`` as an array of vectors.

    Raises:
      TypeError: it is no floating-point array.
      ValueError: it has not two axes, or too few vectors.
    """
    z = arrays.floating(name, z)
    if z.ndim != 2 or not z.shape[1]:
        raise ValueError(f"{name}: expected shape (batch, features), got {z.shape}")
    if z.shape[0] < at_least:
        raise ValueError(f"{name}: expected a batch of at least {at_least}, got shape {z.shape}")
    return z


def everywhere(z: jax.Array) -> jax.Array:
    """``z`` on every device, where the mesh has axes that programs name: each example is compared with all others."""
    sharding = jax.typeof(z).sharding
    if all(part is None for part in sharding.spec):
        return z
    return jax.sharding.reshard(z, NamedSharding(sharding.mesh, PartitionSpec()))


def ids(name: str, value: jax.Array, count: int) -> jax.Array:
    """``value`` as ``count`` integers of 32 bits, of which only equality counts.

    Raises:
      TypeError: it is no array of integers.
      ValueError: there are not as many.
    """
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer):
        # Numbers beyond 32 bits would be cut; their order is all that counts.
        value = np.unique(value, return_inverse=True)[1].reshape(value.shape).astype(np.int32)
    value = arrays.integers(name, value)
    if value.shape != (count,):
        raise ValueError(f"{name}: expected one for each of the {count} vectors, shape {(count,)}, got {value.shape}")
    return value.astype(jnp.int32)


def static_size(name: str, value: SupportsIndex) -> int:
    """``value``, an integer from 1 on that is known when the program is built.

    Raises:
      TypeError: it is no Python or NumPy integer.
      ValueError: it is less than 1.
    """
    if isinstance(value, jax.Array):
        raise TypeError(f"{name}: expected an integer, got an array of dtype {value.dtype}")
    checks.integer(name, value, at_least=1)
    return int(value)


def precision(value: Precision) -> lax.Precision:
    """What JAX calls the precision of products.

    Raises:
      TypeError: it is neither a ``jax.lax.Precision`` nor a string.
      ValueError: it is no name of one.
    """
    if not isinstance(value, (str, lax.Precision)):
        raise TypeError(f"precision: expected a jax.lax.Precision or the name of one, got {value!r}")
    try:
        return lax.Precision(value)
    except ValueError as error:
        raise ValueError(
            "precision: expected 'highest', 'high', 'default' or another name that jax.lax.Precision "
            f"takes, got {value!r}"
        ) from error


def pair(names: tuple[str, str], a: jax.Array, b: jax.Array, *, at_least: int = 1) -> tuple[jax.Array, jax.Array]:
    """Two arrays of vectors of the same shape.

    Raises:
      TypeError: one is no floating-point array.
      ValueError: their shapes are not the same, or no batches of vectors.
    """
    a, b = embeddings(names[0], a, at_least=at_least), embeddings(names[1], b, at_least=at_least)
    if a.shape != b.shape:
        raise ValueError(f"{names[1]}: expected the shape of {names[0]}, {a.shape}, got {b.shape}")
    return a, b


def positive(name: str, value: Scalar) -> Any:
    """``value``, a real number above 0.

    Raises:
      TypeError: it is no real number.
      ValueError: it is 0, negative or NaN.
    """
    checks.real(name, value, above=0)
    return number(name, value)


def number(name: str, value: Scalar) -> Any:
    """``value``, a single number.

    Raises:
      ValueError: it is an array of several.
    """
    if jnp.ndim(value):
        raise ValueError(f"{name}: expected a single number, got an array of shape {jnp.shape(value)}")
    return value


def directions(z: jax.Array) -> jax.Array:
    """The vectors over their lengths, in float32 at least; a vector of zeros stays one, and has no gradient."""
    z = widen(z)
    # Its largest number taken out, a vector's square neither overflows nor vanishes, and its direction is the same.
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
    some = largest != 0
    z = z / jnp.where(some, largest, 1)
    square = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
    return jnp.where(some, z * lax.rsqrt(jnp.where(some, square, 1)), 0)


def narrowed(u: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Directions in the dtype of the embeddings they come from, for the matrix units; sums are float32."""
    return u.astype(dtype) if jnp.finfo(dtype).bits < 32 else u


def reduced(losses: jax.Array, reduction: str, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """Losses of examples as one number, over all devices of the named axis, or as they are.

    Raises:
      ValueError: there is no such reduction.
    """
    checks.choice("reduction", reduction, REDUCTIONS)
    if reduction == "none":
        return losses
    total = jnp.sum(losses) if reduction == "sum" else jnp.mean(losses)
    if axis_name is None:
        return total
    return lax.psum(total, axis_name) if reduction == "sum" else lax.pmean(total, axis_name)
