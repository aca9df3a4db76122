"""Changes of tone and sharpness, and the blur."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.photometry.number import Number, OneOrBounds
from gradxform.augment.pixels import filters, histogram, tone
from gradxform.augment.pixels.canvas import Planes
from gradxform.augment.stage import Images, Pixelwise, Sampled, Shape, Stage, Targets, any_number, canvas_of, few
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar

REACH = 4.0
"""To how many standard deviations a blur reaches when nothing else is said, as in SciPy."""


@augmentation
def gaussian_blur(sigma: OneOrBounds = (0.1, 2.0), kernel_size: int | None = None) -> Stage:
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
    number = Number.of("sigma", sigma, at_least=0)
    radius = _radius(kernel_size, number.high)
    return Blur(number, radius)


@augmentation
def sharpness(factor: OneOrBounds) -> Stage:
    """The distance of every value from its smoothed image times a factor.

    As Pillow's ``ImageEnhance.Sharpness``, to the bit for 8-bit images: the smoothing weighs a pixel 5 and each of
    its eight neighbours 1, and the pixels of the rim stay as they are.

    Args:
      factor: 0 for the smoothed image, 1 for the image as it is, 2 for twice the distance; >= 0. Or its bounds, and
        then each image has its own.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``factor`` is neither a number nor a pair of numbers.
      ValueError: a number is negative, or the bounds are in the wrong order.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.zeros((3, 3, 1), jnp.uint8).at[1, 1, 0].set(130)
      >>> gx.augment.sharpness(0.0)(jax.random.key(0), image)[1, 1, 0]
      Array(50, dtype=uint8)
    """
    return _of_number(Number.of("factor", factor, at_least=0), filters.sharpness)


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
def posterize(bits: int | jax.Array | tuple[int | jax.Array, int | jax.Array]) -> Stage:
    """The highest bits of each level; the others become 0.

    As Pillow's ``ImageOps.posterize``; a float image is taken 255 times, and gives what its 8-bit image does.

    Args:
      bits: how many bits stay, 0 (a black image) to 8 (the image as it is). Or the least and the most of them, and then
        each image has its own number, all with the same probability.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``bits`` is neither an integer nor a pair of integers.
      ValueError: a number is out of range, or the bounds are in the wrong order.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.posterize(2)(jax.random.key(0), jnp.array([[[0, 100, 255]]], jnp.uint8))
      Array([[[  0,  64, 192]]], dtype=uint8)
    """
    if not isinstance(bits, (tuple, list)):
        checks.integer("bits", bits, at_least=0, at_most=8)
        return _fixed(lambda planes: tone.posterize(planes, bits))
    least, most = bounds("bits", bits, at_least=0, at_most=8)
    for one in (least, most):
        checks.integer("bits", one)
    return Pixelwise(
        lambda key, shape: {"bits": jax.random.randint(key, (), least, most + 1, jnp.int32)},
        lambda params, planes: tone.posterize(planes, params["bits"]),
        needs_unit=True,
    )


@augmentation
def solarize(threshold: OneOrBounds) -> Stage:
    """The levels from a threshold on inverted.

    As Pillow's ``ImageOps.solarize``; a float image is compared 255 times, and gives what its 8-bit image does.

    Args:
      threshold: a level, 0 (all are inverted) to 256 (none is), for float images too. Or its bounds, and then each
        image has its own.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``threshold`` is neither a number nor a pair of numbers.
      ValueError: a number is out of range, or the bounds are in the wrong order.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.solarize(128)(jax.random.key(0), jnp.array([[[0, 100, 255]]], jnp.uint8))
      Array([[[  0, 100,   0]]], dtype=uint8)
    """
    return _of_number(Number.of("threshold", threshold, at_least=0, at_most=256), tone.solarize)


@augmentation
def random_gamma(gamma: OneOrBounds = (0.8, 1.25)) -> Stage:
    """Every value to a random power: above 1 shadows become darker, below 1 brighter; black and white stay.

    8-bit levels are taken 255 times, as torchvision's ``adjust_gamma`` takes them: ``int(255.999 (i / 255) ** gamma)``
    for each level i. Where that is within 0.001 of a whole number, rounding in float32 may make it the next one.

    Args:
      gamma: the bounds of the power, > 0, between which its logarithm is uniform and each image has its own; or one
        power for all images.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``gamma`` is neither a number nor a pair of numbers.
      ValueError: a number is not above 0, or the bounds are in the wrong order.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_gamma(2.0)(jax.random.key(0), jnp.array([[[0, 100, 255]]], jnp.uint8))
      Array([[[  0,  39, 255]]], dtype=uint8)
    """
    return _of_number(Number.of("gamma", gamma, above=0, logarithmic=True), tone.gamma)


@dataclasses.dataclass(frozen=True)
class Blur(Stage):
    """A Gaussian blur.

    Attributes:
      sigma: the standard deviation.
      radius: how many pixels it reaches to each side.
    """

    sigma: Number
    radius: int
    needs_unit = True

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """As many as a cache holds."""
        return few(1 << 18)(shape, dtype)

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The standard deviation, where it is not known."""
        return self.sigma.draw(key)

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets with another image."""
        return targets | {"image": filters.blurred(canvas_of(targets), self.sigma.among(params), self.radius)}


def _fixed(kernel: Callable[[Planes], Planes], at_a_time: Images = any_number, dear: bool = False) -> Stage:
    """A stage without parameters."""
    return Pixelwise(lambda key, shape: (), lambda params, planes: kernel(planes), at_a_time, dear, needs_unit=True)


def _measured(shape: Shape, dtype: DTypeLike) -> int | None:
    """Where the levels of an image are measured: few images of 8 bits, and of floats all of a batch."""
    return few(1 << 16)(shape, dtype) if dtype == jnp.uint8 else None


def _of_number(number: Number, kernel: Callable[[Planes, Scalar], Planes]) -> Stage:
    """A stage whose kernel takes a number."""
    return Pixelwise(
        lambda key, shape: number.draw(key),
        lambda params, planes: kernel(planes, number.among(params)),
        needs_unit=True,
    )


def _radius(kernel_size: int | None, largest: Scalar) -> int:
    if kernel_size is None:
        if not checks.is_concrete(largest):
            raise TypeError(
                f"kernel_size: expected an odd number, since shapes depend on it and sigma is only known "
                f"when the program runs, got None and sigma={largest}"
            )
        return math.ceil(REACH * largest)
    size = arrays.size("kernel_size", kernel_size)
    if size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number, got {size}")
    return size // 2
