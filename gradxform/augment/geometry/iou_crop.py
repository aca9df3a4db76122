"""Crops that keep enough of an object."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import ALONG_AXES
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.stage import Sampled, Shape, Stage, Targets
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar

TRIES = 40
"""How many windows are drawn before the whole image is taken."""


@augmentation
def random_iou_crop(
    size: int | tuple[int, int],
    scale: tuple[Scalar, Scalar] = (0.3, 1.0),
    ratio: tuple[Scalar, Scalar] = (0.5, 2.0),
    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    *,
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Stage:
    """SSD's crop (Liu and others, 2016): a window that overlaps a box by a random share at least, resized.

    A least overlap (intersection over union) is drawn from ``overlaps``; of 40 windows the first is taken that
    holds the middle of a box and overlaps one of those boxes so much. Where none does, or the least overlap is 1, it is
    the whole image; torchvision's ``RandomIoUCrop`` draws another least overlap instead. Boxes whose middle is outside
    become zeros, others are cut; all windows get one size, since shapes are fixed.

    Args:
      size: height and width of the result in pixels, or one number for both.
      scale: the bounds of the window's height and of its width as shares of the image's, above 0 and at most 1; each
        uniform between them.
      ratio: the bounds of width to height, above 0; windows beyond them are not taken.
      overlaps: the least overlaps, >= 0; each as likely.
      interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; masks are always ``"nearest"``.
      antialias: as for ``resize``.

    Returns:
      The augmentation; it gives images of ``size`` and asks for ``boxes``.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) there are no ``boxes``.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> boxes = jnp.tile(jnp.array([[10.0, 10.0, 50.0, 30.0]]), (8, 1, 1))
      >>> inputs = {"image": jnp.zeros((8, 40, 60, 3)), "boxes": boxes}
      >>> gx.augment.random_iou_crop(32)(jax.random.key(0), inputs)["image"].shape
      (8, 32, 32, 3)
    """
    height, width = arrays.pair("size", size)
    low, high = bounds("scale", scale, above=0, at_most=1)
    narrow, wide = bounds("ratio", ratio, above=0)
    if not isinstance(overlaps, (tuple, list)) or not overlaps:
        raise TypeError(f"overlaps: expected a tuple of numbers, got {overlaps!r}")
    for one in overlaps:
        checks.real("overlaps", one, at_least=0)
    checks.choice("interpolation", interpolation, ALONG_AXES)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        which, windows = jax.random.split(key)
        least = jnp.stack([jnp.asarray(one, jnp.float32) for one in overlaps])
        down, across, row, column = jax.random.uniform(windows, (4, TRIES))
        h, w = (
            jnp.maximum(jnp.floor(side * (low + (high - low) * share)), 1)
            for side, share in zip(shape[:2], (down, across), strict=True)
        )
        top, left = jnp.floor((shape[0] - h) * row), jnp.floor((shape[1] - w) * column)
        return {"windows": jnp.stack([left, top, left + w, top + h], -1), "overlap": jax.random.choice(which, least)}

    def choose(params: Sampled, targets: Targets) -> tuple[Sampled, Targets]:
        if "boxes" not in targets:
            raise ValueError("boxes: expected them beside the image, since the window is chosen by them; got none")
        rows, columns = targets["image"].shape[:2]
        windows, boxes = params["windows"], targets["boxes"]
        within = _middles_in(windows[:, None], boxes)
        shape = (windows[:, 2] - windows[:, 0]) / (windows[:, 3] - windows[:, 1])
        overlap = jnp.max(jnp.where(within, _overlap(windows[:, None], boxes), -1.0), 1, initial=-1.0)
        good = (overlap >= params["overlap"]) & (shape >= narrow) & (shape <= wide) & (params["overlap"] < 1)
        whole = jnp.array([0, 0, columns, rows], jnp.float32)
        # The first that is good, as a sum, for a look-up of one number is slow on some machines.
        first = good & (jnp.cumsum(good) == 1)
        window = jnp.where(jnp.any(good), jnp.sum(jnp.where(first[:, None], windows, 0), 0), whole)
        kept = jnp.where(_middles_in(window, boxes)[:, None], boxes, 0)
        return {"window": window}, targets | {"boxes": kept}

    def place(params: Sampled, shape: Shape) -> Affine:
        left, top, right, bottom = params["window"]
        return Affine((right - left) * (1 / width), 0.0, left, 0.0, (bottom - top) * (1 / height), top)

    return Resampling(
        (
            Geometric(
                draw,
                place,
                "scale",
                lambda shape: (height, width),
                interpolation=interpolation,
                antialias=antialias,
                choose=choose,
                known=True,
            ),
        )
    )


def _middles_in(window: jax.Array, boxes: jax.Array) -> jax.Array:
    """Whether the middle of a box that has an area is inside a window."""
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    there = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    return there & (x > window[..., 0]) & (x < window[..., 2]) & (y > window[..., 1]) & (y < window[..., 3])


def _overlap(one: jax.Array, other: jax.Array) -> jax.Array:
    """Intersection over union of boxes with an area."""
    sides = jnp.minimum(one[..., 2:], other[..., 2:]) - jnp.maximum(one[..., :2], other[..., :2])
    both = jnp.prod(jnp.maximum(sides, 0), -1)
    areas = jnp.prod(one[..., 2:] - one[..., :2], -1) + jnp.prod(other[..., 2:] - other[..., :2], -1)
    return both / jnp.maximum(areas - both, 1e-9)
