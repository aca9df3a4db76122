"""Geometric operations, and a run of them as one resampling that moves masks, boxes and points along."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gradxform.augment.geometry.borders import ALONG_AXES, INTERPOLATIONS, Border, blanked, colors, framed
from gradxform.augment.geometry.placement import Affine, Map, Rim, composed, moved, moved_boxes
from gradxform.augment.geometry.resample import Method, nearest, resampled, word_fills
from gradxform.augment.pixels.canvas import Canvas, white_of
from gradxform.augment.stage import Sampled, Shape, Stage, Targets, canvas_of, few
from gradxform.core import checks
from gradxform.core.types import PyTree

KINDS = ("shift", "scale", "any")
PIXELS_AT_ONCE = 1 << 18
"""Where each pixel is looked up by itself."""


@dataclasses.dataclass(frozen=True)
class Geometric:
    """One operation: parameters, and the map from positions in its result to positions in its input.

    A factory of your own returns a ``Resampling`` of it: it moves masks, boxes and points too, and is one resampling
    with its neighbours in a chain.

    Attributes:
      draw: the parameters from a key and a shape.
      place: the map from the parameters and the shape of the input.
      kind: of the map, one of ``KINDS``.
      size: height and width of the result from the shape of the input; None where they stay.
      border: what lies beyond the rim; None where nothing of it is asked for.
      interpolation: how to find what lies between pixels; None where nothing does.
      reach: how far beyond the rim it goes at most, in pixels down and across; or that from the shape of the input.
      antialias: whether a result smaller than its source is smoothed.
      mirrors: whether it may mirror, down and across.
      fixed: whether nearest pixels are those of Pillow's arithmetic, for which no number of the map is above 1 but
        the shift.
      joints: pairs of points that change places where the map mirrors.
      shrink: by which factors a smoothed result shrinks its source at most, down and across, from the shape of the
        input; None where that is what the sizes tell.
      frames: whether what lies beyond the rim is the border even where an operation before cut something off there.
      turns: whether rows may become columns; of square images.
      known: whether height and width have to be known before the program runs: not of images of several sizes.
      choose: the parameters and the targets, where they depend on what is in the image: boxes, points. What comes
        before is done first.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> @gx.augment.augmentation
      ... def random_zoom(most: float = 2.0):
      ...   def draw(key, shape):
      ...     return jax.random.uniform(key, minval=1.0, maxval=most)
      ...   def place(zoom, shape):
      ...     x, y = shape[1] / 2, shape[0] / 2
      ...     return gx.augment.Affine(1 / zoom, 0.0, x - x / zoom, 0.0, 1 / zoom, y - y / zoom)
      ...   return gx.augment.Resampling((gx.augment.Geometric(draw, place, interpolation="bilinear"),))
      >>> inputs = {"image": jnp.ones((32, 48, 3)), "boxes": jnp.array([[20.0, 12.0, 28.0, 20.0]])}
      >>> x1, y1, x2, y2 = random_zoom(3.0)(jax.random.key(0), inputs)["boxes"][0]
      >>> bool(x2 - x1 > 8), bool(jnp.allclose(x1 + x2, 48))
      (True, True)
    """

    draw: Callable[[jax.Array, Shape], Sampled]
    place: Callable[[Sampled, Shape], Map]
    kind: str = "any"
    size: Callable[[Shape], tuple[int, int]] | None = None
    border: Border | None = None
    interpolation: str | None = None
    reach: tuple[int, int] | Callable[[Shape], tuple[int, int]] = (0, 0)
    antialias: bool = False
    mirrors: tuple[bool, bool] = (False, False)
    fixed: bool = False
    joints: tuple[tuple[int, int], ...] = ()
    shrink: Callable[[Shape], tuple[float, float]] | None = None
    frames: bool = False
    turns: bool = False
    known: bool = False
    choose: Callable[[Any, Targets], tuple[Sampled, Targets]] | None = None

    def __post_init__(self) -> None:
        checks.choice("kind", self.kind, KINDS)
        if self.interpolation is not None:
            checks.choice("interpolation", self.interpolation, INTERPOLATIONS if self.kind == "any" else ALONG_AXES)

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of the result.

        Raises:
          ValueError: images of this shape cannot be moved so.
        """
        if self.known and isinstance(shape[0], jax.Array):
            raise ValueError(
                "size: expected none, since height and width have to be known before the program runs; "
                "crop or resize the images to one size first"
            )
        if self.size is None:
            return shape
        sides = self.size(shape)
        if any(isinstance(side, jax.Array) and all(side is not one for one in shape) for side in sides):
            raise ValueError(
                "size: expected none, since the size of the result depends on it; crop or resize the "
                "images to one size first"
            )
        return (*sides, shape[2])

    def fits(self, other: Geometric) -> bool:
        """Whether one resampling can do both: they ask the same of borders and of what lies between pixels."""
        borders = self.border is None or other.border is None or self.border.same(other.border)
        ways = {self.interpolation, other.interpolation} - {None}
        return borders and len(ways) < 2 and not ("bicubic" in ways and "any" in (self.kind, other.kind))


