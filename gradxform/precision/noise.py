"""Random bits for rounding without a key: a hash of where and when a number is rounded.

The same seed, step and element give the same bits on any mesh and after any interrupt, so that nothing is carried.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from gradxform.core.types import Step


def noise(seed: Step, step: Step, leaf: int, shape: tuple[int, ...], bits: int) -> jax.Array:
    """Independent uniform integers of ``bits`` bits, one for each element of an array of this shape.

    Args:
      seed: of the run.
      step: the number of the update.
      leaf: the number of the array among those that are rounded in this step.
      shape: of the array.
      bits: 1 to 32.

    Returns:
      An array of uint32 in [0, 2**bits).
    """
    key = _mix(_mix(_mix(_word(seed)) ^ _word(step)) ^ _word(leaf))
    # An odd factor of its own for each array. With a common index, XLA would work that out once for all arrays of a
    # shape, and run their updates together for its sake (v5e: copies of 7.6 bytes an element).
    x, factor = jnp.broadcast_to(_mix(key), shape), key | 1
    for axis in reversed(range(len(shape))):
        # An iota an axis is sharded as the array is, and counts in the whole of it.
        x += lax.broadcasted_iota(jnp.uint32, shape, axis) * factor
        factor *= jnp.uint32(shape[axis])
    return _mix(x) >> jnp.uint32(32 - bits)


def _word(x: ArrayLike) -> jax.Array:
    """An integer as 32 bits; NumPy's scalars would warn where they wrap around."""
    return jnp.asarray(x).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: of two inputs that differ in a bit, each bit of the outputs differs in half."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
