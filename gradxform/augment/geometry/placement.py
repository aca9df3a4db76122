"""Where the pixels of an image come from: maps of positions that compose, so that many moves are one resampling.

A position is (x, y) in pixels, with (0, 0) the top-left corner of the image: the pixel of row i and column j has its
centre at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradxform.augment.geometry.borders import inward_position
from gradxform.augment.pixels.arithmetic import exact, inward
from gradxform.core.types import Scalar, Size

HORIZON = 2.0**-20
"""Of a projective map's divisor; what is beyond comes from far outside."""
Position: TypeAlias = Any
"""Positions along one axis: a number that is known, or an array of any shape; with numbers it is a number again."""
Addends: TypeAlias = tuple[tuple[Position, ...], ...]
"""What adds up to x, and what to y, in that order."""


class Map(Protocol):
    """From positions in the result of an operation to positions in its input: what a ``Geometric`` places.

    A position is (x, y) in pixels from the top-left corner, so that the pixel of row i and column j has its centre at
    (j + 0.5, i + 0.5). ``Affine``, ``Projective`` and ``Displacement`` are maps, and so is any ``NamedTuple`` of
    numbers and arrays with these three methods: calling it moves image and mask, ``inverse`` boxes and points.

    Example:
      >>> from typing import NamedTuple
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> class Swirl(NamedTuple):
      ...   turns: jax.Array
      ...   middle: tuple[float, float]
      ...   def turned(self, x, y, turns):
      ...     x, y = x - self.middle[0], y - self.middle[1]
      ...     angle = 2 * jnp.pi * turns * jnp.exp(-jnp.hypot(x, y) / self.middle[0])
      ...     cos, sin = jnp.cos(angle), jnp.sin(angle)
      ...     return cos * x - sin * y + self.middle[0], sin * x + cos * y + self.middle[1]
      ...   def __call__(self, x, y):
      ...     return self.turned(x, y, self.turns)
      ...   def addends(self, x, y):
      ...     x, y = self(x, y)
      ...     return (x,), (y,)
      ...   def inverse(self, x, y):
      ...     return self.turned(x, y, -self.turns)
      >>> @gx.augment.augmentation
      ... def random_swirl(most: float = 0.5):
      ...   def draw(key, shape):
      ...     return most * jax.random.uniform(key, minval=-1.0)
      ...   def place(turns, shape):
      ...     return Swirl(turns, (shape[1] / 2, shape[0] / 2))
      ...   return gx.augment.Resampling((gx.augment.Geometric(
      ...       draw, place, interpolation="bilinear", border=gx.augment.Border("edge")),))
      >>> aug = gx.augment.chain(gx.augment.random_crop(32), random_swirl(), gx.augment.random_flip_left_right())
      >>> images, points = jnp.ones((8, 40, 40, 3)), jnp.full((8, 2, 2), 20.0)
      >>> moved = aug(jax.random.key(0), {"image": images, "keypoints": points})
      >>> moved["image"].shape, moved["keypoints"].shape
      ((8, 32, 32, 3), (8, 2, 2))
    """

    def __call__(self, x: Position, y: Position) -> tuple[Position, Position]:
        """The source of positions."""

    def addends(self, x: Position, y: Position) -> Addends:
        """What adds up to the source of the centres of pixels, x (1, W) and y (H, 1), in order: numbers or arrays."""

    def inverse(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The positions whose source is given."""


class Affine(NamedTuple):
    """The map ``source_x = xx x + xy y + x0``, ``source_y = yx x + yy y + y0``, each number a scalar.

    Numbers that are known before the program runs are Python's.

    Example:
      >>> import gradxform as gx
      >>> twice = gx.augment.Affine(0.5, 0.0, 0.0, 0.0, 0.5, 0.0)    # each pixel comes from half as far
      >>> twice(8.0, 4.0), twice.inverse(4.0, 2.0)
      ((4.0, 2.0), (8.0, 4.0))
    """

    xx: Scalar
    xy: Scalar
    x0: Scalar
    yx: Scalar
    yy: Scalar
    y0: Scalar

    def __call__(self, x: Position, y: Position) -> tuple[Position, Position]:
        """The source of positions."""
        return added(self.addends(x, y))

    def addends(self, x: Position, y: Position) -> Addends:
        """What adds up to the source of positions."""
        # Each product rounded: whichever way a program is compiled, it finds the same pixels.
        return (exact(self.xx * x), exact(self.xy * y), self.x0), (exact(self.yx * x), exact(self.yy * y), self.y0)

    def after(self, inner: Affine) -> Affine:
        """The map that applies ``inner`` and then this one."""
        x0, y0 = self(inner.x0, inner.y0)
        linear = self._replace(x0=0.0, y0=0.0)
        (xx, yx), (xy, yy) = linear(inner.xx, inner.yx), linear(inner.xy, inner.yy)
        return Affine(xx, xy, x0, yx, yy, y0)

    def inverse(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The positions whose source is given."""
        x, y = x - self.x0, y - self.y0
        determinant = self.xx * self.yy - self.xy * self.yx
        return (self.yy * x - self.xy * y) / determinant, (self.xx * y - self.yx * x) / determinant


class Projective(NamedTuple):
    """The map of a plane seen from elsewhere: two affine numbers over a third, ``wx x + wy y + w0``.

    ``source_x = (xx x + xy y + x0) / (wx x + wy y + w0)``, and ``source_y`` likewise. Where the divisor is not above
    0, behind the horizon, there is no source; it is taken for one far outside.

    Example:
      >>> import gradxform as gx
      >>> tilted = gx.augment.Projective(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.25, 1.0)
      >>> [float(part) for part in tilted(8.0, 4.0)], [float(part) for part in tilted.inverse(4.0, 2.0)]
      ([4.0, 2.0], [8.0, 4.0])
    """

    xx: Scalar
    xy: Scalar
    x0: Scalar
    yx: Scalar
    yy: Scalar
    y0: Scalar
    wx: Scalar
    wy: Scalar
    w0: Scalar

    def __call__(self, x: Position, y: Position) -> tuple[Position, Position]:
        """The source of positions."""
        x, y, w = (exact(a * x) + exact(b * y) + c for a, b, c in (self[:3], self[3:6], self[6:]))
        w = jnp.maximum(w, HORIZON)
        return x / w, y / w

    def addends(self, x: Position, y: Position) -> Addends:
        """The source of positions."""
        x, y = self(x, y)
        return (x,), (y,)

    def after(self, inner: Projective | Affine) -> Projective:
        """The map that applies ``inner`` and then this one."""
        mine, other = (_homogeneous(one) for one in (self, inner))
        return Projective(
            *(
                exact(mine[i] * other[j]) + exact(mine[i + 1] * other[j + 3]) + exact(mine[i + 2] * other[j + 6])
                for i in (0, 3, 6)
                for j in range(3)
            )
        )

    def inverse(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The positions whose source is given."""
        a, b, c, d, e, f, g, h, i = self
        # The adjugate, made positive: the sign of a divisor tells what is behind the horizon.
        back = (
            e * i - f * h,
            c * h - b * i,
            b * f - c * e,
            f * g - d * i,
            a * i - c * g,
            c * d - a * f,
            d * h - e * g,
            b * g - a * h,
            a * e - b * d,
        )
        sign = jnp.where(a * back[0] + b * back[3] + c * back[6] < 0, -1.0, 1.0)
        return Projective(*(sign * one for one in back))(x, y)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["size"], meta_fields=["mode", "nearest"])
@dataclasses.dataclass(frozen=True)
class Rim:
    """From positions, beyond the rim too, to positions in a true image in the corner of a padded array.

    Attributes:
      size: the true height and width, (2,).
      mode: what lies beyond the rim, one of ``borders.MODES``; a constant is beyond the array.
      nearest: whether the nearest pixels are asked for, and not what lies between them.
    """

    size: jax.Array
    mode: str
    nearest: bool

    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The source of positions."""
        return self._along(x, self.size[1]), self._along(y, self.size[0])

    def addends(self, x: jax.Array, y: jax.Array) -> Addends:
        """What adds up to the source of positions."""
        x, y = self(x, y)
        return (x,), (y,)

    def inverse(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The positions themselves: a point beyond the rim stays there."""
        return x, y

    def _along(self, position: jax.Array, size: jax.Array) -> jax.Array:
        # What is within stays as it is, to the bit.
        if self.nearest or self.mode == "constant":
            beyond = (position < 0) | (position >= size)
            found: ArrayLike = (
                -1.0
                if self.mode == "constant"
                else inward(jnp.floor(position).astype(jnp.int32), size, self.mode) + 0.5
            )
            position = jnp.where(beyond, found, position)
            return position if self.nearest else jnp.minimum(position, size - 0.5)
        beyond = (position < 0.5) | (position > size - 0.5)
        return jnp.where(beyond, inward_position(position - 0.5, size, self.mode) + 0.5, position)


def as_float(number: Size) -> Scalar:
    """A whole number, known or traced, as a number of a map."""
    return number.astype(jnp.float32) if isinstance(number, jax.Array) else float(number)


def composed(maps: Sequence[Map]) -> list[Map]:
    """The maps of operations, in their order, with neighbouring affine and projective ones as one."""
    result: list[Map] = []
    for one in maps:
        last = result[-1] if result else None
        if isinstance(one, Affine) and isinstance(last, Affine):
            result[-1] = last.after(one)
        elif isinstance(one, (Affine, Projective)) and isinstance(last, (Affine, Projective)):
            result[-1] = Projective(*_homogeneous(last)).after(one)
        else:
            result.append(one)
    return result


def _homogeneous(one: Affine | Projective) -> tuple[Scalar, ...]:
    """The nine numbers of the matrix, row by row."""
    return tuple(one) if isinstance(one, Projective) else (*one, 0.0, 0.0, 1.0)


def moves(maps: Sequence[Map]) -> tuple[bool, bool]:
    """Whether pixels may come from other columns, and from other rows, or from between two of them."""
    still = [
        (_is(one.xx, 1) and _is(one.xy, 0) and _is(one.x0, 0), _is(one.yx, 0) and _is(one.yy, 1) and _is(one.y0, 0))
        if isinstance(one, Affine)
        else (False, False)
        for one in maps
    ]
    return not all(x for x, _ in still), not all(y for _, y in still)


def _is(number: Scalar, value: int) -> bool:
    return not isinstance(number, jax.Array) and number == value


def added(addends: Addends) -> tuple[Position, Position]:
    """The positions that these add up to."""
    x, y = (functools.reduce(operator.add, one) for one in addends)
    return x, y


def centers(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The positions of the centres of pixels, (1, width) and (height, 1)."""
    x, y = jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32)
    return x[None] + 0.5, y[:, None] + 0.5


def sources(maps: Sequence[Map], height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Where the centres of the pixels of a result of (height, width) come from, each part (height, width)."""
    x, y = centers(height, width)
    for i, one in enumerate(reversed(maps)):
        x, y = one(x, y) if i else added(one.addends(x, y))
    shape = (height, width)
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)


def moved(maps: Sequence[Map], points: jax.Array) -> jax.Array:
    """Points (..., 2 or more) of the input as they lie in the result; what stands behind x and y stays."""
    x, y = points[..., 0].astype(jnp.float32), points[..., 1].astype(jnp.float32)
    for one in maps:
        x, y = one.inverse(x, y)
    return jnp.concatenate([jnp.stack([x, y], -1), points[..., 2:]], -1)


def moved_boxes(maps: Sequence[Map], boxes: jax.Array, height: Size, width: Size) -> tuple[jax.Array, jax.Array]:
    """Boxes around what was in them, cut to the result.

    Args:
      maps: from positions in the result to positions in the image.
      boxes: (N, 4).
      height: of the result.
      width: of the result.

    Returns:
      The boxes (N, 4), four zeros where nothing is left, and the share (N,) of the area of each that is left.
    """
    steps = 2 if all(isinstance(one, (Affine, Projective)) for one in maps) else 17
    t = jnp.linspace(0, 1, steps)
    zeros, ones = jnp.zeros_like(t), jnp.ones_like(t)
    # The rim of the unit square: the corners are enough where lines stay straight.
    rim = jnp.stack([jnp.concatenate([t, t, zeros, ones]), jnp.concatenate([zeros, ones, t, t])], -1)
    low, high = boxes[:, None, :2].astype(jnp.float32), boxes[:, None, 2:].astype(jnp.float32)
    points = moved(maps, low + rim * (high - low))
    whole = jnp.concatenate([points.min(1), points.max(1)], -1)
    bounds = jnp.stack([jnp.asarray(side, jnp.float32) for side in (width, height)] * 2)
    cut = jnp.clip(whole, 0, bounds)
    left = jnp.all(cut[:, 2:] > cut[:, :2], -1) & jnp.all(boxes[:, 2:] > boxes[:, :2], -1)
    share = _area(cut) / jnp.where(left, _area(whole), 1)
    return jnp.where(left[:, None], cut, 0), jnp.where(left, share, 0)


def _area(boxes: jax.Array) -> jax.Array:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