@dataclasses.dataclass(frozen=True)
class Resampling(Stage):
    """A run of geometric operations: one pass over the image.

    Attributes:
      ops: each a ``Geometric``.

    Example:
      >>> import gradxform as gx, jax
      >>> whole = gx.augment.Affine(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
      >>> still = gx.augment.Geometric(lambda key, shape: (), lambda params, shape: whole, "shift")
      >>> gx.augment.Resampling((still, still)).out_shape((8, 10, 3))
      (8, 10, 3)
    """

    ops: tuple[Geometric, ...]

    @property
    def dear(self) -> bool:  # type: ignore[override]
        """Whether pixels are looked up one by one."""
        return any(op.kind == "any" for op in self.ops)

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """As many images as keep the processor's cores busy."""
        if all(op.kind == "shift" for op in self.ops):
            return None
        return 1 if any(op.kind == "scale" for op in self.ops) else few(PIXELS_AT_ONCE)(shape, dtype)

    def moves_whole_pixels(self) -> bool:
        """Whether it only cuts out, or only mirrors: that it does with pixels (H, W, C) as they are."""
        if any(op.turns for op in self.ops):
            return False
        cuts = any(op.reach != (0, 0) or op.size is not None for op in self.ops)
        one_color = all(op.border is None or not isinstance(op.border.fill, (tuple, list)) for op in self.ops)
        shifts = all(op.kind == "shift" for op in self.ops)
        return shifts and one_color and not (cuts and any(any(op.mirrors) for op in self.ops))

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The parameters of each operation."""
        keys = jax.random.split(key, len(self.ops)) if len(self.ops) > 1 else [key]
        params = []
        for one, op in zip(keys, self.ops, strict=True):
            after = op.out_shape(shape)
            params.append(op.draw(one, shape))
            shape = after
        return tuple(params)

    def out_shape(self, shape: Shape) -> Shape:
        """The shape after all operations."""
        for op in self.ops:
            shape = op.out_shape(shape)
        return shape

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets, moved."""
        if not self.moves_whole_pixels():
            targets = targets | {"image": canvas_of(targets)}
        run = _Run(true_shape(targets), targets["image"].shape)
        for op, one in zip(self.ops, params, strict=True):
            if not run.takes(op):
                targets = run.done(targets)
                run = _Run(run.shape, run.room)
            if op.choose is not None:
                one, targets = op.choose(one, targets)
            run.add(op, op.place(one, run.shape))
        return run.done(targets)


