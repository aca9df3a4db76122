"""Elastic deformation: every pixel moved a little, neighbours alike."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.augmentation import augmentation
from gradxform.augment.borders import INTERPOLATIONS, Fill, border_of
from gradxform.augment.geometric import Geometric, Resampling
from gradxform.augment.placement import Displacement
from gradxform.augment.stage import Shape, Stage
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar

REACH = 3.0
"""Beyond so many standard deviations the Gaussian counts as 0."""


@augmentation
def elastic_deformation(alpha: Scalar = 50.0, sigma: float = 5.0, *, interpolation: str = "bilinear",
                        border: str = "constant", fill: Fill = 0.0, mask_fill: int = 0) -> Stage:
    """Pixels moved by a smooth random field (Simard and others, 2003, section 2).

    The field is white noise, uniform in [-1, 1], smoothed by a Gaussian of weight 1 and times ``alpha``, so that a
    pixel moves along each axis by ``alpha / (sigma sqrt(12 pi))`` in the root mean square. The noise is drawn at points
    up to ``sigma / 2`` apart and scaled so that variance and correlation are those of noise at each pixel. Boxes and
    points are moved by the inverse of the field, which has one as long as nothing is folded.

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

    def draw(key: jax.Array, shape: Shape) -> Any:
        sizes = tuple(len(_points(size, width, step)) for size in shape[:2])
        return {"noise": jax.random.uniform(key, (2, *sizes), minval=-1.0)}

    def place(params: Any, shape: Shape) -> Displacement:
        down, across = (_smoothing(size, width, step) for size in shape[:2])
        dx, dy = (alpha * jnp.dot(jnp.dot(down, noise, precision=lax.Precision.HIGHEST), across.T,
                                  precision=lax.Precision.HIGHEST) for noise in params["noise"])
        return Displacement(dx, dy)

    return Resampling((Geometric(draw, place, border=border_of(border, fill, mask_fill), interpolation=interpolation),))


def _points(size: int, sigma: float, step: int) -> range:
    """Where noise is drawn along an axis: over the image and as far beyond it as the Gaussian reaches."""
    beyond = math.ceil(REACH * sigma / step)
    return range(-beyond * step, size + beyond * step, step)


def _smoothing(size: int, sigma: float, step: int) -> jax.Array:
    """(size, points): the Gaussian's weights of the points of noise at the centre of each pixel."""
    points = jnp.asarray(_points(size, sigma, step), jnp.float32)
    distance = jnp.arange(size, dtype=jnp.float32)[:, None] - points
    weights = jnp.exp(-0.5 * (distance / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    # A point stands for the noise of ``step`` pixels: their sum has its variance times that.
    return jnp.where(jnp.abs(distance) <= REACH * sigma + step, weights, 0) * math.sqrt(step)
