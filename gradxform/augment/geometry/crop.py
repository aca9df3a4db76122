"""Windows of images."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import ALONG_AXES, Fill, border_of
from gradxform.augment.geometry.placement import Affine, as_float
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar

TRIES = 10
"""How often a crop of a random shape is drawn before the whole width or height is taken."""


@augmentation
def random_crop(
    size: int | tuple[int, int],
    padding: int | tuple[int, int] = 0,
    *,
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """A window of the image, anywhere in it with the same probability.

    Args:
      size: height and width of the window in pixels, or one number for both.
      padding: by how many pixels the image is widened before, above and below, left and right.
      border: what is put there: ``"constant"``, ``"edge"`` or ``"reflect"`` (without the rim itself again).
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it gives images of ``size``.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) the window is larger than the widened image.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> crop = gx.augment.random_crop((32, 32), padding=4, border="reflect")
      >>> crop(jax.random.key(0), jnp.zeros((16, 32, 32, 3))).shape
      (16, 32, 32, 3)
    """
    height, width = arrays.pair("size", size)
    down, across = arrays.pair("padding", padding, at_least=0)
    beyond = border_of(border, fill, mask_fill)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        rows, columns = jax.random.split(key)
        return {
            "top": jax.random.randint(rows, (), -down, shape[0] + down - height + 1),
            "left": jax.random.randint(columns, (), -across, shape[1] + across - width + 1),
        }

    def place(params: Sampled, shape: Shape) -> Affine:
        return Affine(1.0, 0.0, params["left"].astype(jnp.float32), 0.0, 1.0, params["top"].astype(jnp.float32))

    def result(shape: Shape) -> tuple[int, int]:
        fitting(
            (height, width),
            (shape[0] + 2 * down, shape[1] + 2 * across),
            shape,
            f" with a padding of {(down, across)}" if down or across else "",
        )
        return height, width

    padded = down > 0 or across > 0
    return Resampling((Geometric(draw, place, "shift", result, beyond if padded else None, reach=(down, across)),))


@augmentation
def center_crop(size: int | tuple[int, int]) -> Stage:
    """The window in the middle of the image; of two middles the upper and the left one.

    Args:
      size: height and width of the window in pixels, or one number for both.

    Returns:
      The augmentation; it gives images of ``size``.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) the window is larger than the image.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.center_crop(2)(jax.random.key(0), jnp.arange(16, dtype=jnp.uint8).reshape(4, 4, 1))[..., 0]
      Array([[ 5,  6],
             [ 9, 10]], dtype=uint8)
    """
    height, width = arrays.pair("size", size)

    def place(params: Sampled, shape: Shape) -> Affine:
        return Affine(1.0, 0.0, as_float((shape[1] - width) // 2), 0.0, 1.0, as_float((shape[0] - height) // 2))

    def result(shape: Shape) -> tuple[int, int]:
        fitting((height, width), shape[:2], shape, "")
        return height, width

    return Resampling((Geometric(lambda key, shape: (), place, "shift", result),))


@augmentation
def random_resized_crop(
    size: int | tuple[int, int],
    scale: tuple[Scalar, Scalar] = (0.08, 1.0),
    ratio: tuple[Scalar, Scalar] = (3 / 4, 4 / 3),
    *,
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Stage:
    """A window of random area and shape, resized: the crop of Inception (Szegedy and others, 2015) and of SimCLR.

    The area is uniform, the logarithm of width to height too; of ten draws the first that fits is taken, and without
    one the largest window in the middle with an allowed ratio, as torchvision has it. Pixels just outside the window
    count at its rim, as with a box in Pillow.

    Args:
      size: height and width of the result in pixels, or one number for both.
      scale: the bounds of the window's share of the image's area, above 0, the second at most 1.
      ratio: the bounds of width to height, above 0.
      interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; masks are always ``"nearest"``.
      antialias: whether a smaller result is the mean of all pixels, with the weights of a filter as wide as they lie.

    Returns:
      The augmentation; it gives images of ``size``.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or the bounds are in the wrong order.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_resized_crop((32, 32))(jax.random.key(0), jnp.zeros((8, 48, 64, 3))).shape
      (8, 32, 32, 3)
    """
    height, width = arrays.pair("size", size)
    low, high = bounds("scale", scale, above=0, at_most=1)
    narrow, wide = bounds("ratio", ratio, above=0)
    checks.choice("interpolation", interpolation, ALONG_AXES)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        *draws, row, column = jax.random.uniform(key, (2 * TRIES + 2,))
        area = (low + (high - low) * jnp.stack(draws[:TRIES])) * (shape[0] * shape[1])
        spread = jnp.log(wide) - jnp.log(narrow)
        aspect = jnp.exp(jnp.log(narrow) + spread * jnp.stack(draws[TRIES:]))
        w = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
        h = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
        fits = (w > 0) & (w <= shape[1]) & (h > 0) & (h <= shape[0])
        first = jnp.argmax(fits)
        # No draw fits: the whole image along one axis, cut along the other to the nearest ratio.
        whole = shape[1] / shape[0]
        wide_enough = jnp.round(shape[0] * jnp.float32(wide)).astype(jnp.int32)
        low_enough = jnp.round(shape[1] / jnp.float32(narrow)).astype(jnp.int32)
        some = jnp.any(fits)
        w = jnp.where(some, w[first], jnp.where(whole > wide, jnp.maximum(wide_enough, 1), shape[1]))
        h = jnp.where(some, h[first], jnp.where(whole < narrow, jnp.maximum(low_enough, 1), shape[0]))
        top = jnp.where(some, _below(row, shape[0] - h + 1), (shape[0] - h) // 2)
        left = jnp.where(some, _below(column, shape[1] - w + 1), (shape[1] - w) // 2)
        return {"top": top, "left": left, "height": h, "width": w}

    def place(params: Sampled, shape: Shape) -> Affine:
        top, left, h, w = (params[name].astype(jnp.float32) for name in ("top", "left", "height", "width"))
        return Affine(w * (1 / width), 0.0, left, 0.0, h * (1 / height), top)

    return Resampling(
        (
            Geometric(
                draw, place, "scale", lambda shape: (height, width), interpolation=interpolation, antialias=antialias
            ),
        )
    )


def bounds(
    name: str,
    pair: tuple[Scalar, Scalar],
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> tuple[Scalar, Scalar]:
    """A pair of bounds, the lower one first.

    Raises:
      TypeError: it is no pair of numbers.
      ValueError: a number is out of range, or the order is wrong.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name}: expected a pair of bounds, got {pair!r}")
    for bound in pair:
        checks.real(name, bound, at_least=at_least, above=above, at_most=at_most)
    low, high = pair
    if checks.is_concrete(low) and checks.is_concrete(high) and low > high:
        raise ValueError(f"{name}: expected the lower bound first, got {pair!r}")
    return low, high


def _below(uniform: jax.Array, bound: jax.Array) -> jax.Array:
    """An integer from 0 to below a bound, of a number from 0 to below 1."""
    return jnp.minimum(jnp.floor(uniform * bound).astype(jnp.int32), bound - 1)


def fitting(window: tuple[int, int], room: tuple[int, ...], shape: Shape, how: str) -> None:
    """Refuses a window that is larger than the room for it.

    Raises:
      ValueError: it is.
    """
    known = not any(isinstance(side, jax.Array) for side in room)
    if known and (window[0] > room[0] or window[1] > room[1]):
        raise ValueError(f"size: expected a window that fits into images of {shape[:2]}{how}, got {window}")