class _Run:
    """Operations that are one resampling.

    Attributes:
      shape: of what they give; its height and width are arrays () where it is padded.
      room: the shape of the arrays that it is in.
    """

    def __init__(self, shape: Shape, room: Shape) -> None:
        self.shape, self.room = shape, room
        self._ops: list[Geometric] = []
        self._maps: list[Map] = []
        self._shrink = (1.0, 1.0)
        self._swaps: list[tuple[jax.Array, tuple[tuple[int, int], ...]]] = []
        self._reach = (0, 0)

    def takes(self, op: Geometric) -> bool:
        """Whether one more fits: what comes of all at once is what comes of one after the other."""
        if not self._ops:
            return True
        ops = [*self._ops, op]
        kinds = {one.kind for one in ops}
        if op.choose is not None or (
            op.frames and not all(one.kind == "shift" and one.size is None for one in self._ops)
        ):
            return False
        # What is between a frame and what has none would have a part of the border's colour.
        if (op.kind == "scale" and self._reach != (0, 0)) or (
            self._reached(op) != (0, 0) and any(one.kind == "scale" for one in self._ops)
        ):
            return False
        if "any" in kinds:
            return max(self._shrunk(op)) <= 1
        # Rows and columns are exchanged last, and mirror images after that are mirrored before.
        return not any(one.turns for one in self._ops) or (op.kind == "shift" and (op.turns or op.size is None))

    def add(self, op: Geometric, one: Map) -> None:
        """Takes an operation with its map."""
        reach = self._reached(op)
        self._reach = (self._reach[0] + reach[0], self._reach[1] + reach[1])
        self._shrink = self._shrunk(op)
        self.shape, self.room = op.out_shape(self.shape), op.out_shape(self.room)
        self._ops.append(op)
        self._maps.append(one)
        if op.joints and isinstance(one, Affine):
            self._swaps.append((jnp.asarray(one.xx * one.yy - one.xy * one.yx < 0), op.joints))

    def done(self, targets: Targets) -> Targets:
        """The targets, moved."""
        if "keypoints" in targets:
            for mirrored, joints in self._swaps:
                targets = targets | {"keypoints": _swapped(targets["keypoints"], mirrored, joints)}
        return move(targets, self._method(), composed(self._maps), self.shape[0], self.shape[1])

    def _reached(self, op: Geometric) -> tuple[int, int]:
        return op.reach(self.room) if callable(op.reach) else op.reach

    def _shrunk(self, op: Geometric) -> tuple[float, float]:
        if not op.antialias or op.interpolation == "nearest":
            return self._shrink
        # As far as the largest image shrinks.
        room = op.out_shape(self.room)
        down, across = (self.room[0] / room[0], self.room[1] / room[1]) if op.shrink is None else op.shrink(self.room)
        return self._shrink[0] * max(1.0, down), self._shrink[1] * max(1.0, across)

    def _method(self) -> Method:
        borders = [op.border for op in self._ops if op.border is not None]
        interpolations = [op.interpolation for op in self._ops if op.interpolation is not None]
        return Method(
            kind=max((op.kind for op in self._ops), key=KINDS.index),
            interpolation=interpolations[0] if interpolations else "nearest",
            border=borders[0] if borders else None,
            reach=self._reach,
            shrink=self._shrink,
            mirrors=(any(op.mirrors[0] for op in self._ops), any(op.mirrors[1] for op in self._ops)),
            fixed=all(op.fixed for op in self._ops),
            frames=any(op.frames and op.kind == "scale" for op in self._ops),
            turns=any(op.turns for op in self._ops),
        )


def true_shape(targets: Targets) -> Shape:
    """The shape of the image, whose height and width are arrays () where it is padded."""
    image = targets["image"]
    height, width, channels = image.shape
    size: Any = image.size if isinstance(image, Canvas) else targets.get("size")
    return (height, width, channels) if size is None else (size[0], size[1], channels)


