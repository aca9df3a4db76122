"""Changes of tone and sharpness, the blur, and the normalization that comes last."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.pixels import filters, histogram, tone
from gradxform.augment.pixels.canvas import Planes
from gradxform.augment.stage import Images, Pixelwise, Shape, Stage, any_number, few
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar

REACH = 4.0
"""To how many standard deviations a blur reaches when nothing else is said, as in SciPy."""


@augmentation
def gaussian_blur(sigma: Scalar | tuple[Scalar, Scalar] = (0.1, 2.0), kernel_size: int | None = None) -> Stage:
    """The image convolved with a Gaussian; beyond its rim the image is mirrored, as in torchvision.

    This is the Gaussian itself; Pillow's ``GaussianBlur`` puts box blurs in its place. 8-bit images are rounded once.

    Args:
      sigma: the standard deviation in pixels, >= 0, or its bounds, and then each image has its own.
      kernel_size: how many pixels wide the kernel is, an odd number; by default it reaches to 4 times the largest
        ``sigma`` to each side, which then has to be known before the program runs.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type, or ``kernel_size`` is left out with a traced ``sigma``.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.zeros((1, 5, 1)).at[0, 2, 0].set(1)
      >>> blurred = gx.augment.gaussian_blur(0.5, kernel_size=3)(jax.random.key(0), image)
      >>> [round(float(value), 2) for value in blurred[0, :, 0]]
      [0.0, 0.11, 0.79, 0.11, 0.0]
    """
    pair = isinstance(sigma, (tuple, list))
    low, high = bounds("sigma", sigma if pair else (sigma, sigma), at_least=0)
    radius = _radius(kernel_size, high)

    def draw(key: jax.Array, shape: Shape) -> Any:
        return {"sigma": jnp.asarray(low, jnp.float32) + jnp.asarray(high - low, jnp.float32)
                * jax.random.uniform(key, (), jnp.float32)} if pair else {}

    return Pixelwise(draw, lambda params, planes: filters.gaussian_blur(planes, params.get("sigma", low), radius),
                     few(1 << 18))


@augmentation
def sharpness(factor: Scalar) -> Stage:
    """The distance of every value from its smoothed image times a factor.

    As Pillow's ``ImageEnhance.Sharpness``, to the bit for 8-bit images: the smoothing weighs a pixel 5 and each of
    its eight neighbours 1, and the pixels of the rim stay as they are.

    Args:
      factor: 0 for the smoothed image, 1 for the image as it is, 2 for twice the distance; >= 0.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``factor`` is no number.
      ValueError: ``factor`` is negative.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.zeros((3, 3, 1), jnp.uint8).at[1, 1, 0].set(130)
      >>> gx.augment.sharpness(0.0)(jax.random.key(0), image)[1, 1, 0]
      Array(50, dtype=uint8)
    """
    checks.real("factor", factor, at_least=0)
    return _fixed(lambda planes: filters.sharpness(planes, factor))


@augmentation
def equalize() -> Stage:
    """Each channel's levels spread so that about as many pixels take each of them.

    As Pillow's ``ImageOps.equalize``, to the bit for 8-bit images. Of a float image the 256 levels that its values,
    times 255, are nearest to are equalized, and a channel of a single level stays.

    Returns:
      The augmentation.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.arange(256, dtype=jnp.uint8).repeat(2).reshape(16, 32, 1) // 4
      >>> gx.augment.equalize()(jax.random.key(0), image)[-1, -1, 0]
      Array(255, dtype=uint8)
    """
    return _fixed(histogram.equalize, _measured, dear=True)


@augmentation
def autocontrast() -> Stage:
    """Each channel stretched so that its least value is black and its greatest white; a constant one stays.

    As Pillow's ``ImageOps.autocontrast``, to the bit for 8-bit images.

    Returns:
      The augmentation.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.array([[[0.25], [0.375], [0.75]]])
      >>> gx.augment.autocontrast()(jax.random.key(0), image)[..., 0]
      Array([[0.  , 0.25, 1.  ]], dtype=float32)
    """
    return _fixed(histogram.autocontrast, _measured, dear=True)


@augmentation
def invert() -> Stage:
    """White for black: 255 less each level, or 1 less each value.

    Returns:
      The augmentation.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.invert()(jax.random.key(0), jnp.array([[[0, 100, 255]]], jnp.uint8))
      Array([[[255, 155,   0]]], dtype=uint8)
    """
    return _fixed(tone.invert)


@augmentation
def posterize(bits: int | jax.Array) -> Stage:
    """The highest bits of each level; the others become 0.

    As Pillow's ``ImageOps.posterize``; a float image is taken 255 times, and gives what its 8-bit image does.

    Args:
      bits: how many bits stay, 0 (a black image) to 8 (the image as it is).

    Returns:
      The augmentation.

    Raises:
      TypeError: ``bits`` is no integer.
      ValueError: ``bits`` is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.posterize(2)(jax.random.key(0), jnp.array([[[0, 100, 255]]], jnp.uint8))
      Array([[[  0,  64, 192]]], dtype=uint8)
    """
    checks.integer("bits", bits, at_least=0, at_most=8)
    return _fixed(lambda planes: tone.posterize(planes, bits))


@augmentation
def solarize(threshold: Scalar) -> Stage:
    """The levels from a threshold on inverted.

    As Pillow's ``ImageOps.solarize``; a float image is compared 255 times, and gives what its 8-bit image does.

    Args:
      threshold: a level, 0 (all are inverted) to 256 (none is), for float images too.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``threshold`` is no number.
      ValueError: ``threshold`` is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.solarize(128)(jax.random.key(0), jnp.array([[[0, 100, 255]]], jnp.uint8))
      Array([[[  0, 100,   0]]], dtype=uint8)
    """
    checks.real("threshold", threshold, at_least=0, at_most=256)
    return _fixed(lambda planes: tone.solarize(planes, threshold))


@augmentation
def normalize(mean: Scalar | tuple[Scalar, ...], std: Scalar | tuple[Scalar, ...]) -> Stage:
    """``(image - mean) / std``, the image taken in [0, 1]; the last step, since its result is not in [0, 1] any more.

    Args:
      mean: of all channels, or one for each, on the scale of [0, 1].
      std: the standard deviation of all channels, or one for each, on the scale of [0, 1], > 0.

    Returns:
      The augmentation; it gives float32 for uint8, and the dtype of a float image.

    Raises:
      TypeError: an argument is neither a number nor a tuple of numbers.
      ValueError: a deviation is not above 0, or (when called) there are not as many numbers as channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.normalize(mean=(0.5, 0.0, 0.0), std=0.5)
      >>> aug(jax.random.key(0), jnp.array([[[0, 0, 255]]], jnp.uint8))
      Array([[[-1.,  0.,  2.]]], dtype=float32)
    """
    for number in mean if isinstance(mean, (tuple, list)) else (mean,):
        checks.real("mean", number)
    for number in std if isinstance(std, (tuple, list)) else (std,):
        checks.real("std", number, above=0)

    def kernel(planes: Planes) -> Planes:
        means, deviations = _each("mean", mean, len(planes)), _each("std", std, len(planes))
        values = [plane.astype(jnp.float32) / 255 if plane.dtype == jnp.int32 else plane for plane in planes]
        return [(value - m) / s for value, m, s in zip(values, means, deviations, strict=True)]

    return _fixed(kernel)


def _fixed(kernel: Any, at_a_time: Images = any_number, dear: bool = False) -> Stage:
    """A stage without parameters."""
    return Pixelwise(lambda key, shape: (), lambda params, planes: kernel(planes), at_a_time, dear)


def _measured(shape: Shape, dtype: Any) -> int | None:
    """Where the levels of an image are measured: few images of 8 bits, and of floats all of a batch."""
    return few(1 << 16)(shape, dtype) if dtype == jnp.uint8 else None


def _radius(kernel_size: int | None, largest: Scalar) -> int:
    if kernel_size is None:
        if not checks.is_concrete(largest):
            raise TypeError(f"kernel_size: expected an odd number, since shapes depend on it and sigma is only known "
                            f"when the program runs, got None and sigma={largest}")
        return math.ceil(REACH * largest)
    size = arrays.size("kernel_size", kernel_size)
    if size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number, got {size}")
    return size // 2


def _each(name: str, numbers: Scalar | tuple[Scalar, ...], channels: int) -> list[jax.Array]:
    each = list(numbers) if isinstance(numbers, (tuple, list)) else [numbers] * channels
    if len(each) != channels:
        raise ValueError(f"{name}: expected a number or one for each of the {channels} channels, got {len(each)}")
    return [jnp.asarray(one, jnp.float32) for one in each]
