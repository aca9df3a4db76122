"""Look-ups: the elements of arrays at places, and pixels blended of the four around their source.

What is done for each pixel is split into passes over the image: where it comes from, what is there, and the blend. In
one pass XLA's CPU backend would find the place anew for each look-up, in a loop that it vectorizes badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradxform.augment.borders import Border, colors, inward_position
from gradxform.augment.canvas import Canvas, exact
from gradxform.augment.placement import Map, sources
from gradxform.core.isolate import isolated


def elements_at(array: jax.Array, place: jax.Array) -> jax.Array:
    """The elements of an array (N, ...) at places; before and beyond it the first and the last."""
    return array.at[place].get(mode="clip", wrap_negative_indices=False)


def bilinear(image: Canvas, border: Border | None, maps: list[Map], height: int, width: int) -> Canvas:
    """An image of (height, width) whose pixels come from between those that the maps name."""
    rows, columns, channels = image.shape
    mode = "constant" if border is None else border.mode
    fills = colors(0.0 if border is None else border.fill, channels, image.packed)
    # A single map is quicker gone through again than its result is read.
    found: Any = maps if len(maps) == 1 else isolated(lambda maps: sources(maps, height, width), maps)
    # At the centre of the last pixel of a row or column the one after it has no weight, whichever it is.
    offsets = (0, 1, columns, columns + 1)

    def positions(found: Any) -> tuple[jax.Array, jax.Array]:
        return found if isinstance(found, tuple) else sources(found, height, width)

    def inside_of(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return inward_position(x - 0.5, columns, mode), inward_position(y - 0.5, rows, mode)

    def first(found: Any) -> jax.Array:
        left, top = (jnp.floor(part).astype(jnp.int32) for part in inside_of(*positions(found)))
        return top * columns + left

    def blended(corners: Sequence[jax.Array], fill: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        a, b, c, d = (corner.astype(jnp.float32) for corner in corners)
        u, v = inside_of(x, y)
        fx, fy = u - jnp.floor(u), v - jnp.floor(v)
        upper, lower = a + exact((b - a) * fx), c + exact((d - c) * fx)
        value = upper + exact((lower - upper) * fy)
        if mode != "constant":
            return value
        # Products, for with a choice between the two the loop over pixels would not be vectorized.
        inside = ((x >= 0) & (x < columns) & (y >= 0) & (y < rows)).astype(jnp.float32)
        return value * inside + fill.astype(jnp.float32) * (1 - inside)

    def packed(corners: list[Canvas], found: Any, fills: list[jax.Array]) -> Canvas:
        x, y = positions(found)
        planes = [corner.planes() for corner in corners]
        return image.with_planes([blended([one[i] for one in planes], fill, x, y).astype(jnp.int32)
                                  for i, fill in enumerate(fills)])

    def side_by_side(pixels: jax.Array, place: jax.Array, found: Any, fills: jax.Array) -> jax.Array:
        x, y = (part[:, :, None] for part in positions(found))
        place, channel, flat = place[:, :, None], jnp.arange(channels), pixels.reshape(-1)
        return blended([elements_at(flat, (place + one) * channels + channel) for one in offsets], fills, x, y)

    def around(words: tuple[jax.Array, ...], place: jax.Array) -> list[Canvas]:
        return [image.with_words(elements_at(word.reshape(-1), place + one) for word in words) for one in offsets]

    place = isolated(first, found)
    if image.packed:
        return isolated(packed, isolated(around, image.words, place), found, fills)
    # The channels of a pixel are near in memory.
    pixels = isolated(side_by_side, jnp.stack(image.words, -1), place, found, jnp.stack(fills))
    return image.with_words(pixels[..., i] for i in range(channels))
