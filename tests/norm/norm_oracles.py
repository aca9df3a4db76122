"""Normalization in float64 NumPy, each rule written from its paper's formula.

Arrays of parameters come in the shape of the feature axes. A mask is anything that broadcasts against ``x``; where it
is zero, a value does not count in the statistics, and what it holds is never read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Axes = int | tuple[int, ...]


class Result(NamedTuple):
    """A norm's output, and the gradients of ``sum(g * y)``."""

    y: Array
    dx: Array
    dscale: Array
    dbias: Array


class Moments(NamedTuple):
    """How many values, their mean and their biased variance."""

    total: Array
    mean: Array
    var: Array


def tuple_of(axes: Axes, ndim: int) -> tuple[int, ...]:
    """The axes counted from 0, in order."""
    return tuple(sorted(axis % ndim for axis in np.atleast_1d(axes).tolist()))


def others(axes: Axes, ndim: int) -> tuple[int, ...]:
    """The axes that are not among ``axes``."""
    return tuple(axis for axis in range(ndim) if axis not in tuple_of(axes, ndim))


def spread_out(array: Array | None, axes: Axes, like: Array, empty: float = 1.0) -> Array:
    """A parameter in the shape of ``like``; ``empty`` where there is none."""
    if array is None:
        return np.full(like.shape, empty)
    features = tuple_of(axes, like.ndim)
    array = np.asarray(array, np.float64)
    assert array.shape == tuple(like.shape[axis] for axis in features)
    return np.broadcast_to(np.expand_dims(array, others(features, like.ndim)), like.shape)


def kept(x: Array, mask: Array | None) -> Array:
    """The mask as ones and zeros in the shape of ``x``."""
    return np.broadcast_to(np.ones(()) if mask is None else np.asarray(mask) != 0, x.shape).astype(np.float64)


def moments(x: Array, axes: Axes, mask: Array | None = None) -> Moments:
    """``N = sum m``, ``mu = sum m x / N``, ``var = sum m (x - mu)^2 / N``, with the reduced axes of length 1."""
    x, m = np.asarray(x, np.float64), kept(x, mask)
    over = tuple_of(axes, x.ndim)
    count = m.sum(over, keepdims=True)
    total = np.where(m > 0, x, 0).sum(over, keepdims=True)
    mean = total / np.maximum(count, 1)
    square = np.where(m > 0, np.square(np.where(m > 0, x, 0) - mean), 0).sum(over, keepdims=True)
    return Moments(count, mean, square / np.maximum(count, 1))


def feature_moments(x: Array, axis: Axes, mask: Array | None = None) -> Moments:
    """The moments over all axes but ``axis``, in the shape of the features."""
    over = others(axis, x.ndim)
    return Moments(*(np.squeeze(value, over) for value in moments(x, over, mask)))


def pooled(batches: Sequence[Moments]) -> Moments:
    """The moments of all values together."""
    count = np.sum([b.total for b in batches], axis=0)
    mean = np.sum([b.total * b.mean for b in batches], axis=0) / np.maximum(count, 1)
    square = np.sum([b.total * (b.var + np.square(b.mean - mean)) for b in batches], axis=0)
    return Moments(count, mean, square / np.maximum(count, 1))


# ---- norms by the statistics of their input ----


def norm(
    x: Array,
    g: Array,
    over: Axes,
    scale: Array | None,
    bias: Array | None,
    features: Axes,
    epsilon: float,
    mask: Array | None = None,
    centered: bool = True,
) -> Result:
    """``x_hat = (x - mu) r``, ``r = 1 / sqrt(var + eps)``, ``y = gamma x_hat + beta``.

    With ``h = gamma g``: ``dx = r (h - (m / N) (sum h + x_hat sum(h x_hat)))``, the sums over the values that share
    statistics. Without centring ``mu`` and ``sum h`` fall out (Ba et al. 2016; Zhang and Sennrich 2019).
    """
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    axes = tuple_of(over, x.ndim)
    m = kept(x, mask)
    count, mean, var = moments(x, axes, mask)
    if not centered:
        var = np.where(m > 0, np.square(x), 0).sum(axes, keepdims=True) / np.maximum(count, 1)
        mean = np.zeros_like(mean)
    r = 1 / np.sqrt(var + epsilon)
    x_hat = (x - mean) * r
    wide = spread_out(scale, features, x)
    h = wide * g
    total = h.sum(axes, keepdims=True) if centered else 0.0
    dx = r * (h - m / np.maximum(count, 1) * (total + x_hat * (h * x_hat).sum(axes, keepdims=True)))
    rest = others(features, x.ndim)
    y = wide * x_hat + spread_out(bias, features, x, 0.0)
    return Result(y, dx, (g * x_hat).sum(rest), g.sum(rest))