def move(targets: Targets, method: Method, maps: list[Map], height: Any, width: Any) -> Targets:
    """The targets with all of them moved: the image, the mask by its nearest pixels, boxes and points by the inverse.

    Args:
      targets: of one image.
      method: how to resample the image.
      maps: from positions in the result to positions in the image.
      height: of the result; an array () where it stays in the corner of arrays as large as the image's.
      width: of the result.

    Returns:
      The targets.
    """
    image, (rows, columns, _) = targets["image"], true_shape(targets)
    size = jnp.stack([rows, columns]) if isinstance(rows, jax.Array) else None
    after = jnp.stack([height, width]) if isinstance(height, jax.Array) else None
    room: tuple[int, int] = image.shape[:2] if after is not None else (height, width)

    def pixels(array: PyTree, method: Method, fill: jax.Array | None = None) -> PyTree:
        if isinstance(array, Canvas):
            array = dataclasses.replace(array, size=None)
        if size is None:
            found = (
                resampled(array, method, maps, *room)
                if fill is None
                else nearest(array, method, maps, room[0], room[1], fill)
            )
        else:
            found = _padded(array, size, method, maps, room, after is not None, fill)
        if isinstance(found, Canvas):
            found = dataclasses.replace(found, size=after)
            return found if after is None else found.with_words(blanked(word, after) for word in found.words)
        return found if after is None else blanked(found, after)

    result = targets | {
        "image": pixels(image, method)
        if isinstance(image, Canvas)
        else pixels(image, method, _only_fill(image, method.border))
    }
    if "mask" in targets:
        fill = jnp.asarray(0 if method.border is None else method.border.mask_fill)
        result["mask"] = pixels(targets["mask"], method._replace(interpolation="nearest"), fill)
    if "keypoints" in targets:
        result["keypoints"] = moved(maps, targets["keypoints"])
    if "boxes" in targets:
        result["boxes"], left = moved_boxes(maps, targets["boxes"], height, width)
        result["visibility"] = targets["visibility"] * left
    if after is None:
        result.pop("size", None)
    return result


def _padded(
    array: PyTree,
    size: jax.Array,
    method: Method,
    maps: list[Map],
    room: tuple[int, int],
    stays: bool,
    fill: jax.Array | None,
) -> PyTree:
    """The pixels of an image of a true size in the corner of an array or a canvas."""
    if method.kind == "shift" and isinstance(array, Canvas):
        fills = word_fills(array, method.border)
        return array.with_words(
            _padded(word, size, method, maps, room, stays, one) for word, one in zip(array.words, fills, strict=True)
        )
    if method.kind != "shift":
        smooth = fill is None and method.interpolation != "nearest"
        mode = (
            "constant"
            if method.border is None and smooth
            else "edge"
            if method.border is None
            else (method.border.mode)
        )
        if not (smooth and method.kind == "scale"):
            method = method._replace(kind="any")
        maps = [Rim(size, mode, not smooth), *maps]
        return (
            resampled(array, method, maps, *room)
            if fill is None
            else nearest(array, method, maps, room[0], room[1], fill)
        )
    (one,) = maps
    assert isinstance(one, Affine) and fill is not None
    down, across = method.reach
    if down or across:
        array = framed(array, method.border, fill, method.reach, size)
    one = one._replace(x0=one.x0 + across, y0=one.y0 + down)
    if stays:
        # The array, or its mirror image, moved so far that the first pixel of the result is in its corner.
        for axis, (scale, start) in enumerate(((one.yy, one.y0), (one.xx, one.x0))):
            if method.mirrors[axis] or method.reach[axis]:
                first = jnp.round(jnp.asarray(start)).astype(jnp.int32)
                if method.mirrors[axis]:
                    first = jnp.where(scale < 0, array.shape[axis] - first, first)
                    array = jnp.where(scale < 0, jnp.flip(array, axis), array)
                array = jnp.roll(array, -first, axis)
        return array[: room[0], : room[1]]
    return nearest(array, method._replace(reach=(0, 0)), [one], room[0], room[1], fill)


def _swapped(points: jax.Array, mirrored: jax.Array, joints: tuple[tuple[int, int], ...]) -> jax.Array:
    """Points (..., N, 2 or more) with those of each pair in each other's place, where mirrored."""
    order = list(range(points.shape[-2]))
    for one, other in joints:
        if max(one, other) >= len(order):
            raise ValueError(
                f"joints: expected numbers of points below {len(order)}, of which there are as many, got {(one, other)}"
            )
        order[one], order[other] = order[other], order[one]
    return jnp.where(mirrored, points[..., jnp.array(order), :], points)


def _only_fill(image: jax.Array, border: Border | None) -> jax.Array:
    """The colour of all channels."""
    (fill,), white = colors(0.0 if border is None else border.fill, 1, False), white_of(image.dtype)
    return (fill if white == 1 else jnp.round(fill * white)).astype(image.dtype)
