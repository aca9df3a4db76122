"""Kernels that look at how the levels of each channel are spread: equalize and autocontrast.

8-bit channels come out as Pillow's ``ImageOps`` makes them, to the last bit.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.augment.pixels.arithmetic import quotient, within
from gradxform.augment.pixels.canvas import Planes, real, true_size
from gradxform.core.isolate import isolated
from gradxform.core.platform import by_platform

FEW_ROWS = 8
"""So many rows, and fewer, are reduced as they are."""
EXACT = 1 << 24
"""Up to so many ones add up exactly in float32."""


def equalize(planes: Planes) -> Planes:
    """Each channel's levels spread so that about as many pixels take each of them.

    A float image is equalized by the 256 levels that its values, times 255, are nearest to.
    """

    def by(how: LookUps) -> Callable[[Planes], Planes]:
        return lambda planes: [_equalized(plane, math.prod(true_size(planes)), how) for plane in planes]

    equalized: Planes = by_platform(by(ELEMENTS), planes, tpu=by(PRODUCTS))
    return equalized


def autocontrast(planes: Planes) -> Planes:
    """Each channel stretched so that its least value is black and its greatest white; a constant one stays.

    A float image is stretched as it is, not by levels.
    """
    counted = real(planes)
    if planes[0].dtype != jnp.int32:
        return [_stretched_floats(plane, counted) for plane in planes]

    def by_table(planes: Planes) -> Planes:
        return [_stretched(plane, real(planes)) for plane in planes]

    def by_pixel(planes: Planes) -> Planes:
        return [_stretch(plane, *_bounds(plane, real(planes), folds=False)) for plane in planes]

    stretched: Planes = by_platform(by_table, planes, gpu=by_pixel, tpu=by_pixel)
    return stretched


class LookUps(NamedTuple):
    """How a machine counts and looks up.

    Attributes:
      histogram: how many pixels of a channel (H, W) have each of the 256 levels, int32.
      look_up: the entry of a table, of integers in 0..255 over a divisor, for each level of a channel.
    """

    histogram: Callable[[jax.Array], jax.Array]
    look_up: Callable[[jax.Array, jax.Array, int], jax.Array]


def _counted(levels: jax.Array) -> jax.Array:
    return jnp.zeros(256, jnp.int32).at[levels.ravel()].add(1, mode="promise_in_bounds")


def _looked_up(table: jax.Array, levels: jax.Array, divisor: int = 1) -> jax.Array:
    return _over(table, divisor).at[levels].get(mode="promise_in_bounds")


def _over(table: jax.Array, divisor: int) -> jax.Array:
    return table if divisor == 1 else table.astype(jnp.float32) / divisor


# A TPU takes one element after another where it looks up and where it scatters, and has an array of multipliers for
# products of matrices. A level is 16 a + b, and each of the two 0 but for a 1 at its place: exact in bfloat16. (A GPU
# keeps a table at hand: equalize of 64 images of 224 x 224 moves 99 MB there, and by products it would be 2,150.)


def _counted_by_products(levels: jax.Array) -> jax.Array:
    """Counts as ``sum over pixels of onehot(a) onehot(b)^T``, (16, 16)."""
    rows = max(1, EXACT // levels.shape[1])
    return functools.reduce(
        operator.add, (_counts(levels[start : start + rows]) for start in range(0, levels.shape[0], rows))
    ).reshape(256)


def _counts(levels: jax.Array) -> jax.Array:
    high, low = (one.astype(jnp.bfloat16) for one in _one_hots(levels))
    pairs = lax.dot_general(high, low, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return pairs.astype(jnp.int32)


def _looked_up_by_products(table: jax.Array, levels: jax.Array, divisor: int = 1) -> jax.Array:
    """Of ``table^T onehot(a)``, (16, pixels), what is at b."""
    high, low = _one_hots(levels)
    columns = lax.dot_general(
        table.reshape(16, 16).astype(jnp.bfloat16),
        high.astype(jnp.bfloat16),
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return _over(jnp.sum(jnp.where(low, columns, 0), 0).astype(jnp.int32).reshape(levels.shape), divisor)


def _one_hots(levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each pixel's higher and lower four bits are each of 16, (16, pixels)."""
    # In bytes, or four times the image would be kept from the counts to the look-up.
    flat = lax.optimization_barrier(levels.astype(jnp.uint8)).astype(jnp.int32).reshape(-1)
    sixteen = jnp.arange(16, dtype=jnp.int32)[:, None]
    return flat >> 4 == sixteen, flat & 15 == sixteen


ELEMENTS = LookUps(_counted, _looked_up)
PRODUCTS = LookUps(_counted_by_products, _looked_up_by_products)


def _equalized(plane: jax.Array, pixels: int | jax.Array, by: LookUps) -> jax.Array:
    levels = plane if plane.dtype == jnp.int32 else jnp.floor(plane * 255 + 0.5).astype(jnp.int32)
    identity = jnp.arange(256, dtype=jnp.int32)
    # Beyond the true size of the image there are zeros.
    counts = by.histogram(levels) - jnp.where(identity == 0, levels.size - pixels, 0)
    brightest = jnp.max(jnp.where(counts > 0, identity, 0))
    step = (pixels - jnp.sum(jnp.where(identity == brightest, counts, 0), dtype=jnp.int32)) // 255
    darker = _running_sum(counts) - counts

    def filled(step: jax.Array, darker: jax.Array) -> jax.Array:
        # A single level makes a step of 0.
        return jnp.where(step == 0, identity, jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255))

    # Apart, or XLA would put it into the loop over the pixels with all that leads to it.
    table = isolated(filled, step, darker)
    if plane.dtype == jnp.int32:
        return by.look_up(table, levels, 1)
    return jnp.where(step == 0, plane, by.look_up(table, levels, 255))


