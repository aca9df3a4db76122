"""Rectangles of the image taken out: Cutout and random erasing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import Fill, check_fill, colors
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.photometry.noise import normal
from gradxform.augment.pixels.canvas import Planes, white_of
from gradxform.augment.stage import Pixelwise, Sampled, Shape, Stage, Targets, any_number, canvas_of, few
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar

TRIES = 10
"""How often a rectangle is drawn before the image is left as it is."""
NOISES = ("random", "normal")


@augmentation
def cutout(size: int, *, fill: Fill = 0.0) -> Stage:
    """A square of the image taken out; masks, boxes and points stay.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017): the middle of
    the square is any pixel with the same probability, and what lies outside the image is lost, so that less than a
    whole square may go.

    Args:
      size: the length of a side in pixels (not half of it), >= 1.
      fill: what is put there, from 0, black, to 1, or one for each channel.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) there are not as many fills as channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = gx.augment.cutout(1)(jax.random.key(0), jnp.ones((4, 4, 3)))
      >>> int((image == 0).sum())
      3
    """
    size = arrays.size("size", size)
    check_fill(fill)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        row, column = jax.random.randint(key, (2,), 0, jnp.array(shape[:2]), jnp.int32)
        return {"top": row - size // 2, "left": column - size // 2}

    def kernel(params: Sampled, planes: Planes) -> Planes:
        return erased(planes, {"height": size, "width": size} | params, fill)

    return Pixelwise(draw, kernel)


@augmentation
def random_erasing(
    p: Scalar = 0.5,
    scale: tuple[Scalar, Scalar] = (0.02, 0.33),
    ratio: tuple[Scalar, Scalar] = (0.3, 3.3),
    *,
    fill: Fill | str = 0.0,
) -> Stage:
    """A random rectangle of some of the images taken out; masks, boxes and points stay.

    Zhong and others, "Random Erasing Data Augmentation" (AAAI 2020), as torchvision has it: the area is uniform, and
    so is the logarithm of height to width; of ten draws the first that fits into the image is taken, and without one
    the image stays.

    Args:
      p: for which share of the images, in [0, 1].
      scale: bounds of the rectangle's share of the area of the image, in [0, 1].
      ratio: bounds of its height over its width, > 0.
      fill: what is put there: from 0, black, to 1, or one for each channel; or ``"random"`` for noise, uniform in the
        range of the image; or ``"normal"`` for standard normal noise, behind ``normalize`` (timm's ``"pixel"``), which
        takes float images only.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) there are not as many fills as channels or normal noise
        is asked for in 8-bit images.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> erase = gx.augment.random_erasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))
      >>> float(erase(jax.random.key(0), jnp.ones((32, 32, 1))).mean())
      0.75
    """
    checks.real("p", p, at_least=0, at_most=1)
    least, most = bounds("scale", scale, at_least=0, at_most=1)
    flattest, steepest = bounds("ratio", ratio, above=0)
    if isinstance(fill, str):
        checks.choice("fill", fill, NOISES)
    else:
        check_fill(fill)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        draws = jax.random.uniform(key, (2 * TRIES + 3,), jnp.float32)
        area = shape[0] * shape[1] * _between(draws[:TRIES], least, most)
        root = jnp.exp(_between(draws[TRIES:-3], jnp.log(flattest), jnp.log(steepest)) / 2)
        heights, widths = jnp.round(jnp.sqrt(area) * root), jnp.round(jnp.sqrt(area) / root)
        fits = (heights < shape[0]) & (widths < shape[1])
        first = jnp.argmax(fits)
        erases = fits[first] & (draws[-3] < p)
        height, width = (jnp.where(erases, sides[first], 0).astype(jnp.int32) for sides in (heights, widths))
        box = {
            "top": jnp.floor(draws[-2] * (shape[0] + 1 - height)).astype(jnp.int32),
            "left": jnp.floor(draws[-1] * (shape[1] + 1 - width)).astype(jnp.int32),
            "height": height,
            "width": width,
        }
        if not isinstance(fill, str):
            return box
        return box | {"seed": jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32)}

    def kernel(params: Sampled, planes: Planes) -> Planes:
        if not isinstance(fill, str):
            return erased(planes, params, fill)
        # Noise is dear, and the image is left as it is more often than not.
        return lax.cond(params["height"] > 0, lambda: _erased_by_noise(planes, params, fill), lambda: list(planes))

    noisy = isinstance(fill, str)
    if noisy and fill == "normal":
        return OfFloats(draw, kernel, few(1), leaves_unit=True)
    return Pixelwise(draw, kernel, few(1) if noisy else any_number, needs_unit=noisy)


class OfFloats(Pixelwise):
    """Erases by noise that no image of integers can hold."""

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets with another image.

        Raises:
          ValueError: the image is of integers.
        """
        dtype = canvas_of(targets).dtype
        if white_of(dtype) > 1:
            raise ValueError(f"fill: expected float images for 'normal', as normalize makes them, got {dtype}")
        return super().apply(params, targets)


def erased(planes: Planes, box: Sampled, fill: Fill) -> Planes:
    """The channels with a colour in a box of ``top``, ``left``, ``height`` and ``width``, partly outside perhaps."""
    inside = _inside(planes[0], box)
    return [
        jnp.where(inside, color, plane)
        for color, plane in zip(colors(fill, len(planes), planes[0].dtype == jnp.int32), planes, strict=True)
    ]


def _erased_by_noise(planes: Planes, params: Sampled, fill: str) -> Planes:
    inside, key = _inside(planes[0], params), jax.random.key(params["seed"])
    shape = (len(planes), *planes[0].shape)
    if fill == "normal":
        noise = normal(params["seed"], planes)
    elif planes[0].dtype == jnp.int32:
        noise = jax.random.bits(key, shape, jnp.uint8).astype(jnp.int32)
    else:
        noise = jax.random.uniform(key, shape, jnp.float32)
    return [jnp.where(inside, noise[i], plane) for i, plane in enumerate(planes)]


def _inside(plane: jax.Array, box: Sampled) -> jax.Array:
    row, column = (lax.broadcasted_iota(jnp.int32, plane.shape, axis) for axis in (0, 1))
    return (
        (row >= box["top"])
        & (row < box["top"] + box["height"])
        & (column >= box["left"])
        & (column < box["left"] + box["width"])
    )


def _between(share: jax.Array, low: Scalar, high: Scalar) -> jax.Array:
    return jnp.asarray(low, jnp.float32) + (jnp.asarray(high, jnp.float32) - jnp.asarray(low, jnp.float32)) * share
