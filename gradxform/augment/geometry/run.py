"""Geometric operations, and a run of them as one resampling that moves masks, boxes and points along."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradxform.augment.geometry.borders import Border, colors
from gradxform.augment.geometry.placement import Map, composed, moved, moved_boxes
from gradxform.augment.geometry.resample import Method, nearest, resampled
from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.stage import Shape, Stage, Targets, canvas_of, few

KINDS = ("shift", "scale", "any")
PIXELS_AT_ONCE = 1 << 18
"""Where each pixel is looked up by itself."""


@dataclasses.dataclass(frozen=True)
class Geometric:
    """One operation: parameters, and the map from positions in its result to positions in its input.

    Attributes:
      draw: the parameters from a key and a shape.
      place: the map from the parameters and the shape of the input.
      kind: of the map, one of ``KINDS``.
      size: height and width of the result from the shape of the input; None where they stay.
      border: what lies beyond the rim; None where nothing of it is asked for.
      interpolation: how to find what lies between pixels; None where nothing does.
      reach: how far beyond the rim it goes at most, in pixels down and across.
      antialias: whether a result smaller than its source is smoothed.
      mirrors: whether it may mirror, down and across.
      fixed: whether nearest pixels are those of Pillow's arithmetic, for which no number of the map is above 1 but
        the shift.
    """

    draw: Callable[[jax.Array, Shape], Any]
    place: Callable[[Any, Shape], Map]
    kind: str = "any"
    size: Callable[[Shape], tuple[int, int]] | None = None
    border: Border | None = None
    interpolation: str | None = None
    reach: tuple[int, int] = (0, 0)
    antialias: bool = False
    mirrors: tuple[bool, bool] = (False, False)
    fixed: bool = False

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of the result."""
        return shape if self.size is None else (*self.size(shape), shape[2])

    def fits(self, other: Geometric) -> bool:
        """Whether one resampling can do both: they ask the same of borders and of what lies between pixels."""
        borders = self.border is None or other.border is None or self.border.same(other.border)
        ways = {self.interpolation, other.interpolation} - {None}
        return borders and len(ways) < 2


@dataclasses.dataclass(frozen=True)
class Resampling(Stage):
    """A run of geometric operations: one pass over the image."""

    ops: tuple[Geometric, ...]

    @property
    def dear(self) -> bool:  # type: ignore[override]
        """Whether pixels are looked up one by one."""
        return any(op.kind == "any" for op in self.ops)

    def images(self, shape: Shape, dtype: Any) -> int | None:
        """As many images as keep the processor's cores busy."""
        if all(op.kind == "shift" for op in self.ops):
            return None
        return 1 if any(op.kind == "scale" for op in self.ops) else few(PIXELS_AT_ONCE)(shape, dtype)

    def moves_whole_pixels(self) -> bool:
        """Whether it only cuts out, or only mirrors: that it does with pixels (H, W, C) as they are."""
        cuts = any(any(op.reach) or op.size is not None for op in self.ops)
        one_color = all(op.border is None or not isinstance(op.border.fill, (tuple, list)) for op in self.ops)
        shifts = all(op.kind == "shift" for op in self.ops)
        return shifts and one_color and not (cuts and any(any(op.mirrors) for op in self.ops))

    def sample(self, key: jax.Array, shape: Shape) -> Any:
        """The parameters of each operation."""
        keys = jax.random.split(key, len(self.ops)) if len(self.ops) > 1 else [key]
        params = []
        for one, op in zip(keys, self.ops, strict=True):
            params.append(op.draw(one, shape))
            shape = op.out_shape(shape)
        return tuple(params)

    def out_shape(self, shape: Shape) -> Shape:
        """The shape after all operations."""
        for op in self.ops:
            shape = op.out_shape(shape)
        return shape

    def apply(self, params: Any, targets: Targets) -> Targets:
        """The targets, moved."""
        shape: Shape = targets["image"].shape
        if not self.moves_whole_pixels():
            targets = targets | {"image": canvas_of(targets)}
        run = _Run(shape)
        for op, one in zip(self.ops, params, strict=True):
            shape = op.out_shape(run.shape)
            if not run.takes(op, shape):
                targets = run.done(targets)
                run = _Run(run.shape)
            run.add(op, op.place(one, run.shape), shape)
        return run.done(targets)


class _Run:
    """Operations that are one resampling."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._ops: list[Geometric] = []
        self._maps: list[Map] = []
        self._shrink = (1.0, 1.0)

    def takes(self, op: Geometric, shape: Shape) -> bool:
        """Whether one more fits. Only along the axes can a smaller image be smoothed."""
        kinds = {one.kind for one in self._ops} | {op.kind}
        return not self._ops or "any" not in kinds or max(self._shrunk(op, shape)) <= 1

    def add(self, op: Geometric, one: Map, shape: Shape) -> None:
        """Takes an operation with its map and the shape of its result."""
        self._shrink, self.shape = self._shrunk(op, shape), shape
        self._ops.append(op)
        self._maps.append(one)

    def done(self, targets: Targets) -> Targets:
        """The targets, moved."""
        return move(targets, self._method(), composed(self._maps), self.shape[0], self.shape[1])

    def _shrunk(self, op: Geometric, shape: Shape) -> tuple[float, float]:
        if not op.antialias or op.interpolation == "nearest":
            return self._shrink
        return (self._shrink[0] * max(1.0, self.shape[0] / shape[0]),
                self._shrink[1] * max(1.0, self.shape[1] / shape[1]))

    def _method(self) -> Method:
        borders = [op.border for op in self._ops if op.border is not None]
        interpolations = [op.interpolation for op in self._ops if op.interpolation is not None]
        return Method(
            kind=max((op.kind for op in self._ops), key=KINDS.index),
            interpolation=interpolations[0] if interpolations else "nearest",
            border=borders[0] if borders else None,
            reach=(sum(op.reach[0] for op in self._ops), sum(op.reach[1] for op in self._ops)),
            shrink=self._shrink,
            mirrors=(any(op.mirrors[0] for op in self._ops), any(op.mirrors[1] for op in self._ops)),
            fixed=all(op.fixed for op in self._ops),
        )


def move(targets: Targets, method: Method, maps: list[Map], height: int, width: int) -> Targets:
    """The targets with all of them moved: the image, the mask by its nearest pixels, boxes and points by the inverse.

    Args:
      targets: of one image.
      method: how to resample the image.
      maps: from positions in the result to positions in the image.
      height: of the result.
      width: of the result.

    Returns:
      The targets.
    """
    image = targets["image"]
    result = targets | {"image": resampled(image, method, maps, height, width) if isinstance(image, Canvas)
                        else nearest(image, method, maps, height, width, _only_fill(image, method.border))}
    if "mask" in targets:
        fill = jnp.asarray(0 if method.border is None else method.border.mask_fill)
        result["mask"] = nearest(targets["mask"], method._replace(interpolation="nearest"), maps, height, width, fill)
    if "keypoints" in targets:
        result["keypoints"] = moved(maps, targets["keypoints"])
    if "boxes" in targets:
        result["boxes"] = moved_boxes(maps, targets["boxes"], height, width)
    return result


def _only_fill(image: jax.Array, border: Border | None) -> jax.Array:
    """The colour of all channels."""
    (fill,) = colors(0.0 if border is None else border.fill, 1, image.dtype == jnp.uint8)
    return fill.astype(image.dtype)
