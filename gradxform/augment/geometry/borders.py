"""What lies beyond the rim of an image."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
            for a, b in zip(mine, theirs, strict=True))


def border_of(border: str, fill: Any, mask_fill: Any) -> Border:
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
            raise TypeError(f"fill: expected a number or a tuple of one for each channel, got an array of shape "
                            f"{one.shape}")


def colors(fill: Fill, channels: int, packed: bool) -> list[jax.Array]:
    """The colour of each channel, as integers in 0..255 for 8-bit images.

    Raises:
      ValueError: there are not as many as channels.
    """
    each = list(fill) if isinstance(fill, (tuple, list)) else [fill] * channels
    if len(each) != channels:
        raise ValueError(f"fill: expected a number or one for each of the {channels} channels, got {len(each)}")
    numbers = [jnp.asarray(one, jnp.float32) for one in each]
    return [jnp.round(one * 255).astype(jnp.int32) for one in numbers] if packed else numbers


def inward(index: jax.Array, size: int, mode: str) -> jax.Array:
    """Indices of pixels, beyond the rim too, as indices of pixels that there are."""
    if mode == "reflect" and size > 1:
        index = jnp.mod(index, 2 * size - 2)
        return jnp.minimum(index, 2 * size - 2 - index)
    return jnp.clip(index, 0, size - 1)


def inward_position(position: jax.Array, size: int, mode: str) -> jax.Array:
    """Positions along an axis, in pixels from the centre of the first, as positions up to the centre of the last."""
    if mode == "reflect" and size > 1:
        period = 2.0 * (size - 1)
        # A factor, since compilers turn some quotients into products, and a product has another rounding.
        position = jnp.abs(position - period * jnp.round(position * (1 / period)))
    # On the last centre it stands still: the pixel after it, which a slope would ask for, may be one of another row.
    last = float(size - 1)
    position = jnp.where(position < 0, 0.0, position)
    return jnp.where(position >= last, last, position)