def layer_norm(
    x: Array,
    g: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes = -1,
    feature_axis: Axes | None = None,
    epsilon: float = 1e-6,
    mask: Array | None = None,
) -> Result:
    """Ba et al. (2016): the statistics of ``axis``."""
    return norm(x, g, axis, scale, bias, axis if feature_axis is None else feature_axis, epsilon, mask)


def rms_norm(
    x: Array,
    g: Array,
    scale: Array | None = None,
    *,
    axis: Axes = -1,
    feature_axis: Axes | None = None,
    epsilon: float = 1e-6,
    mask: Array | None = None,
) -> Result:
    """Zhang and Sennrich (2019): the mean square of ``axis``."""
    return norm(x, g, axis, scale, None, axis if feature_axis is None else feature_axis, epsilon, mask, centered=False)


def group_norm(
    x: Array,
    g: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int,
    axis: int = -1,
    also: Axes | None = None,
    epsilon: float = 1e-6,
    mask: Array | None = None,
) -> Result:
    """Wu and He (2018): each group of channels by itself, with statistics over it and the axes ``also``."""
    axis = axis % x.ndim
    over = (others((0, axis), x.ndim) if also is None else tuple_of(also, x.ndim)) + (axis,)
    parts = [np.split(a, num_groups, axis) for a in (np.asarray(x), np.asarray(g), kept(x, mask))]
    sizes = [None if p is None else np.split(np.asarray(p), num_groups) for p in (scale, bias)]
    groups = [
        norm(parts[0][i], parts[1][i], over, *(None if p is None else p[i] for p in sizes), axis, epsilon, parts[2][i])
        for i in range(num_groups)
    ]
    return Result(*(np.concatenate([part[i] for part in groups], axis if i < 2 else 0) for i in range(4)))


def instance_norm(
    x: Array,
    g: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    mask: Array | None = None,
) -> Result:
    """Ulyanov et al. (2016): each channel of each sample by itself."""
    return norm(x, g, others((0, axis % x.ndim), x.ndim), scale, bias, axis, epsilon, mask)


def batch_norm(
    x: Array,
    g: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    mask: Array | None = None,
) -> Result:
    """Ioffe and Szegedy (2015), by the batch: each feature over all other axes."""
    return norm(x, g, others(axis, x.ndim), scale, bias, axis, epsilon, mask)


def weight_standardize(
    kernel: Array,
    g: Array,
    scale: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    mask: Array | None = None,
) -> Result:
    """Qiao et al. (2019), equation 5: each output channel over all of its inputs."""
    return norm(kernel, g, others(axis, kernel.ndim), scale, None, axis, epsilon, mask)


# ---- norms by running statistics ----


