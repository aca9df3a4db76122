"""Batch normalization, with running statistics that go in and come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.core import checks
from gradxform.core.arrays import floating
from gradxform.core.types import DType, Scalar
from gradxform.norm import arguments
from gradxform.norm.arguments import Axes, AxisName, Groups
from gradxform.norm.moments import Input, Moments, Reduction, moments
from gradxform.norm.normalize import normalize
from gradxform.norm.statistics import BatchStats, Pending, updated

RUNNING_VAR = ("biased", "unbiased")


def batch_norm(
    x: jax.Array,
    stats: BatchStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    use_running_average: bool,
    momentum: Scalar | None = 0.99,
    epsilon: Scalar = 1e-5,
    axis: Axes = -1,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Groups = None,
    running_var: str = "biased",
    update_every: int = 1,
    dtype: DType = None,
) -> tuple[jax.Array, BatchStats]:
    """Normalizes each feature by its mean and variance over the batch, or by running ones.

    ``y = (x - mean) / sqrt(var + epsilon) * scale + bias`` (Ioffe and Szegedy, 2015, algorithm 1). The statistics are
    stable under any offset, kept in float32 at least, and biased, as in the paper. The gradient keeps ``x`` and
    nothing else of its size. After a batch the running statistics are ``momentum * old + (1 - momentum) * new``;
    torch calls ``1 - momentum`` momentum and takes the unbiased variance (``running_var="unbiased"``).

    Statistics with a ``weight`` are corrected for their start, as Adam's moments are: after the first batch they are
    those of that batch, and always those of the batches alone. What is kept is the corrected average, so it can be
    used as it is.

    Args:
      x: the input, of any rank and floating-point dtype.
      stats: the running statistics, with a number for each feature.
      scale: gamma, a number for each feature, or None for 1.
      bias: beta, a number for each feature, or None for 0.
      use_running_average: whether to normalize by ``stats`` and leave them as they are.
      momentum: the share of the old running statistics that stays, in [0, 1]; None for the plain average of all
        batches, which needs statistics with a weight.
      epsilon: added to the variance, at least 0.
      axis: the feature axis or axes; statistics are taken over all others.
      mask: what counts, in a shape that broadcasts to that of ``x``; positions where it is 0 count for nothing, and
        are normalized like the others. Where nothing counts, the running statistics stay and are used.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which the batch is spread, shards of unequal counts
        included; not needed under plain ``jit``.
      axis_index_groups: groups of indices along that axis that share statistics, all by default.
      running_var: ``"biased"`` (Flax) or ``"unbiased"`` (torch), what enters the running variance; a single value
        has no unbiased variance and changes nothing.
      update_every: how many calls make an update of the running statistics, which then takes the values of all of them
        together: with gradients accumulated over as many steps, exactly what one large batch would have given. More
        than 1 needs statistics made for it by ``init_batch_stats``.
      dtype: of the result; by default that of ``x``.

    Returns:
      The normalized input and the new running statistics, through which no gradient flows.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: a shape does not fit, a number is out of range, or there is no value, or a single one, to take
        statistics of where neither ``mask`` nor ``axis_name`` says more.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, stats = gx.norm.batch_norm(x, gx.norm.init_batch_stats(2), use_running_average=False, momentum=0.9)
      >>> y.round(2)
      Array([[-1., -1.],
             [ 1.,  1.]], dtype=float32)
      >>> stats.mean
      Array([0.2, 2. ], dtype=float32)
    """
    call = _checked(
        x,
        stats,
        scale,
        bias,
        use_running_average=use_running_average,
        momentum=momentum,
        epsilon=epsilon,
        axis=axis,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        running_var=running_var,
        update_every=update_every,
        dtype=dtype,
    )
    if use_running_average:
        return call.normalized(call.running), stats
    batch = call.batch()
    return call.normalized(batch), call.updated(batch)


def batch_renorm(
    x: jax.Array,
    stats: BatchStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    use_running_average: bool,
    r_max: Scalar = 3.0,
    d_max: Scalar = 5.0,
    momentum: Scalar | None = 0.99,
    epsilon: Scalar = 1e-5,
    axis: Axes = -1,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Groups = None,
    running_var: str = "biased",
    update_every: int = 1,
    dtype: DType = None,
) -> tuple[jax.Array, BatchStats]:
    """Batch normalization that gives in training what it gives at evaluation, up to a bound.

    ``y = ((x - mean) / sigma * r + d) * scale + bias`` with ``r = clip(sigma / running_sigma, 1 / r_max, r_max)`` and
    ``d = clip((mean - running_mean) / running_sigma, -d_max, d_max)``, both without gradients (Ioffe, 2017,
    algorithm 1); ``sigma = sqrt(var + epsilon)``. Small and uneven batches train as large ones do. The paper begins
    with ``r_max = 1, d_max = 0``, which is batch normalization, and raises them to 3 and 5 in the first 5 to 40
    thousand steps; both may be traced.

    Args:
      x: the input, of any rank and floating-point dtype.
      stats: the running statistics, with a number for each feature.
      scale: gamma, a number for each feature, or None for 1.
      bias: beta, a number for each feature, or None for 0.
      use_running_average: whether to normalize by ``stats`` and leave them as they are.
      r_max: the largest correction of the scale, at least 1.
      d_max: the largest correction of the mean, in running standard deviations, at least 0.
      momentum: as in ``batch_norm``.
      epsilon: as in ``batch_norm``.
      axis: as in ``batch_norm``.
      mask: as in ``batch_norm``.
      axis_name: as in ``batch_norm``.
      axis_index_groups: as in ``batch_norm``.
      running_var: as in ``batch_norm``.
      update_every: as in ``batch_norm``.
      dtype: as in ``batch_norm``.

    Returns:
      The normalized input and the new running statistics, through which no gradient flows.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: a shape does not fit, a number is out of range, or there is no value, or a single one, to take
        statistics of where neither ``mask`` nor ``axis_name`` says more.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> stats = gx.norm.BatchStats(mean=jnp.array([2.0]), var=jnp.array([4.0]))
      >>> y, _ = gx.norm.batch_renorm(jnp.array([[1.0], [7.0]]), stats, use_running_average=False)
      >>> y.round(2)
      Array([[-0.5],
             [ 2.5]], dtype=float32)
    """
    checks.real("r_max", r_max, at_least=1)
    checks.real("d_max", d_max, at_least=0)
    call = _checked(
        x,
        stats,
        scale,
        bias,
        use_running_average=use_running_average,
        momentum=momentum,
        epsilon=epsilon,
        axis=axis,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        running_var=running_var,
        update_every=update_every,
        dtype=dtype,
    )
    if use_running_average:
        return call.normalized(call.running), stats
    batch = call.batch()
    sigma, running_sigma = jnp.sqrt(batch.var + epsilon), jnp.sqrt(call.running.var + epsilon)
    r = lax.stop_gradient(jnp.clip(sigma / running_sigma, 1 / jnp.asarray(r_max), r_max))
    d = lax.stop_gradient(jnp.clip((batch.mean - call.running.mean) / running_sigma, -jnp.asarray(d_max), d_max))
    gamma = r if call.scale is None else r * call.scale
    beta = d if call.scale is None else d * call.scale
    beta = beta if call.bias is None else beta + call.bias
    return dataclasses.replace(call, scale=gamma, bias=beta).normalized(batch), call.updated(batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """The checked arguments of one call.

    Attributes:
      x: the input.
      mask: what counts, with as many dimensions as ``x``, or None.
      over: what statistics are taken over.
      running: the running statistics, in shapes that broadcast against ``x``.
      scale: gamma in such a shape, or None.
      bias: beta in such a shape, or None.
      epsilon: as given.
      dtype: of the result.
      update: makes new running statistics from those of a batch.
    """

    x: Input
    mask: jax.Array | None
    over: Reduction
    running: Moments
    scale: jax.Array | None
    bias: jax.Array | None
    epsilon: Scalar
    dtype: np.dtype
    update: Callable[[Pending], BatchStats]

    def normalized(self, by: Moments) -> jax.Array:
        return normalize(self.x, by, self.scale, self.bias, self.epsilon, self.dtype, self.mask)

    def batch(self) -> Moments:
        """The statistics of the batch; the running ones for a feature of which it has no value."""
        batch = moments(self.x, self.over, self.mask)
        if self.mask is None:
            return batch
        some = batch.total > 0
        return Moments(
            batch.total, *(jnp.where(some, new, old) for new, old in zip(batch[1:], self.running[1:], strict=True))
        )

    def updated(self, batch: Moments) -> BatchStats:
        every = (batch.total * jnp.ones_like(batch.var), *batch[1:])
        total, high, low, var = (jnp.squeeze(lax.stop_gradient(part), self.over.axes) for part in every)
        return self.update(Pending(total, high, low, var, calls=jnp.ones((), jnp.int32)))


def _checked(
    x: jax.Array,
    stats: BatchStats,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    use_running_average: bool,
    momentum: Scalar | None,
    epsilon: Scalar,
    axis: Axes,
    mask: jax.Array | None,
    axis_name: AxisName,
    axis_index_groups: Groups,
    running_var: str,
    update_every: int,
    dtype: DType,
) -> _Call:
    x = floating("x", x)
    if not isinstance(use_running_average, bool):
        raise TypeError(f"use_running_average: expected True or False, got {use_running_average!r}")
    arguments.nonnegative("epsilon", epsilon)
    checks.choice("running_var", running_var, RUNNING_VAR)
    checks.integer("update_every", update_every, at_least=1)
    features = arguments.canonical("axis", axis, x.ndim)
    _check_stats(stats, momentum, update_every)
    kept = {
        name: arguments.feature_array(f"stats.{name}", value, x, features)
        for name, value in stats._asdict().items()
        if name != "pending"
    }
    for name, value in (stats.pending._asdict() if stats.pending is not None else {}).items():
        if name != "calls":
            arguments.feature_array(f"stats.pending.{name}", value, x, features)
    over = Reduction(
        arguments.others(features, x.ndim), arguments.names(axis_name), arguments.index_groups(axis_index_groups)
    )
    if not use_running_average:
        arguments.several(x, over.axes, known=mask is None and axis_name is None)
    # The mean enters as it is, whatever the dtype of x; its gradient goes through the second part.
    mean, var = kept["mean"], kept["var"]
    assert mean is not None and var is not None
    fixed = lax.stop_gradient(mean)
    return _Call(
        x=Input.of(x),
        mask=arguments.boolean(mask, x),
        over=over,
        epsilon=epsilon,
        running=Moments(jnp.ones_like(mean), fixed, mean - fixed, var),
        scale=arguments.feature_array("scale", scale, x, features),
        bias=arguments.feature_array("bias", bias, x, features),
        dtype=arguments.result_dtype(dtype, x),
        update=lambda batch: updated(lax.stop_gradient(stats), batch, momentum, running_var, update_every),
    )


def _check_stats(stats: BatchStats, momentum: Scalar | None, update_every: int) -> None:
    if not isinstance(stats, BatchStats):
        raise TypeError(f"stats: expected BatchStats, as init_batch_stats makes them, got {type(stats).__name__}")
    if momentum is None:
        if stats.weight is None:
            raise ValueError(
                "momentum: None, for the average of all batches, needs statistics with a weight; make "
                "them by init_batch_stats(..., bias_corrected=True)"
            )
    else:
        checks.real("momentum", momentum, at_least=0, at_most=1)
    if (update_every > 1) != (stats.pending is not None):
        raise ValueError(
            f"update_every: got {update_every} for statistics "
            f"{'without' if stats.pending is None else 'with'} pending ones; make them by "
            f"init_batch_stats(..., update_every={update_every})"
        )
