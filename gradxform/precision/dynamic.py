"""The dynamic code of bitsandbytes: seven decades, whose steps grow coarser downward."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.precision.bits import MAGNITUDE, bits_of, noise_for
from gradxform.precision.codec import Pair
from gradxform.precision.rows import largest, spread


@functools.cache
def table(signed: bool) -> np.ndarray:
    """The 256 numbers, in order: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (ICLR 2022)."""
    numbers = [0.0, 1.0]
    for decade in range(7):
        steps = 2 ** (decade + (0 if signed else 1))
        edges = np.linspace(0.1, 1.0, steps + 1)
        middle = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        numbers += [*middle, *(-middle if signed else ())]
    return np.sort(np.array(numbers, np.float32))


def dynamic(block: int | None, rounding: str) -> tuple[Pair, Pair]:
    """The pairs of codes for both signs and for numbers that are never below 0, with a float32 scale a block."""
    return _pair(block, rounding, signed=True), _pair(block, rounding, signed=False)


def _pair(block: int | None, rounding: str, *, signed: bool) -> Pair:
    numbers = table(signed)

    def encode(x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        # There is no -1 among the codes: the least has to be reached by the least number.
        reach = jnp.where(x < 0, x / numbers[0], x) if signed else jnp.abs(x)
        # Sixteen digits of the scale, which the last bit of a product does not change.
        size = jnp.minimum(bits_of(reach) & MAGNITUDE, np.uint32(0x7F7FFF00))
        size = jnp.where(jnp.isfinite(x), size, np.uint32(0x7FC00000)).astype(jnp.int32)
        top = (largest(size, block) + 0x40) & ~0x7F
        scale = lax.bitcast_convert_type(top, jnp.float32)
        y = x / jnp.maximum(spread(scale, x.shape, block), jnp.finfo(jnp.float32).tiny)
        for end in (numbers[0], numbers[-1]) if signed else (numbers[-1],):
            y = jnp.where(jnp.abs(y - end) < 2.0**-14, end, y)
        below = jnp.minimum(_last_below(numbers, y), 254)
        low, high = _look_up(numbers, below), _look_up(numbers, below + 1)
        # In 2**-13: a number that was decoded is back at its code in spite of the division's last bit.
        up = jnp.round((y - low) / (high - low) * 8192) > (noise_for(rounding, noise) >> 19).astype(jnp.float32)
        code = below + up
        if not signed:
            code = jnp.where(x > 0, jnp.maximum(code, 1), 0)
        return code.astype(jnp.uint8), scale

    def decode(coded: tuple[jax.Array, jax.Array]) -> jax.Array:
        code, scale = coded
        return _look_up(numbers, code) * spread(scale, code.shape, block)

    return Pair(encode, decode)


def _last_below(numbers: np.ndarray, y: jax.Array) -> jax.Array:
    """The place of the last of 256 numbers in order that is at most ``y``, 0 where there is none.

    ``jnp.searchsorted`` fails for a ``y`` that is divided by its type.
    """
    place = jnp.zeros_like(y, jnp.int32)
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        place = jnp.where(y >= _look_up(numbers, place + step), place + step, place)
    return place


def _look_up(numbers: np.ndarray, place: jax.Array) -> jax.Array:
    lies = jax.typeof(place).sharding
    return jnp.asarray(numbers).at[place].get(out_sharding=None if lies.mesh.empty else lies)
