"""Mean and variance of masked, sharded arrays: ``mean = sum(x) / n``, ``var = sum((x - mean)**2) / n``.

They are exact under any offset and beside any outlier: the variance is one of differences from a number near the mean,
and the mean is kept as the unrounded sum of two numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.isolate import isolated
from gradxform.core.numbers import wide_dtype, widen
from gradxform.core.platform import by_platform

SAMPLED = 2**17
"""From so many values on, a number near their mean is found from some of them (see ``_one_pass``)."""
SHARE = 32
"""How many times more values there are than are looked at for it, at least; twice as many at most."""


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What statistics are taken over.

    Attributes:
      axes: the axes of the array.
      axis_name: named axes of ``shard_map`` or ``vmap`` besides, or None.
      groups: the groups of indices along the named axis that share statistics, or None for one group.
      centered: whether the mean is subtracted; if not, it counts as 0 and the variance is the mean square.
    """

    axes: tuple[int, ...]
    axis_name: str | tuple[str, ...] | None = None
    groups: tuple[tuple[int, ...], ...] | None = None
    centered: bool = True

    def sum(self, *values: jax.Array) -> Sequence[jax.Array]:
        """The sums over the named axes, in one collective."""
        if self.axis_name is None:
            return values
        return lax.psum(values, self.axis_name, axis_index_groups=self.groups)


class Moments(NamedTuple):
    """Mean and variance along some axes, which are kept with length 1.

    The mean is the unrounded sum of two numbers. At an offset of 3,000 the numbers of float32 are 2.4e-4 apart, and no
    single one of them is near enough to the mean for differences of 1e-5 to come out right.

    Attributes:
      total: how many values were counted.
      mean_high: a number near the mean, without a gradient.
      mean_low: the mean less ``mean_high``.
      var: the biased variance.
    """

    total: jax.Array
    mean_high: jax.Array
    mean_low: jax.Array
    var: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The mean, rounded."""
        return self.mean_high + self.mean_low


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Input:
    """The input of a norm, as it is and as it is computed with: one array twice, made by ``Input.of`` alone.

    The rules here and in ``normalize`` read ``x`` and keep nothing else of its size for the backward pass. Its tangent
    is that of ``wide``, so that what flows back is added up in float32 and rounded once.

    Attributes:
      x: the array.
      wide: the same in float32 at least.
    """

    x: jax.Array
    wide: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> Input:
        """Both forms of one array."""
        return cls(x, widen(x))


@functools.partial(jax.jit, static_argnames="over")
def moments(x: Input, over: Reduction, mask: jax.Array | None = None) -> Moments:
    """Count, mean and variance of the values of ``x`` that ``mask`` keeps.

    Without a single value the mean is 0 and the variance 1, so that what is normalized with them stays as it is.
    """
    (count,) = over.sum(_count(x.x, over.axes, mask))
    high, low, var = _moments(over, x, mask, jnp.maximum(count, 1))
    return Moments(count, high, low, jnp.where(count > 0, var, 1))


def cleaned(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x``, widened, with 0 where it is masked and not finite, or so large that its products would not be.

    The smallest number of a dtype is a usual filling, and a position that counts for nothing must not turn a sum over
    all gradients into NaN.
    """
    x = widen(x)
    if mask is None:
        return x
    return jnp.where(mask | (jnp.abs(x) < math.sqrt(float(jnp.finfo(x.dtype).max))), x, 0)


