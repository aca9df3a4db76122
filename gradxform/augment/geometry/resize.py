"""New sizes: given, or by the shorter or the longer side."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import ALONG_AXES
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import arrays, checks


@augmentation
def resize(
    size: int | tuple[int, int] | None = None,
    *,
    shorter: int | None = None,
    longer: int | None = None,
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Stage:
    """The image at another size; with antialiasing it is Pillow's ``resize``, to the bit for 8-bit images.

    The size is given, or it follows from the shorter or the longer side and the image keeps its shape; the other side
    is rounded down, as torchvision's. Columns are resized first and rows then, each rounded. Pillow from 13 on takes
    some images whose height shrinks more than their width the other way round; there 8-bit levels may differ by one.

    Args:
      size: height and width in pixels, or one number for both. One number makes a square of every image, and there is a
        warning where that changes its shape; ``shorter=`` is what one number means in torchvision.
      shorter: the shorter side in pixels, instead of ``size``.
      longer: the longer side, instead of ``size``; beside ``shorter`` the most that it may become.
      interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; masks are always ``"nearest"``. Bicubic results
        are cut to the range.
      antialias: whether a smaller image is the mean of all pixels, with the weights of a filter as wide as they lie.

    Returns:
      The augmentation; it gives images of that size.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or there is not either ``size`` or a side.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.ones((427, 640, 3))
      >>> gx.augment.resize((8, 8))(jax.random.key(0), image).shape
      (8, 8, 3)
      >>> gx.augment.resize(shorter=256, interpolation="bicubic")(jax.random.key(0), image).shape
      (256, 383, 3)
    """
    if (size is None) == (shorter is None and longer is None):
        raise ValueError(
            f"size: expected either size or shorter or longer, got size={size!r}, shorter={shorter!r}, "
            f"longer={longer!r}"
        )
    both = None if size is None else arrays.pair("size", size)
    short = None if shorter is None else arrays.size("shorter", shorter)
    long = None if longer is None else arrays.size("longer", longer)
    checks.choice("interpolation", interpolation, ALONG_AXES)

    alone = size is not None and not isinstance(size, (tuple, list))

    def result(shape: Shape) -> tuple[int, int]:
        return both or sides(shape, short, long)

    return Resampling((resizing(result, interpolation, antialias, known=both is None, loses_shape=alone),))


def resizing(
    result: Callable[[Shape], tuple[int, int]],
    interpolation: str,
    antialias: bool,
    known: bool = True,
    loses_shape: bool = False,
) -> Geometric:
    """The operation that makes images of the size that ``result`` gives of their shape.

    Of images that are not square ``loses_shape`` warns, where that is known: not of those of several sizes.
    """

    def place(params: Sampled, shape: Shape) -> Affine:
        height, width = result(shape)
        if loses_shape and all(isinstance(side, int) for side in shape[:2]) and shape[0] != shape[1]:
            warnings.warn(
                f"size: expected height and width for images that are not square, got {height} for images of "
                f"{shape[:2]}, whose shape is lost: {(height, width)} says so, shorter={height} keeps it",
                stacklevel=2,
            )
        return Affine(shape[1] / width, 0.0, 0.0, 0.0, shape[0] / height, 0.0)

    return Geometric(
        lambda key, shape: (), place, "scale", result, interpolation=interpolation, antialias=antialias, known=known
    )


def sides(shape: Shape, shorter: int | None, longer: int | None) -> tuple[int, int]:
    """Height and width that are as shorter and longer ask for, in the shape of the image: torchvision's rounding."""
    short, long = sorted(shape[:2])
    if shorter is None:
        assert longer is not None
        new = int(longer * short / long), longer
    else:
        new = shorter, int(shorter * long / short)
        if longer is not None and new[1] > longer:
            new = int(longer * new[0] / new[1]), longer
    new = max(new[0], 1), max(new[1], 1)
    return new if shape[0] <= shape[1] else (new[1], new[0])
