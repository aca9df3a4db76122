"""Mean and variance of masked, sharded arrays, exact under any offset."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.isolate import isolated
from gradxform.core.numbers import wide_dtype, widen


class Across(NamedTuple):
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

    def sum(self, *values: Any) -> Any:
        """The sums over the named axes, in one collective."""
        if self.axis_name is None:
            return values
        return lax.psum(values, self.axis_name, axis_index_groups=self.groups)


class Spread(NamedTuple):
    """Mean and variance along some axes, which are kept with length 1.

    The mean is the unrounded sum of two numbers. At an offset of 3,000 the numbers of float32 are 2.4e-4 apart, and no
    single one of them is near enough to the mean for differences of 1e-5 to come out right.

    Attributes:
      total: how many values were counted.
      shift: a number near the mean, without a gradient.
      rest: the mean less ``shift``.
      var: the biased variance.
    """

    total: jax.Array
    shift: jax.Array
    rest: jax.Array
    var: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The mean, rounded."""
        return self.shift + self.rest


@functools.partial(jax.jit, static_argnames="across")
def spread(x: jax.Array, carrier: jax.Array, across: Across, mask: jax.Array | None = None) -> Spread:
    """Count, mean and variance of the values of ``x`` that ``mask`` keeps.

    The rules here and in ``normalize`` read ``x`` and keep nothing else of its size for the backward pass; what flows
    back goes through the carrier, which is ``widen(x)`` for both of them: it is added up in float32 and rounded once.
    Without a single value the mean is 0 and the variance 1, so that what is normalized with them stays as it is.
    """
    count, = across.sum(_count(x, across.axes, mask))
    shift, rest, var = _spread(across, x, carrier, mask, jnp.maximum(count, 1))
    return Spread(count, shift, rest, jnp.where(count > 0, var, 1))


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spread(across: Across, x: jax.Array, carrier: jax.Array, mask: jax.Array | None, count: jax.Array,
            ) -> tuple[jax.Array, jax.Array, jax.Array]:
    if across.axis_name is None and across.centered:
        return lax.platform_dependent(x, mask, count, cpu=functools.partial(_guarded, across),
                                      default=functools.partial(_two_pass, across))
    return _two_pass(across, x, mask, count)


@_spread.defjvp
def _spread_jvp(across: Across, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    x, carrier, mask, count = primals
    shift, rest, var = _spread(across, x, carrier, mask, count)

    def slopes(x: jax.Array, shift: jax.Array, rest: jax.Array, change: jax.Array) -> tuple[jax.Array, jax.Array]:
        centered = (cleaned(x, mask) - shift) - rest
        return (_sum(change, across.axes, mask) / count, 2 * _sum(centered * change, across.axes, mask) / count)

    d_mean, d_var = across.sum(*jax.checkpoint(slopes)(x, shift, rest, tangents[1]))
    d_mean = d_mean if across.centered else jnp.zeros_like(d_mean)
    return (shift, rest, var), (jnp.zeros_like(shift), d_mean, d_var)


def _two_pass(across: Across, x: jax.Array, mask: jax.Array | None, count: jax.Array,
              ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean, then what it left over and the variance around it."""
    if not across.centered:
        square, = across.sum(_mean(across, mask, count, lambda x: jnp.square(widen(x)), x))
        zero = jnp.zeros_like(square)
        return zero, zero, square
    shift, = across.sum(_mean(across, mask, count, widen, x))
    rest, square = across.sum(_mean(across, mask, count, lambda x, k: widen(x) - k, x, shift),
                              _mean(across, mask, count, lambda x, k: jnp.square(widen(x) - k), x, shift))
    return shift, rest, jnp.maximum(square - jnp.square(rest), 0)


def _guarded(across: Across, x: jax.Array, mask: jax.Array | None, count: jax.Array,
             ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As ``_two_pass``, faster on CPU where no mean is far from 0 beside its standard deviation.

    XLA's CPU backend has a fast kernel for sums of squares as they are. Under such means they lose nothing; else the
    pass over the differences is made after all.
    """
    shift = _mean(across, mask, count, widen, x)
    square = _mean(across, mask, count, lambda x: jnp.square(widen(x)), x)
    safe = jnp.all(5 * jnp.square(shift) <= 4 * square)
    return lax.cond(safe, lambda *_: (shift, jnp.zeros_like(shift), square - jnp.square(shift)),
                    functools.partial(_two_pass, across), x, mask, count)


def _mean(across: Across, mask: jax.Array | None, count: jax.Array, fun: Callable[..., jax.Array],
          *args: jax.Array) -> jax.Array:
    # Reductions of the same array, each by itself: they read it faster than together.
    return isolated(lambda mask, *args: _sum(fun(*args), across.axes, mask), mask, *args) / count


def _sum(values: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    return jnp.sum(values, axes, keepdims=True, where=mask)