def _running_sum(counts: jax.Array) -> jax.Array:
    """The cumulative sum of 256 integers."""
    # XLA makes a cumulative sum of n * n additions on a CPU; sixteen by sixteen there are few.
    upto = jnp.tri(16, dtype=bool)
    rows = counts.reshape(16, 16)
    inner = jnp.sum(jnp.where(upto, rows[:, None, :], 0), axis=2, dtype=jnp.int32)
    before = jnp.sum(jnp.where(upto & ~jnp.eye(16, dtype=bool), inner[:, -1], 0), axis=1, dtype=jnp.int32)
    return (inner + before[:, None]).reshape(256)


def _bounds(plane: jax.Array, counted: jax.Array | None, folds: bool = True) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest value, of the pixels that count."""
    least, most = (plane, plane) if counted is None else (jnp.where(counted, plane, 255), jnp.where(counted, plane, 0))
    if not folds:
        return jnp.min(least), jnp.max(most)
    return _folded(jnp.minimum, jnp.min, least), _folded(jnp.maximum, jnp.max, most)


def _folded(
    combine: Callable[[jax.Array, jax.Array], jax.Array], reduce: Callable[[jax.Array], jax.Array], plane: jax.Array
) -> jax.Array:
    """``reduce(plane)``, half of the rows combined with the other half while there are many.

    XLA's CPU backend takes one value after another where it reduces a plane to a number; two halves are vectorized.
    """
    found = []
    while plane.shape[0] > FEW_ROWS:
        half = plane.shape[0] // 2
        if plane.shape[0] % 2:
            found.append(reduce(plane[-1:]))
        plane = combine(plane[:half], plane[half : 2 * half])
    return functools.reduce(combine, found, reduce(plane))


def _stretched(plane: jax.Array, counted: jax.Array | None) -> jax.Array:
    low, high = isolated(_bounds, plane, counted)
    return _looked_up(isolated(_stretch, jnp.arange(256, dtype=jnp.int32), low, high), plane)


def _stretched_floats(plane: jax.Array, counted: jax.Array | None) -> jax.Array:
    low, high = isolated(_bounds, plane, counted)
    spread = jnp.where(low < high, high - low, 1.0)
    return jnp.where(low < high, within((plane - low) / spread, 0.0, 1.0), plane)


def _stretch(levels: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """``int(i * scale - low * scale)`` of levels i in low..high with ``scale = 255 / (high - low)``, as float64 has it.

    Where the exact result is a whole number, as for the greatest level, float64 may fall short of it, and Pillow
    with it.
    """
    spread = jnp.maximum(high - low, 1)
    above = jnp.clip(levels - low, 0, spread)
    exact = quotient(255 * above, spread)
    is_whole = (exact * spread == 255 * above) & (exact > 0)
    stretched = exact - (is_whole & _falls_short(low, spread, above, exact)).astype(jnp.int32)
    return jnp.where(low < high, stretched, levels)


def _falls_short(low: jax.Array, spread: jax.Array, above: jax.Array, whole: jax.Array) -> jax.Array:
    """Whether float64 makes less of ``(low + above) * scale - low * scale`` than the whole number that it is.

    All in units of the last bit of ``scale``, of 53 bits: there, what is lost is a small integer. ``scale`` is
    off by ``error / spread``, so that ``above * scale`` is off by ``whole * error / 255``; each product by what its
    rounding to 53 bits adds; and the difference is rounded once more, back to the whole number from at most half of
    the step between numbers below it.
    """
    units = jnp.asarray(_last_bits())
    # Chosen by a sum: a single look-up would be one for each channel.
    bits, error = jnp.sum(jnp.where(jnp.arange(256) == spread, units, 0), axis=1, dtype=jnp.int32)
    divisor = spread.astype(jnp.float32)
    first = _exponent(255.5 / divisor)

    def added_by_rounding(number: jax.Array) -> jax.Array:
        """To ``number * scale``: half to even."""
        product = number * bits
        # Half a step from any power of two, the rounding of floats does no harm.
        dropped = jnp.maximum(_exponent((255 * number.astype(jnp.float32) + 0.5) / divisor) - first, 0)
        half, even = (1 << dropped) >> 1, 1 - ((product >> dropped) & 1)
        return ((product + half - jnp.minimum(even, half)) >> dropped << dropped) - product

    off = ((whole * error * 257 + (1 << 15)) >> 16) + added_by_rounding(low + above) - added_by_rounding(low)
    return -2 * off > 1 << jnp.maximum(_exponent(whole.astype(jnp.float32) - 0.5) - first, 0)


def _exponent(x: jax.Array) -> jax.Array:
    """``floor(log2(x))`` and a constant; below any other where x is not above 0."""
    return lax.bitcast_convert_type(x, jnp.int32) >> 23


@functools.cache
def _last_bits() -> np.ndarray:
    """For each spread d the last 9 bits of m and ``m * d - 255 * 2**e``, where float64 has ``m / 2**e`` for 255 / d."""
    found = [(0, 0)]
    for spread in range(1, 256):
        fraction, exponent = math.frexp(255 / spread)
        mantissa = int(fraction * 2**53)
        found.append((mantissa % 512, mantissa * spread - 255 * 2 ** (53 - exponent)))
    return np.array(found, np.int32).T
