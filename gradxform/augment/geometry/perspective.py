"""Images seen from elsewhere: random projective maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import INTERPOLATIONS, Fill, border_of
from gradxform.augment.geometry.placement import HORIZON, Projective
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.pixels.arithmetic import exact
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import checks
from gradxform.core.types import Scalar


@augmentation
def random_perspective(
    distortion_scale: Scalar = 0.5,
    p: Scalar = 0.5,
    *,
    interpolation: str = "bilinear",
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """The image seen from elsewhere, for some of the images: its four corners moved inward, as in torchvision.

    Each corner pixel moves by whole pixels, uniform from 0 to ``distortion_scale`` times half of the width and of the
    height. Up to 2/3 the corners always make a convex figure.

    Args:
      distortion_scale: how far a corner moves at most, as a share of the way to the middle, in [0, 1].
      p: for which share of images, in [0, 1].
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
      >>> gx.augment.random_perspective(0.3, 1.0)(jax.random.key(0), jnp.zeros((8, 32, 48, 3))).shape
      (8, 32, 48, 3)
    """
    checks.real("distortion_scale", distortion_scale, at_least=0, at_most=1)
    checks.real("p", p, at_least=0, at_most=1)
    checks.choice("interpolation", interpolation, INTERPOLATIONS)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        some, corners = jax.random.split(key)
        half = jnp.array([shape[1] // 2, shape[0] // 2], jnp.float32)
        most = jnp.floor(distortion_scale * half)
        inward = jnp.minimum(jnp.floor(jax.random.uniform(corners, (4, 2)) * (most + 1)), most)
        return {"inward": jnp.where(jax.random.uniform(some) < p, inward, 0.0)}

    def place(params: Sampled, shape: Shape) -> Projective:
        return perspective(shape, params["inward"])

    return Resampling(
        (Geometric(draw, place, border=border_of(border, fill, mask_fill), interpolation=interpolation, known=True),)
    )


def perspective(shape: Shape, inward: jax.Array) -> Projective:
    """The map that puts the corner pixels of an image further in.

    Args:
      shape: of the image.
      inward: by how many pixels across and down: (4, 2), the upper left, upper right, lower right and lower left one.

    Returns:
      The map.
    """
    right, low = float(max(shape[1] - 1, 1)), float(max(shape[0] - 1, 1))
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = inward / jnp.array([right, low], jnp.float32)
    x, y = (ax, 1 - bx, 1 - cx, dx), (ay, by, 1 - cy, 1 - dy)
    # Heckbert (1989): the unit square to the four corners.
    sx, sy = x[0] - x[1] + x[2] - x[3], y[0] - y[1] + y[2] - y[3]
    x1, x2, y1, y2 = x[1] - x[2], x[3] - x[2], y[1] - y[2], y[3] - y[2]
    area = exact(x1 * y2) - exact(x2 * y1)
    g, h = (exact(sx * y2) - exact(x2 * sy)) / area, (exact(x1 * sy) - exact(sx * y1)) / area
    a, b, c = x[1] - x[0] + exact(g * x[1]), x[3] - x[0] + exact(h * x[3]), x[0]
    d, e, f = y[1] - y[0] + exact(g * y[1]), y[3] - y[0] + exact(h * y[3]), y[0]
    # Its inverse, by cofactors, from pixels to pixels.
    to_x = (e - exact(f * h), exact(c * h) - b, exact(b * f) - exact(c * e))
    to_y = (exact(f * g) - d, a - exact(c * g), exact(c * d) - exact(a * f))
    to_w = (exact(d * h) - exact(e * g), exact(b * g) - exact(a * h), exact(a * e) - exact(b * d))
    # What is divided by is above 0 on the whole image: as the determinant is, by which the inverse has it there. With 1
    # at the first pixel, as is the custom, it is below 0 on the image where that pixel is behind the horizon.
    determinant = exact(a * to_x[0]) + exact(b * to_y[0]) + exact(c * to_w[0])
    by = jnp.where(to_w[2] > HORIZON * determinant, to_w[2], determinant)
    return Projective(
        *(
            scale * one / (by * unit)
            for scale, row in ((right, to_x), (low, to_y), (1.0, to_w))
            for one, unit in zip(row, (right, low, 1.0), strict=True)
        )
    )
