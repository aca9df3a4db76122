"""Running statistics: what a batch norm remembers of the batches it has seen."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.numbers import increment, widen
from gradxform.core.types import Scalar


class Pending(NamedTuple):
    """The pooled statistics of batches that are not yet in the running ones.

    Attributes:
      total: how many values were pooled for each feature.
      shift: a number near their mean.
      rest: their mean less ``shift``.
      var: their biased variance.
      calls: how many batches they came in.

    Example:
      >>> import gradxform as gx
      >>> gx.norm.init_batch_stats(2, update_every=4).pending.calls
      Array(0, dtype=int32)
    """

    total: jax.Array
    shift: jax.Array
    rest: jax.Array
    var: jax.Array
    calls: jax.Array


class BatchStats(NamedTuple):
    """The running statistics of a batch norm, with a number for each feature.

    Attributes:
      mean: the running mean.
      var: the running variance.
      weight: how much of the averages comes from batches and not from their start, 0 to 1; with ``momentum=None`` the
        number of batches. None where the start counts like a batch, as in Flax.
      pending: what batches since the last update brought, or None where every batch is an update.

    Example:
      >>> import gradxform as gx
      >>> gx.norm.init_batch_stats(2)
      BatchStats(mean=Array([0., 0.], dtype=float32), var=Array([1., 1.], dtype=float32), weight=None, pending=None)
    """

    mean: jax.Array
    var: jax.Array
    weight: jax.Array | None = None
    pending: Pending | None = None


def init_batch_stats(
    num_features: int | tuple[int, ...], *, bias_corrected: bool = False, update_every: int = 1
) -> BatchStats:
    """Running statistics before the first batch: mean 0, variance 1.

    Args:
      num_features: the number of features, or the lengths of several feature axes.
      bias_corrected: whether to keep the weight that takes the start out of the averages (see ``batch_norm``).
      update_every: how many batches make an update.

    Returns:
      The statistics, in float32.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx
      >>> gx.norm.init_batch_stats(3, bias_corrected=True).weight
      Array([0., 0., 0.], dtype=float32)
    """
    checks.integer("update_every", update_every, at_least=1)
    shape = num_features if isinstance(num_features, tuple) else (num_features,)
    for size in shape:
        checks.integer("num_features", size, at_least=1)
    zeros = jnp.zeros(shape, jnp.float32)
    return BatchStats(
        zeros,
        jnp.ones(shape, jnp.float32),
        zeros if bias_corrected else None,
        Pending(zeros, zeros, zeros, zeros, jnp.zeros((), jnp.int32)) if update_every > 1 else None,
    )


def updated(
    stats: BatchStats, batch: Pending, momentum: Scalar | None, running_var: str, update_every: int
) -> BatchStats:
    """The statistics after a batch with the number, mean and variance of ``batch``, whose ``calls`` is 1.

    A feature of which there was no value keeps its statistics, to the last bit; so does one with a single value where
    the variance is to be unbiased.
    """
    pending, due = stats.pending, jnp.asarray(True)
    if pending is not None:
        batch = _merged(pending, batch)
        due = batch.calls >= update_every
        pending = Pending(*(jnp.where(due, jnp.zeros_like(new), new) for new in batch))
    least = 2 if running_var == "unbiased" else 1
    count, mean, var = batch.total, batch.shift + batch.rest, batch.var
    if running_var == "unbiased":
        var = var * (count / jnp.maximum(count - 1, 1))
    due = due & (count >= least)

    # Each batch weighs the same in the plain average, whose sum of weights grows without end.
    keep, rate = (1.0, 1.0) if momentum is None else (momentum, 1 - momentum)
    weight = None
    if stats.weight is not None:
        weight = keep * stats.weight + rate
        rate = jnp.where(weight > 0, rate / jnp.where(weight > 0, weight, 1), 0)
        keep = 1 - rate
        weight = jnp.where(due, weight, stats.weight)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(due, keep * widen(old) + rate * new, old).astype(old.dtype)

    return BatchStats(average(stats.mean, mean), average(stats.var, var), weight, pending)


def _merged(a: Pending, b: Pending) -> Pending:
    """The statistics of two sets of values together (Chan, Golub and LeVeque, 1979)."""
    count = a.total + b.total
    share = b.total / jnp.maximum(count, 1)
    # The differences of two means, not the means, have to be exact.
    shift = jnp.where(a.total > 0, a.shift, b.shift)
    delta = (b.shift - shift) + (b.rest - a.rest)
    rest = a.rest + delta * share
    var = a.var + (b.var - a.var) * share + jnp.square(delta) * share * (1 - share)
    return Pending(count, shift, rest, var, increment(a.calls))
