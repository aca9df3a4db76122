"""Look-ups: the elements of arrays at places, and pixels blended of those around their source.

What is done for each pixel is split into passes over the image: where it comes from, what is there, and the blend. In
one pass XLA's CPU backend would find the place anew for each look-up, in a loop that it vectorizes badly.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gradxform.augment.geometry.borders import Border, colors, inward_position
from gradxform.augment.geometry.placement import Addends, Map, added, centers, moves, sources
from gradxform.augment.pixels.arithmetic import exact, whole
from gradxform.augment.pixels.canvas import Canvas
from gradxform.core.isolate import isolated


def elements_at(array: jax.Array, place: jax.Array) -> jax.Array:
    """The elements of an array (N, ...) at places; before and beyond it the first and the last."""
    return array.at[place].get(mode="clip", wrap_negative_indices=False)


def bilinear(image: Canvas, border: Border | None, maps: list[Map], height: int, width: int) -> Canvas:
    """An image of (height, width) whose pixels come from between those that the maps name."""
    rows, columns, channels = image.shape
    mode = "constant" if border is None else border.mode
    fills = colors(0.0 if border is None else border.fill, channels, image.packed)
    # What a single map adds up for each pixel is quicker added again than its result is read.
    x, y = centers(height, width)
    found: Addends = (maps[0].addends(x, y) if len(maps) == 1 else
                      isolated(lambda maps: tuple((part,) for part in sources(maps, height, width)), maps))
    # At the centre of the last pixel of a row or column the one after it has no weight, whichever it is. Where a map
    # leaves columns or rows as they are, no other ever has any.
    across, down = ((0, step) if moved else (0,) for step, moved in zip((1, columns), moves(maps), strict=True))
    offsets = [below + beside for below in down for beside in across]

    def inside_of(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return inward_position(x - 0.5, columns, mode), inward_position(y - 0.5, rows, mode)

    def first(found: Addends) -> jax.Array:
        left, top = (whole(part) for part in inside_of(*added(found)))
        return jnp.broadcast_to(top * columns + left, (height, width))

    def blended(corners: Sequence[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        fx, fy = (part - jnp.floor(part) for part in inside_of(x, y))
        values = [corner.astype(jnp.float32) for corner in corners]
        if len(across) > 1:
            values = [one + exact((other - one) * fx) for one, other in zip(values[::2], values[1::2], strict=True)]
        return values[0] if len(values) == 1 else values[0] + exact((values[1] - values[0]) * fy)

    def is_inside(x: jax.Array, y: jax.Array) -> jax.Array:
        return (x >= 0) & (x < columns) & (y >= 0) & (y < rows)

    def packed(corners: tuple[jax.Array, ...], found: Addends, fill: tuple[jax.Array, ...]) -> Canvas:
        x, y = added(found)
        planes = [image.with_words(word[i] for word in corners).planes() for i in range(len(offsets))]
        result = image.with_planes([whole(blended(values, x, y)) for values in zip(*planes, strict=True)])
        if mode != "constant":
            return result
        inside = is_inside(x, y)
        return result.with_words(jnp.where(inside, word, color) for word, color in zip(result.words, fill, strict=True))

    def side_by_side(pixels: jax.Array, place: jax.Array, found: Addends, fill: jax.Array) -> jax.Array:
        x, y = (part[:, :, None] for part in added(found))
        place, channel, flat = place[:, :, None], jnp.arange(channels), pixels.reshape(-1)
        value = blended([elements_at(flat, (place + one) * channels + channel) for one in offsets], x, y)
        if mode != "constant":
            return value
        # Products, for with a choice between the two the loop over pixels would not be vectorized.
        inside = is_inside(x, y).astype(jnp.float32)
        return value * inside + fill * (1 - inside)

    def around(words: tuple[jax.Array, ...], place: jax.Array) -> tuple[jax.Array, ...]:
        places = place + jnp.array(offsets, jnp.int32)[:, None, None]
        return tuple(elements_at(word.reshape(-1), places) for word in words)

    place = isolated(first, found)
    if image.packed:
        return isolated(packed, isolated(around, image.words, place), found, image.with_planes(fills).words)
    # The channels of a pixel are near in memory.
    pixels = isolated(side_by_side, jnp.stack(image.words, -1), place, found, jnp.stack(fills))
    return image.with_words(pixels[..., i] for i in range(channels))
