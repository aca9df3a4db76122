"""Group and instance normalization."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gradxform.core import checks
from gradxform.core.arrays import floating
from gradxform.core.types import DType, Scalar
from gradxform.norm import arguments
from gradxform.norm.arguments import Axes, AxisName, Groups
from gradxform.norm.moments import Input, Moments, Reduction, moments
from gradxform.norm.normalize import normalize, standardize

MANY = 512
"""From so many bytes of a channel on, its statistics are small beside it: a dozen numbers in float32 are a tenth."""


def group_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    epsilon: Scalar = 1e-6,
    axis: int = -1,
    reduction_axes: Axes | None = None,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Groups = None,
    dtype: DType = None,
) -> jax.Array:
    """Normalizes each example by the mean and variance over groups of its channels.

    ``y = (x - mean) / sqrt(var + epsilon) * scale + bias`` with the statistics of ``group_size`` neighbouring channels
    at all positions (Wu and He, 2018, eq. 7). Computed as ``layer_norm`` is.

    Args:
      x: the input, of any rank and floating-point dtype.
      scale: a number for each channel, or None for 1.
      bias: a number for each channel, or None for 0.
      num_groups: how many groups; either this or ``group_size`` is given.
      group_size: how many channels a group has.
      epsilon: added to the variance, at least 0.
      axis: the channel axis.
      reduction_axes: the axes that statistics are taken over besides the channels of a group; by default all but the
        first, which is the batch.
      mask: what counts, in a shape that broadcasts to that of ``x``; a group of which nothing counts has mean 0 and
        variance 1.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which positions are spread.
      axis_index_groups: groups of indices along that axis that share statistics, all by default.
      dtype: of the result; by default that of ``x``.

    Returns:
      An array shaped like ``x``.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: a shape does not fit, the channels do not divide into groups, a number is out of range, or a group
        has no value, or a single one, where neither ``mask`` nor ``axis_name`` says more.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.norm.group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2).round(3)
      Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """
    x = floating("x", x)
    named = arguments.canonical("axis", axis, x.ndim)
    if len(named) != 1:
        raise ValueError(f"axis: expected one channel axis, got {axis!r}")
    (channel,) = named
    channels = x.shape[channel]
    num_groups = _num_groups(channels, num_groups, group_size)
    chosen = (
        arguments.canonical("reduction_axes", reduction_axes, x.ndim)
        if reduction_axes is not None
        else tuple(range(1, x.ndim))
    )
    positions = tuple(axis for axis in chosen if axis != channel)
    arguments.values(x, (*positions, channel))
    if channels == num_groups:
        arguments.several(x, positions, known=mask is None and axis_name is None)
    result = arguments.result_dtype(dtype, x)
    scale = arguments.feature_array("scale", scale, x, (channel,))
    bias = arguments.feature_array("bias", bias, x, (channel,))
    mask = arguments.boolean(mask, x)
    arguments.nonnegative("epsilon", epsilon)
    over = Reduction(positions, arguments.names(axis_name), arguments.index_groups(axis_index_groups))
    if math.prod(x.shape[axis] for axis in positions) * x.dtype.itemsize >= MANY:
        return _by_channel(x, over, channel, num_groups, mask, scale, bias, epsilon, result)
    return _by_group(x, over, channel, num_groups, mask, scale, bias, epsilon, result)


def instance_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: Scalar = 1e-6,
    axis: Axes = -1,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Groups = None,
    dtype: DType = None,
) -> jax.Array:
    """Normalizes each channel of each example by its mean and variance over the positions.

    ``y = (x - mean) / sqrt(var + epsilon) * scale + bias`` (Ulyanov, Vedaldi and Lempitsky, 2016, eq. 3). Computed as
    ``layer_norm`` is.

    Args:
      x: the input, of any rank and floating-point dtype; its first axis is the batch.
      scale: a number for each channel, or None for 1.
      bias: a number for each channel, or None for 0.
      epsilon: added to the variance, at least 0.
      axis: the channel axis or axes.
      mask: what counts, in a shape that broadcasts to that of ``x``; a channel of which nothing counts has mean 0 and
        variance 1.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which positions are spread.
      axis_index_groups: groups of indices along that axis that share statistics, all by default.
      dtype: of the result; by default that of ``x``.

    Returns:
      An array shaped like ``x``.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: a shape does not fit, the batch is named as a channel, a number is out of range, or there is no
        position, or a single one, where neither ``mask`` nor ``axis_name`` says more.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.norm.instance_norm(jnp.array([[[1.0, 10.0], [3.0, 30.0]]])).round(3)
      Array([[[-1., -1.],
              [ 1.,  1.]]], dtype=float32)
    """
    x = floating("x", x)
    channels = arguments.canonical("axis", axis, x.ndim)
    if 0 in channels:
        raise ValueError(f"axis: expected channel axes other than the batch, axis 0, got {axis!r}")
    axes = arguments.others((0, *channels), x.ndim)
    arguments.several(x, axes, known=mask is None and axis_name is None)
    scale = arguments.feature_array("scale", scale, x, channels)
    bias = arguments.feature_array("bias", bias, x, channels)
    over = Reduction(axes, arguments.names(axis_name), arguments.index_groups(axis_index_groups))
    mask = arguments.boolean(mask, x)
    return standardize(
        x, over, mask, scale, bias, arguments.nonnegative("epsilon", epsilon), arguments.result_dtype(dtype, x)
    )


def _num_groups(channels: int, num_groups: int | None, group_size: int | None) -> int:
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"num_groups: expected either num_groups or group_size, got num_groups={num_groups!r} and "
            f"group_size={group_size!r}"
        )
    name, value = ("group_size", group_size) if num_groups is None else ("num_groups", num_groups)
    checks.integer(name, value, at_least=1)
    assert value is not None
    if channels % value:
        raise ValueError(f"{name}: expected a divisor of the {channels} channels of x, got {value}")
    return value if num_groups is not None else channels // value


def _by_channel(
    x: jax.Array,
    over: Reduction,
    channel: int,
    groups: int,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: Scalar,
    dtype: DType,
) -> jax.Array:
    """The statistics of channels, pooled: what is large keeps its shape, which reads fast and may be sharded."""

    @jax.checkpoint
    def pooled(stats: Moments) -> Moments:
        count, high, low, var = (_split(part * jnp.ones_like(stats.var), channel, groups) for part in stats)
        inside = channel + 1
        total = jnp.sum(count, inside, keepdims=True)
        share = count / jnp.maximum(total, 1)
        near = lax.stop_gradient(jnp.sum(share * high, inside, keepdims=True))
        mean = (high - near) + low
        rest = jnp.sum(share * mean, inside, keepdims=True)
        pooled_var = jnp.sum(share * (var + jnp.square(mean - rest)), inside, keepdims=True)
        every = (total, near, rest, jnp.where(total > 0, pooled_var, 1))
        spec = jax.typeof(stats.var).sharding.spec
        return Moments(*(_reshaped(part * jnp.ones_like(var), stats.var.shape, spec) for part in every))

    carried = Input.of(x)
    return normalize(carried, pooled(moments(carried, over, mask)), scale, bias, epsilon, dtype, mask)


def _by_group(
    x: jax.Array,
    over: Reduction,
    channel: int,
    groups: int,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: Scalar,
    dtype: DType,
) -> jax.Array:
    """The statistics of groups; with few positions those of channels would not be small beside the input."""
    axes = tuple(axis + (axis > channel) for axis in over.axes) + (channel + 1,)
    masks, scales, biases = (None if array is None else _split(array, channel, groups) for array in (mask, scale, bias))
    over = dataclasses.replace(over, axes=tuple(sorted(axes)))
    y = standardize(_split(x, channel, groups), over, masks, scales, biases, epsilon, dtype)
    return _reshaped(y, x.shape, jax.typeof(x).sharding.spec)


def _split(array: jax.Array, axis: int, groups: int) -> jax.Array:
    """``array`` with its channels as groups and channels within a group; an axis of length 1 becomes two."""
    parts = (1, 1) if array.shape[axis] == 1 else (groups, array.shape[axis] // groups)
    spec = list(jax.typeof(array).sharding.spec)
    spec += [None] * (array.ndim - len(spec))
    over = spec[axis]
    if over is not None:
        # Where there are fewer groups than shards, or some are cut, each device needs all channels.
        mesh = jax.typeof(array).sharding.mesh
        shards = 1
        for name in over if isinstance(over, tuple) else (over,):
            shards *= mesh.shape[name]
        if parts[0] % shards:
            spec[axis] = None
            array = jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec(*spec)))
    return _reshaped(
        array, array.shape[:axis] + parts + array.shape[axis + 1 :], (*spec[: axis + 1], None, *spec[axis + 1 :])
    )


def _reshaped(array: jax.Array, shape: tuple[int, ...], spec: PartitionSpec | tuple[object, ...]) -> jax.Array:
    """``array`` in another shape, laid out by ``spec`` where the mesh has axes that programs name."""
    if all(part is None for part in spec):
        return array.reshape(shape)
    return jnp.reshape(array, shape, out_sharding=NamedSharding(jax.typeof(array).sharding.mesh, PartitionSpec(*spec)))
