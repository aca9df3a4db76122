"""A float32 as a bfloat16 and what that lacks: the bits below it.

``hi = (bits + 0x8000) >> 16`` rounds half away from zero, the low 16 bits are kept as they are, and
``((hi - (low >> 15)) << 16) | low`` is where they came from, for every pattern but those of NaN, which become one.
Half to even, as a cast rounds, is no pair: to an even ``hi`` round 65,537 floats, one more than 16 bits can tell.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.numbers import widen
from gradxform.core.trees import is_inexact
from gradxform.core.types import PyTree

NAN, INF, MAGNITUDE = 0x7FC00000, 0x7F800000, 0x7FFFFFFF


def split(x: jax.Array, noise: jax.Array | None = None, *, low: int = 16) -> tuple[jax.Array, jax.Array]:
    """The nearest bfloat16, and the bits below it.

    Args:
      x: float32.
      noise: integers below ``2**(16 - low)``, by which those bits that are not kept round up; by default to nearest.
      low: how many bits are kept below those of the bfloat16, 8 or 16. With 16, ``join`` gives ``x``; with 8, one of
        the two floats with 16 significant bits around it, and ``x`` itself where its last 8 bits are 0.

    Returns:
      A bfloat16, and an unsigned integer of ``low`` bits.
    """
    dropped = 16 - low
    bits = pattern(x)
    if dropped:
        up = jnp.uint32(1 << (dropped - 1)) if noise is None else noise
        bits = (bits + up) >> dropped << dropped
    hi = ((bits + 0x8000) >> 16).astype(jnp.uint16)
    return lax.bitcast_convert_type(hi, jnp.bfloat16), ((bits & 0xFFFF) >> dropped).astype(f"uint{low}")


def join(hi: jax.Array, low: jax.Array) -> jax.Array:
    """The float32 that ``split`` took apart."""
    high = lax.bitcast_convert_type(hi, jnp.uint16).astype(jnp.uint32)
    low = low.astype(jnp.uint32) << (16 - jnp.iinfo(low.dtype).bits)
    # Nothing rounds up to 0. A param that was set to 0 outside of the update stays 0, not what borrows from it: a NaN.
    borrow = jnp.where(high & 0x7FFF == 0, 0, low >> 15)
    return lax.bitcast_convert_type(((high - borrow) << 16) | low, jnp.float32)


def truncate(x: jax.Array, noise: jax.Array) -> jax.Array:
    """One of the two bfloat16 around a float32, by 16 random bits: on average the float32 itself."""
    bits = (pattern(x) + noise) >> 16
    return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


def pattern(x: jax.Array) -> jax.Array:
    """The bits of a float32, those of one NaN for all: rounding up would make another number of some of them."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits & MAGNITUDE > INF, jnp.uint32(NAN), bits)


def move(
    p: jax.Array, master: jax.Array, noise: jax.Array | None = None, *, low: int = 16
) -> tuple[jax.Array, jax.Array]:
    """The update that takes a bfloat16 param to its new master, and what the param then lacks of that: see ``split``.

    Where the sum of the two does not reach the nearest bfloat16, the param that it gives is to lack nothing.
    """
    q, rest = split(master, noise, low=low)
    update = between(p, q)
    lands = (p.astype(jnp.float32) + update).astype(jnp.bfloat16)
    return update, jnp.where(same(lands, q), rest, jnp.zeros_like(rest))


def between(p: jax.Array, q: jax.Array) -> jax.Array:
    """The update that takes ``p`` to ``q``, in float32; -0 where they are equal, which leaves 0 and inf as they are."""
    return jnp.where(p == q, jnp.float32(-0.0), q.astype(jnp.float32) - p.astype(jnp.float32))


def same(p: jax.Array, q: jax.Array) -> jax.Array:
    """Whether two bfloat16 have the same bits. Compared as numbers, they might never be rounded to bfloat16."""
    return lax.bitcast_convert_type(p, jnp.uint16) == lax.bitcast_convert_type(q, jnp.uint16)


def widened(p: PyTree) -> PyTree:
    """A param in float32 at least, and a shape as the shape of that; a leaf of integers or keys as it is."""
    if not is_inexact(p):
        return p
    return jax.eval_shape(widened, p) if isinstance(p, jax.ShapeDtypeStruct) else widen(jnp.asarray(p))
