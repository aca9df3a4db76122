"""Scale at random: larger or smaller in a window of one size, and further away."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import ALONG_AXES, Fill, border_of
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar


@augmentation
def random_scale_jitter(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.1, 2.0),
    *,
    interpolation: str = "bilinear",
    antialias: bool = True,
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """Large-scale jittering (Ghiasi and others, 2021): the image resized by a random factor, then cut or padded.

    A factor of 1 is the largest size at which the whole image fits in. Height and width are rounded down. What does
    not fit is cut off at a random place; what is missing is put below and to the right, as in torchvision's
    ``ScaleJitter`` and ``FixedSizeCrop``.

    Args:
      size: height and width of the result in pixels, or one number for both.
      scale: the bounds of the factor, above 0; uniform between them. They have to be known before the program runs.
      interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; masks are always ``"nearest"``.
      antialias: as for ``resize``.
      border: what is put where the image is too small: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it gives images of ``size``.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or the bounds are in the wrong order.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_scale_jitter(32, (0.5, 1.5))(jax.random.key(0), jnp.zeros((8, 48, 64, 3))).shape
      (8, 32, 32, 3)
    """
    height, width = arrays.pair("size", size)
    low, high = (arrays.number("scale", bound, above=0) for bound in bounds("scale", scale, above=0))
    checks.choice("interpolation", interpolation, ALONG_AXES)

    def fitting(shape: Shape) -> float:
        return min(height / shape[0], width / shape[1])

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        factor, row, column = jax.random.uniform(key, (3,))
        ratio = (low + (high - low) * factor) * fitting(shape)
        h, w = (jnp.maximum(jnp.floor(side * ratio).astype(jnp.int32), 1) for side in shape[:2])
        return {
            "height": h,
            "width": w,
            "top": jnp.floor(jnp.maximum(h - height, 0) * row).astype(jnp.int32),
            "left": jnp.floor(jnp.maximum(w - width, 0) * column).astype(jnp.int32),
        }

    def place(params: Sampled, shape: Shape) -> Affine:
        top, left, h, w = (params[name].astype(jnp.float32) for name in ("top", "left", "height", "width"))
        across, down = shape[1] / w, shape[0] / h
        return Affine(across, 0.0, left * across, 0.0, down, top * down)

    def shrink(shape: Shape) -> tuple[float, float]:
        return tuple(side / max(1, math.floor(side * low * fitting(shape) - 1e-3)) for side in shape[:2])  # type: ignore[return-value]

    return Resampling(
        (
            Geometric(
                draw,
                place,
                "scale",
                lambda shape: (height, width),
                border_of(border, fill, mask_fill),
                interpolation,
                antialias=antialias,
                shrink=shrink,
                frames=True,
                known=True,
            ),
        )
    )


@augmentation
def random_zoom_out(
    factor: tuple[float, float] = (1.0, 4.0),
    p: Scalar = 0.5,
    *,
    interpolation: str = "bilinear",
    antialias: bool = True,
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """The image smaller, at a random place of a canvas of its size (SSD's expansion, Liu and others, 2016).

    Args:
      factor: the bounds of the canvas's size over that of the image on it, >= 1; uniform between them. They have to
        be known before the program runs.
      p: for which share of images, in [0, 1].
      interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; masks are always ``"nearest"``.
      antialias: as for ``resize``.
      border: what the canvas is: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it gives images of the size they had.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or the bounds are in the wrong order.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_zoom_out((2.0, 2.0), 1.0)(jax.random.key(0), jnp.ones((32, 48, 1))).sum()
      Array(384., dtype=float32)
    """
    low, high = (arrays.number("factor", bound, at_least=1) for bound in bounds("factor", factor, at_least=1))
    checks.real("p", p, at_least=0, at_most=1)
    checks.choice("interpolation", interpolation, ALONG_AXES)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        some, size, row, column = jax.random.uniform(key, (4,))
        factor = jnp.where(some < p, low + (high - low) * size, 1.0)
        h, w = (jnp.maximum(jnp.floor(side / factor).astype(jnp.int32), 1) for side in shape[:2])
        return {
            "height": h,
            "width": w,
            "top": jnp.floor((shape[0] - h + 1) * row).astype(jnp.int32),
            "left": jnp.floor((shape[1] - w + 1) * column).astype(jnp.int32),
        }

    def place(params: Sampled, shape: Shape) -> Affine:
        top, left, h, w = (params[name].astype(jnp.float32) for name in ("top", "left", "height", "width"))
        across, down = shape[1] / w, shape[0] / h
        return Affine(across, 0.0, -left * across, 0.0, down, -top * down)

    def shrink(shape: Shape) -> tuple[float, float]:
        return tuple(side / max(1, math.floor(side / high - 1e-3)) for side in shape[:2])  # type: ignore[return-value]

    return Resampling(
        (
            Geometric(
                draw,
                place,
                "scale",
                None,
                border_of(border, fill, mask_fill),
                interpolation,
                antialias=antialias,
                shrink=shrink,
                frames=True,
                known=True,
            ),
        )
    )
