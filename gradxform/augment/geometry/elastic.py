"""Elastic deformation: every pixel moved a little, neighbours alike."""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import INTERPOLATIONS, Fill, border_of
from gradxform.augment.geometry.displacement import Displacement
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import arrays, checks
from gradxform.core.isolate import isolated
from gradxform.core.types import Scalar

REACH = 3.0
"""Beyond so many standard deviations the Gaussian counts as 0."""
MOST_PHASES = 4
"""Up to so many pixels a point of noise, the sums of weighted points are spelled out; beyond, they are a product of
matrices."""


@augmentation
def elastic_deformation(
    alpha: Scalar = 50.0,
    sigma: float = 5.0,
    *,
    interpolation: str = "bilinear",
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """Pixels moved by a smooth random field (Simard and others, 2003, section 2).

    The field is white noise, uniform in [-1, 1], smoothed by a Gaussian of weight 1 and times ``alpha``, so that a
    pixel moves along each axis by ``alpha / (sigma sqrt(12 pi))`` in the root mean square. The noise is drawn at points
    up to ``sigma / 2`` apart and scaled so that variance and correlation are those of noise at each pixel. Boxes and
    points are moved by the inverse of the field, which has one as long as nothing is folded: with a ``sigma`` of 5 up
    to an ``alpha`` of 50 or so. Beyond that several places may show a point, and it comes to one of them.

    Args:
      alpha: the factor of the smoothed noise, in pixels, >= 0.
      sigma: the standard deviation of the Gaussian in pixels, > 0.
      interpolation: ``"bilinear"`` or ``"nearest"``; masks are always ``"nearest"``.
      border: what comes in from outside: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.elastic_deformation(34.0, 4.0, border="edge")
      >>> aug(jax.random.key(0), jnp.ones((8, 28, 28, 1))).min()
      Array(1., dtype=float32)
    """
    checks.real("alpha", alpha, at_least=0)
    width = arrays.number("sigma", sigma, above=0)
    checks.choice("interpolation", interpolation, INTERPOLATIONS)
    step = max(1, math.floor(width / 2))

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        # A half of each word for either part: drawing is a good share of the work on a small image.
        bits = jax.random.bits(key, [_points(size, width, step) for size in shape[:2]], jnp.uint32)
        halves = jnp.stack([bits & 0xFFFF, bits >> 16])
        return {"noise": (halves.astype(jnp.float32) + 0.5) / 2**15 - 1}

    def place(params: Sampled, shape: Shape) -> Displacement:
        field = params["noise"]
        for axis in (1, 0):
            field = isolated(functools.partial(_smoothed, axis=axis, size=shape[axis], sigma=width, step=step), field)
        dx, dy = alpha * field
        return Displacement(dx, dy)

    return Resampling(
        (Geometric(draw, place, border=border_of(border, fill, mask_fill), interpolation=interpolation, known=True),)
    )


def _beyond(sigma: float, step: int) -> int:
    """How many points of noise lie beyond either side: as many as the Gaussian reaches."""
    return math.ceil(REACH * sigma / step)


def _points(size: int, sigma: float, step: int) -> int:
    """How many points of noise there are along an axis."""
    return -(-size // step) + 2 * _beyond(sigma, step)


def _smoothed(noise: jax.Array, axis: int, size: int, sigma: float, step: int) -> jax.Array:
    """Noise (2, ...) smoothed along an axis of either part, from its points to the centres of pixels."""
    beyond, count = _beyond(sigma, step), -(-size // step)
    if step > MOST_PHASES:
        matrix = _weights(np.arange(size)[:, None] - step * np.arange(-beyond, count + beyond), sigma, step)
        pair = (matrix, noise) if axis == 0 else (noise, matrix.T)
        return jnp.matmul(*pair, precision=lax.Precision.HIGHEST)
    # The weights of the points around a pixel are those around the pixel ``step`` further on.
    weights = _weights(np.arange(step)[:, None] - step * np.arange(-beyond - 1, beyond + 2), sigma, step)
    noise = jnp.pad(noise, [(int(i == axis + 1),) * 2 for i in range(3)])
    found = [lax.slice_in_dim(noise, t, t + count, axis=axis + 1) for t in range(weights.shape[1])]
    phases = [
        functools.reduce(operator.add, (weights[phase, t] * found[t] for t in np.flatnonzero(weights[phase])))
        for phase in range(step)
    ]
    side_by_side = jnp.stack(phases, axis + 2)
    shape = [count * step if i == axis + 1 else length for i, length in enumerate(noise.shape)]
    return lax.slice_in_dim(side_by_side.reshape(shape), 0, size, axis=axis + 1)


def _weights(distance: np.ndarray, sigma: float, step: int) -> np.ndarray:
    """The Gaussian's weights of points of noise by their distance from a pixel."""
    weights = np.exp(-0.5 * (distance / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    # A point stands for the noise of ``step`` pixels: their sum has its variance times that.
    weights = np.where(abs(distance) <= REACH * sigma + step, weights, 0) * math.sqrt(step)
    return weights.astype(np.float32)
