"""Frames around images: of given width, to a given size, and letterboxes."""

from __future__ import annotations

from collections.abc import Callable

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import ALONG_AXES, Border, Fill, border_of
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.resize import resizing
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import arrays, checks
from gradxform.core.types import PyTree

Sides = tuple[tuple[int, int], tuple[int, int]]
"""Above and below, left and right."""


@augmentation
def pad(
    padding: int | tuple[int, int] | Sides, *, border: str = "constant", fill: Fill = 0.0, mask_fill: int = 0
) -> Stage:
    """The image in a frame.

    Args:
      padding: its width in pixels, >= 0: one number, one above and below and one left and right, or
        ``((top, bottom), (left, right))`` as in ``np.pad``.
      border: what is put there: ``"constant"``, ``"edge"`` or ``"reflect"`` (without the rim itself again).
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it gives images that are larger by the frame.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.pad(((0, 4), (8, 8)), fill=0.5)(jax.random.key(0), jnp.zeros((16, 32, 32, 3))).shape
      (16, 36, 48, 3)
    """
    (top, bottom), (left, right) = widths = _widths(padding)

    def result(shape: Shape) -> tuple[int, int]:
        return shape[0] + top + bottom, shape[1] + left + right

    return Resampling((_framing(result, lambda shape: widths, border_of(border, fill, mask_fill)),))


@augmentation
def pad_to(size: int | tuple[int, int], *, border: str = "constant", fill: Fill = 0.0, mask_fill: int = 0) -> Stage:
    """The image in the middle of a frame that makes it at least so large; what is larger stays so.

    Args:
      size: the least height and width in pixels, or one number for both. Of an odd number of missing pixels the one
        more is below or to the right.
      border: what is put there: ``"constant"``, ``"edge"`` or ``"reflect"`` (without the rim itself again).
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it gives images of ``size``, or of their own where that is larger.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> fitted = gx.augment.chain(gx.augment.pad_to(32), gx.augment.random_crop(32))
      >>> fitted(jax.random.key(0), jnp.zeros((16, 24, 40, 3))).shape
      (16, 32, 32, 3)
    """
    return Resampling((_centred(arrays.pair("size", size), border_of(border, fill, mask_fill)),))


@augmentation
def letterbox(
    size: int | tuple[int, int],
    *,
    interpolation: str = "bilinear",
    antialias: bool = True,
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """The whole image in its own shape, as large as a size allows, with bars beside it or above and below.

    Args:
      size: height and width of the result in pixels, or one number for both.
      interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; masks are always ``"nearest"``.
      antialias: as for ``resize``.
      border: what the bars are: ``"constant"``, ``"edge"`` or ``"reflect"`` (without the rim itself again).
      fill: the constant, from 0, black, to 1, or one for each channel; YOLO's is 114 / 255.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it gives images of ``size``.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> inputs = {"image": jnp.ones((48, 64, 3)), "boxes": jnp.array([[0.0, 0.0, 64.0, 48.0]])}
      >>> gx.augment.letterbox(32, fill=114 / 255)(jax.random.key(0), inputs)["boxes"]
      Array([[ 0.,  4., 32., 28.]], dtype=float32)
    """
    room = arrays.pair("size", size)
    checks.choice("interpolation", interpolation, ALONG_AXES)

    def result(shape: Shape) -> tuple[int, int]:
        ratio = min(room[0] / shape[0], room[1] / shape[1])
        return max(1, min(room[0], round(shape[0] * ratio))), max(1, min(room[1], round(shape[1] * ratio)))

    return Resampling((resizing(result, interpolation, antialias), _centred(room, border_of(border, fill, mask_fill))))


def _centred(size: tuple[int, int], border: Border) -> Geometric:
    def result(shape: Shape) -> tuple[int, int]:
        return max(shape[0], size[0]), max(shape[1], size[1])

    def widths(shape: Shape) -> Sides:
        down, across = (new - old for new, old in zip(result(shape), shape[:2], strict=True))
        return (down // 2, down - down // 2), (across // 2, across - across // 2)

    return _framing(result, widths, border)


def _framing(result: Callable[[Shape], tuple[int, int]], widths: Callable[[Shape], Sides], border: Border) -> Geometric:
    def reach(shape: Shape) -> tuple[int, int]:
        down, across = widths(shape)
        return max(down), max(across)

    def place(params: Sampled, shape: Shape) -> Affine:
        (top, _), (left, _) = widths(shape)
        return Affine(1.0, 0.0, float(-left), 0.0, 1.0, float(-top))

    return Geometric(lambda key, shape: (), place, "shift", result, border, reach=reach, frames=True, known=True)


def _widths(padding: PyTree) -> Sides:
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and any(isinstance(x, (tuple, list)) for x in padding):
        for one in padding:
            if not isinstance(one, (tuple, list)):
                raise TypeError(f"padding: expected two pairs or none, got {padding!r}")
        return arrays.pair("padding", padding[0], at_least=0), arrays.pair("padding", padding[1], at_least=0)
    down, across = arrays.pair("padding", padding, at_least=0)
    return (down, down), (across, across)
