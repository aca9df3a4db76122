"""What lies beyond the rim of an image."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradxform.augment.pixels.arithmetic import inward, is_one
from gradxform.core import checks
from gradxform.core.types import Scalar

MODES = ("constant", "edge", "reflect")
INTERPOLATIONS = ("nearest", "bilinear")
"""Of pixels that come from anywhere."""
ALONG_AXES = (*INTERPOLATIONS, "bicubic")
"""Of maps along the axes."""
Fill = Scalar | tuple[Scalar, ...]
"""A colour, from 0, black, to 1, whatever the dtype of the image: a number for all channels or one for each."""


class Border(NamedTuple):
    """What lies beyond the rim.

    Attributes:
      mode: one of ``MODES``: a colour, the pixels of the rim again, or the image mirrored at the centres of the pixels
        of the rim.
      fill: the colour.
      mask_fill: the number in masks.

    Example:
      >>> import gradxform as gx
      >>> gx.augment.Border("constant", fill=(0.5, 0.25, 1.0), mask_fill=255).same(gx.augment.Border("edge"))
      False
    """

    mode: str = "constant"
    fill: Fill = 0.0
    mask_fill: int = 0

    def same(self, other: Border) -> bool:
        """Whether another one is known to be equal."""
        mine, theirs = jax.tree.leaves(self), jax.tree.leaves(other)
        return len(mine) == len(theirs) and all(
            a is b or (not isinstance(a, jax.Array) and not isinstance(b, jax.Array) and a == b)
            for a, b in zip(mine, theirs, strict=True)
        )


def border_of(border: str, fill: Fill, mask_fill: int) -> Border:
    """The border that these arguments describe.

    Raises:
      TypeError: one of them is of the wrong type.
      ValueError: one of them is out of range.
    """
    checks.choice("border", border, MODES)
    check_fill(fill)
    checks.integer("mask_fill", mask_fill)
    return Border(border, fill, mask_fill)


def check_fill(fill: Any) -> None:
    """Refuses what is no colour.

    Raises:
      TypeError: it is neither a number nor a tuple of numbers.
      ValueError: a number is out of range.
    """
    for one in fill if isinstance(fill, (tuple, list)) else (fill,):
        checks.real("fill", one, at_least=0, at_most=1)
        if getattr(one, "ndim", 0):
            raise TypeError(
                f"fill: expected a number or a tuple of one for each channel, got an array of shape {one.shape}"
            )


def colors(fill: Fill, channels: int, packed: bool) -> list[jax.Array]:
    """The colour of each channel, as integers in 0..255 for packed 8-bit images.

    Raises:
      ValueError: there are not as many as channels.
    """
    each = list(fill) if isinstance(fill, (tuple, list)) else [fill] * channels
    if len(each) != channels:
        raise ValueError(f"fill: expected a number or one for each of the {channels} channels, got {len(each)}")
    numbers = [jnp.asarray(one, jnp.float32) for one in each]
    return [jnp.round(one * 255).astype(jnp.int32) for one in numbers] if packed else numbers


def is_real(size: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels of arrays (..., height, width) are of an image of a true size (..., 2) in their top-left corner."""
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    return (row < size[..., 0, None, None]) & (column < size[..., 1, None, None])


def blanked(array: jax.Array, size: jax.Array) -> jax.Array:
    """An array (..., H, W, ...) with zeros beyond the true sizes (..., 2) of its images."""
    real = is_real(size, *array.shape[size.ndim - 1 : size.ndim + 1])
    return jnp.where(real.reshape(real.shape + (1,) * (array.ndim - real.ndim)), array, jnp.zeros((), array.dtype))


def framed(
    array: jax.Array, border: Border | None, fill: jax.Array, reach: tuple[int, int], size: jax.Array | None = None
) -> jax.Array:
    """An array (H, W, ...) widened by what lies beyond its rim.

    Args:
      array: of an image or a mask.
      border: what lies there; None for the fill.
      fill: the constant.
      reach: by how many pixels, above and below, left and right.
      size: the true height and width (2,), where the array is padded.

    Returns:
      The array (H + 2 reach[0], W + 2 reach[1], ...).
    """
    if border is None or border.mode == "constant":
        fill = fill.astype(array.dtype)
        if size is not None:
            real = is_real(size, *array.shape[:2])
            array = jnp.where(real.reshape(real.shape + (1,) * (array.ndim - 2)), array, fill)
        return jnp.pad(array, [(one, one) for one in reach] + [(0, 0)] * (array.ndim - 2), constant_values=fill)
    for axis, one in enumerate(reach):
        if one:
            length = array.shape[axis]
            index = inward(jnp.arange(-one, length + one), length if size is None else size[axis], border.mode)
            array = (array.at[index] if axis == 0 else array.at[:, index]).get(mode="promise_in_bounds")
    return array


def inward_position(position: jax.Array, size: int | jax.Array, mode: str) -> jax.Array:
    """Positions along an axis, in pixels from the centre of the first, as positions up to the centre of the last."""
    last: Any = (size - 1).astype(jnp.float32) if isinstance(size, jax.Array) else float(size - 1)
    if mode == "reflect" and not is_one(size):
        period = jnp.maximum(2.0 * last, 1.0) if isinstance(size, jax.Array) else 2.0 * last
        # A factor, since compilers turn some quotients into products, and a product has another rounding.
        position = jnp.abs(position - period * jnp.round(position * (1 / period)))
    # On the last centre it stands still: the pixel after it, which a slope would ask for, may be one of another row.
    position = jnp.where(position < 0, 0.0, position)
    return jnp.where(position >= last, last, position)