def _count(x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return jnp.full((1,) * x.ndim, math.prod(x.shape[axis] for axis in axes), wide_dtype(x.dtype))
    # Integers count past 2**24, where float32 stops.
    kept = jnp.ones_like(x, jnp.bool_) & mask
    return jnp.sum(kept, axes, dtype=jnp.int32, keepdims=True).astype(wide_dtype(x.dtype))


Triple: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _moments(
    over: Reduction, x: Input, mask: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return statistics(over, x.x, mask, count)


@_moments.defjvp
def _moments_jvp(over: Reduction, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Triple, Triple]:
    x, mask, count = primals
    high, low, var = _moments(over, x, mask, count)

    def slopes(x: jax.Array, high: jax.Array, low: jax.Array, change: jax.Array) -> tuple[jax.Array, jax.Array]:
        centered = (cleaned(x, mask) - high) - low
        return (_sum(change, over.axes, mask) / count, 2 * _sum(centered * change, over.axes, mask) / count)

    d_mean, d_var = over.sum(*jax.checkpoint(slopes, prevent_cse=False)(x.x, high, low, tangents[0].wide))
    d_mean = d_mean if over.centered else jnp.zeros_like(d_mean)
    return (high, low, var), (jnp.zeros_like(high), d_mean, d_var)


def statistics(
    over: Reduction, x: jax.Array, mask: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two parts of the mean, and the variance, without derivatives."""
    if not over.centered:
        (square,) = over.sum(_mean(over, mask, count, lambda x: jnp.square(widen(x)), x))
        return jnp.zeros_like(square), jnp.zeros_like(square), square
    portable = functools.partial(_one_pass if mask is None and _sample(over, x) is not None else _two_pass, over)
    if over.axis_name is not None:
        return portable(x, mask, count)
    found: tuple[jax.Array, jax.Array, jax.Array] = by_platform(
        portable, x, mask, count, cpu=functools.partial(_guarded, over)
    )
    return found


def _two_pass(
    over: Reduction, x: jax.Array, mask: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean, then what it left over and the variance around it."""
    (near,) = over.sum(_mean(over, mask, count, widen, x))
    return _around(over, near, x, mask, count)


def _one_pass(
    over: Reduction, x: jax.Array, mask: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As ``_two_pass``, around the mean of some of the values: over memory once and not twice.

    The mean of n of N values is no further from that of all than sqrt(N / n) standard deviations, wherever outliers
    are, since those n alone make the variance that large. So the difference of squares loses a factor of 64 at most.
    """
    some = _sample(over, x)
    assert some is not None
    # Of the axes with a name each index has as many values.
    (near,) = over.sum(jnp.sum(widen(some), over.axes, keepdims=True) * (x.size / some.size / count))
    return _around(over, near, x, mask, count)


def _around(
    over: Reduction, near: jax.Array, x: jax.Array, mask: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean and the variance by differences from a number near the mean."""
    rest, square = over.sum(
        _mean(over, mask, count, lambda x, k: widen(x) - k, x, near),
        _mean(over, mask, count, lambda x, k: jnp.square(widen(x) - k), x, near),
    )
    high = near + rest
    # What the sum was rounded by, exactly (Knuth, 1969, 4.2.2).
    part = high - near
    low = (near - (high - part)) + (rest - part)
    return high, low, jnp.maximum(square - jnp.square(rest), 0)


def _sample(over: Reduction, x: jax.Array) -> jax.Array | None:
    """Some of the values of each reduction, which every device has its own of; None where that is not worth it."""
    count = math.prod(x.shape[axis] for axis in over.axes)
    if not isinstance(count, int) or count < SAMPLED:
        return None
    spec = jax.typeof(x).sharding.spec
    for axis in over.axes:
        length = x.shape[axis]
        # The first axis is the batch, which a mesh may divide without anybody's word.
        if axis > 0 and length >= SHARE and (axis >= len(spec) or spec[axis] is None):
            return lax.slice_in_dim(x, length // 2, length // 2 + length // SHARE, axis=axis)
    return None


def _guarded(
    over: Reduction, x: jax.Array, mask: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As ``_two_pass``, faster on CPU where no mean is far from 0 beside its standard deviation.

    XLA's CPU backend has a fast kernel for sums of squares as they are. Under such means they lose nothing; else the
    pass over the differences is made after all. Without it (``_two_pass``) the forward pass of a LayerNorm takes 1.2
    to 1.3 times as long on two cores, that of a BatchNorm 1.2 to 1.3, that of a GroupNorm 1.7 to 1.8.
    """
    near = _mean(over, mask, count, widen, x)
    square = _mean(over, mask, count, lambda x: jnp.square(widen(x)), x)
    safe = jnp.all(5 * jnp.square(near) <= 4 * square)
    return lax.cond(
        safe,
        lambda *_: (near, jnp.zeros_like(near), square - jnp.square(near)),
        functools.partial(_two_pass, over),
        x,
        mask,
        count,
    )


def _mean(
    over: Reduction, mask: jax.Array | None, count: jax.Array, fun: Callable[..., jax.Array], *args: jax.Array
) -> jax.Array:
    # Reductions of the same array, each by itself: they read it faster than together. Without it a BatchNorm, forward
    # and backward, takes 1.2 times as long on a CPU of two cores.
    return isolated(lambda mask, *args: _sum(fun(*args), over.axes, mask), mask, *args) / count


def _sum(values: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    return jnp.sum(values, axes, keepdims=True, where=mask)
