"""Formats of boxes: what four numbers say, in pixels or in shares of the image.

Inside, boxes are x1, y1, x2, y2 in pixels from the top-left corner of the image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.core.types import Scalar, Size

LAYOUTS = ("xyxy", "yxyx", "xywh", "cxcywh")
FORMATS = (*LAYOUTS, *(f"rel_{layout}" for layout in LAYOUTS))
"""Two corners, x or y first; the first corner and the size; the middle and the size. ``rel_``: in shares of width and
height, as YOLO's ``rel_cxcywh``."""


def to_xyxy(boxes: jax.Array, layout: str, height: Size, width: Size) -> jax.Array:
    """Boxes (..., 4) of one of the ``FORMATS`` as x1, y1, x2, y2 in pixels.

    Args:
      boxes: float32.
      layout: of them.
      height: of the image, a number or as the axes of boxes ahead of the last one ask.
      width: of the image.

    Returns:
      The boxes, float32.
    """
    layout, unit = _split(layout, height, width)
    a, b, c, d = (boxes[..., i] for i in range(4))
    if layout == "yxyx":
        a, b, c, d = b, a, d, c
    elif layout == "xywh":
        c, d = a + c, b + d
    elif layout == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return jnp.stack([a * unit[0], b * unit[1], c * unit[0], d * unit[1]], -1)


def from_xyxy(boxes: jax.Array, layout: str, height: Size, width: Size) -> jax.Array:
    """The inverse of ``to_xyxy``."""
    layout, unit = _split(layout, height, width)
    a, b, c, d = (boxes[..., i] / unit[i % 2] for i in range(4))
    if layout == "yxyx":
        a, b, c, d = b, a, d, c
    elif layout == "xywh":
        c, d = c - a, d - b
    elif layout == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return jnp.stack([a, b, c, d], -1)


def _split(layout: str, height: Size, width: Size) -> tuple[str, tuple[Scalar, Scalar]]:
    """The layout, and how many pixels a 1 in it is across and down."""
    if layout.startswith("rel_"):
        return layout[4:], (jnp.asarray(width, jnp.float32), jnp.asarray(height, jnp.float32))
    return layout, (1.0, 1.0)