def batch_norm_eval(
    x: Array,
    g: Array,
    mean: Array,
    var: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
) -> Result:
    """Ioffe and Szegedy (2015), algorithm 2, step 11: a fixed affine map."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    wide = spread_out(scale, axis, x)
    r = 1 / np.sqrt(spread_out(var, axis, x) + epsilon)
    x_hat = (x - spread_out(mean, axis, x)) * r
    rest = others(axis, x.ndim)
    return Result(wide * x_hat + spread_out(bias, axis, x, 0.0), wide * r * g, (g * x_hat).sum(rest), g.sum(rest))


def batch_renorm(
    x: Array,
    g: Array,
    mean: Array,
    var: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    r_max: float = 3.0,
    d_max: float = 5.0,
    mask: Array | None = None,
) -> Result:
    """Ioffe (2017), algorithm 1 and its gradient, with r and d held constant."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    over, m = others(axis, x.ndim), kept(x, mask)
    count, mu, batch_var = moments(x, over, mask)
    count = np.maximum(count, 1)
    sigma = np.sqrt(batch_var + epsilon)
    running_mean, running = (np.expand_dims(np.asarray(a, np.float64), over) for a in (mean, np.sqrt(var + epsilon)))
    r = np.minimum(np.maximum(sigma / running, 1 / r_max), r_max)
    d = np.minimum(np.maximum((mu - running_mean) / running, -d_max), d_max)
    x_hat = (x - mu) / sigma * r + d
    wide = spread_out(scale, axis, x)
    d_hat = g * wide
    d_sigma = (d_hat * (x - mu) * -r / sigma**2).sum(over, keepdims=True)
    d_mu = (d_hat * -r / sigma).sum(over, keepdims=True)
    dx = d_hat * r / sigma + d_sigma * m * (x - mu) / (count * sigma) + d_mu * m / count
    return Result(wide * x_hat + spread_out(bias, axis, x, 0.0), dx, (g * x_hat).sum(over), g.sum(over))


# ---- running statistics ----


def running(
    batches: Sequence[Moments],
    momentum: float | None = 0.99,
    *,
    unbiased: bool = False,
    corrected: bool = False,
    every: int = 1,
    mean: Array | float = 0.0,
    var: Array | float = 1.0,
) -> tuple[Array, Array]:
    """Mean and variance after the batches, from their closed form.

    Plain: ``b^t s_0 + (1 - b) sum_i b^(t - i) s_i``. Corrected (Kingma and Ba 2015): the start weighs nothing and the
    sum is divided by ``1 - b^t``. Without a momentum: the average of all. ``every`` pools that many batches first; an
    unfinished pool does not count, nor does a batch without a value (without two, if ``unbiased``).
    """
    pools = [pooled(batches[i : i + every]) for i in range(0, len(batches) - every + 1, every)]
    shape = np.shape(batches[0].total)
    new = np.broadcast_to(mean, shape).astype(np.float64), np.broadcast_to(var, shape).astype(np.float64)
    for where in np.ndindex(shape):
        seen = [(p.total[where], p.mean[where], p.var[where]) for p in pools]
        seen = [(mean, var * n / (n - 1) if unbiased else var) for n, mean, var in seen if n > (1 if unbiased else 0)]
        t = len(seen)
        if t == 0:
            continue
        if momentum is None:
            weights, start = [1 / t] * t, 0.0
        else:
            weights, start = [(1 - momentum) * momentum ** (t - i) for i in range(1, t + 1)], momentum**t
        if corrected and momentum is not None:
            weights, start = [w / math.fsum(weights) for w in weights], 0.0
        for array, values in zip(new, zip(*seen, strict=True), strict=True):
            array[where] = start * array[where] + math.fsum(w * v for w, v in zip(weights, values, strict=True))
    return new


# ---- inputs ----


@functools.cache
def draws(shape: tuple[int, ...], features: tuple[int, ...], seed: int = 0, offset: float = 0.5) -> tuple[Array, ...]:
    """An input, an incoming gradient, a scale and a bias; the input's features differ in mean and in spread."""
    random = np.random.RandomState(seed)
    sizes = tuple(shape[axis] for axis in features)
    spread, mean = np.exp(random.uniform(-1, 1, sizes)), offset * random.standard_normal(sizes)
    rest = others(features, len(shape))
    x = random.standard_normal(shape) * np.expand_dims(spread, rest) + np.expand_dims(mean, rest)
    arrays = x, random.standard_normal(shape), 1 + 0.3 * random.standard_normal(sizes), random.standard_normal(sizes)
    for array in arrays:
        array.flags.writeable = False
    return arrays
