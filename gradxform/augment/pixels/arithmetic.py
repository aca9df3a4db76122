"""Arithmetic of kernels in the forms that compilers turn into single instructions.

The minimum of XLA, its bounds and its conversion to integers each see to numbers that are none and to overflow, for
which a CPU takes several instructions each. A choice between two numbers is the instruction that it has for a minimum.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_SHIFT = 1.5 * 2.0**23
"""Added to a whole number of up to 22 bits, it has it in the lowest bits of the sum."""


def exact(product: Any) -> Any:
    """A product whose rounding counts: a compiler may not fuse it with the sum that it goes into.

    XLA contracts ``a * b + c`` to one operation with one rounding where the processor has it. No product here
    exceeds the bound, but a compiler does not know.
    """
    if not isinstance(product, jax.Array) or product.dtype == jnp.int32:
        return product  # known before the program runs, in float64, or not rounded at all
    return jnp.where(product > 2.0**24, 2.0**24, product)


def within(x: jax.Array, low: float, high: float) -> jax.Array:
    """Floats, or the bound where they are beyond one; NaN stays. On a bound the slope is 1."""
    x = jnp.where(x < low, low, x)
    return jnp.where(x > high, high, x)


def whole(x: jax.Array) -> jax.Array:
    """Floats from 0 to below 2**22 as int32, rounded down; NaN is 0."""
    shifted = jnp.floor(x).astype(jnp.float32) + _SHIFT
    return lax.bitcast_convert_type(shifted, jnp.int32) & (2**22 - 1)


def quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a // b`` of int32, for 0 <= a < 2**18 and 0 < b < 2**10, vectorized as division of integers is not."""
    # Half a step from any whole number, the rounding of floats does no harm.
    return whole((a.astype(jnp.float32) + 0.5) / b.astype(jnp.float32))


def inward(index: jax.Array, size: int | jax.Array, mode: str) -> jax.Array:
    """Indices of pixels, beyond the rim too, as indices of pixels that there are."""
    if mode == "reflect" and not is_one(size):
        last = 2 * size - 2
        # A size that is only known when the program runs may be 1.
        # A remainder as C has it, and mirrored at 0: that of Python asks a kernel what chip it is for.
        index = jnp.abs(lax.rem(index, jnp.broadcast_to(jnp.maximum(jnp.asarray(last, index.dtype), 1), index.shape)))
        return jnp.minimum(index, last - index)
    return jnp.clip(index, 0, size - 1)


def is_one(size: int | jax.Array) -> bool:
    """Whether a size is known to be 1."""
    return not isinstance(size, jax.Array) and size == 1
