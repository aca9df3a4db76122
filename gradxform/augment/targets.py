"""What augmentations take: an image or a batch of them, alone or in a dict with what is known of them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.augment.geometry.borders import blanked
from gradxform.augment.geometry.boxes import FORMATS, from_xyxy, to_xyxy
from gradxform.augment.pixels.canvas import white_of
from gradxform.augment.ranges import needs_unit
from gradxform.augment.sequence import Built
from gradxform.augment.stage import Targets
from gradxform.core import checks
from gradxform.core.types import PyTree, Size

DTYPES = ("uint8", "uint16", "float32", "bfloat16", "float16")
NAMES = ("image", "mask", "boxes", "visibility", "keypoints", "label", "size")
LEFT_BEHIND = {
    "images": "image",
    "masks": "mask",
    "box": "boxes",
    "bbox": "boxes",
    "bboxes": "boxes",
    "keypoint": "keypoints",
    "sizes": "size",
}
"""Names that are not known, and would pass untouched where their owner means them to move."""
SLACK = 0.5
"""By so many pixels a box may lie outside of its image, as rounded numbers of boxes on the rim do; it is cut."""
LEAST_SIDE = {1: 16, 3: 8}
"""An image of 1 or 3 rows with so many columns and so many channels is taken for one whose channels come first."""
ROUNDING = 1e-5
"""By so much floats may lie outside of [0, 1]; four of their last bits where those are more."""


@dataclasses.dataclass(frozen=True)
class Given:
    """Checked inputs, and how a result is given the same form.

    Attributes:
      arrays: what stages move, by name, with boxes as x1, y1, x2, y2 in pixels.
      names: of everything in the dict, in order; None where an image was given without one.
      others: what stages do not know, which passes untouched.
      layout: the format of the boxes.
    """

    arrays: Targets
    names: tuple[object, ...] | None
    others: dict[object, object]
    layout: str

    @classmethod
    def of(cls, inputs: PyTree, layout: str, stage: Built) -> Given:
        """What was given, checked as far as it is known before the program runs.

        Raises:
          TypeError: an array is of the wrong type.
          ValueError: a shape or a number is out of range, or the dict lacks an image.
        """
        checks.choice("boxes", layout, FORMATS)
        if not isinstance(inputs, dict):
            given = cls({"image": inputs}, None, {}, layout)
        else:
            arrays = {name: inputs[name] for name in NAMES if name in inputs}
            given = cls(arrays, tuple(inputs), {k: v for k, v in inputs.items() if k not in NAMES}, layout)
        for name in given.others:
            if name in LEFT_BEHIND:
                raise ValueError(f"inputs: expected {LEFT_BEHIND[name]!r}, got {name!r}, which would pass untouched")
        if "image" not in given.arrays:
            raise ValueError(
                f"inputs: expected a dict with 'image', got {', '.join(map(repr, inputs)) or 'an empty one'}"
            )
        _check_types(given.arrays)
        if layout != "xyxy" and "boxes" in given.arrays:
            boxes = to_xyxy(jnp.asarray(given.arrays["boxes"], jnp.float32), layout, *_sides(given.arrays, 1))
            given = dataclasses.replace(given, arrays=given.arrays | {"boxes": boxes})
        _check_numbers(given.arrays, layout, stage)
        return given

    def back(self, result: PyTree) -> PyTree:
        """What stages made of the arrays, in the form of the inputs."""
        if isinstance(result, tuple):
            return tuple(self.back(one) for one in result)
        if self.names is None:
            return result["image"]
        if self.layout != "xyxy" and "boxes" in result:
            result = result | {"boxes": from_xyxy(result["boxes"], self.layout, *_sides(result, 1))}
        found = result | self.others
        return {name: found[name] for name in self.names}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The arrays of inputs as stages take them.

    Attributes:
      arrays: by name.
      names: of those that are given back.
    """

    arrays: Targets
    names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the image or images, as arrays."""
        return tuple(self.arrays["image"].shape)

    @property
    def drawn_for(self) -> tuple[Size, ...]:
        """The shape that parameters are drawn for: with the true heights and widths where arrays are padded."""
        if "size" not in self.arrays:
            return self.shape
        size = self.arrays["size"]
        return (*self.shape[:-3], size[..., 0], size[..., 1], self.shape[-1])

    def restored(self, result: PyTree) -> PyTree:
        """What stages made of the targets, by the names of the inputs."""
        if isinstance(result, tuple):
            return tuple(self.restored(one) for one in result)
        if "size" in self.names and "size" not in result:
            # Nothing is padded any more.
            shape = result["image"].shape
            result = result | {"size": jnp.broadcast_to(jnp.array(shape[-3:-1], jnp.int32), (*shape[:-3], 2))}
        return {name: result[name] for name in self.names}


def prepared(given: Targets) -> Prepared:
    """The targets of checked arrays: boxes cut to their image, in sight as a whole, and black beyond true sizes."""
    names, arrays = tuple(given), {name: jnp.asarray(x) for name, x in given.items()}
    image = arrays["image"]
    if "size" in arrays:
        size = arrays["size"] = jnp.clip(arrays["size"].astype(jnp.int32), 1, jnp.array(image.shape[-3:-1]))
        arrays |= {name: blanked(arrays[name], size) for name in ("image", "mask") if name in arrays}
    if "keypoints" in arrays:
        arrays["keypoints"] = arrays["keypoints"].astype(jnp.float32)
    if "boxes" in arrays:
        height, width = _sides(arrays, 1)
        boxes = arrays["boxes"].astype(jnp.float32)
        low = jnp.stack([jnp.clip(boxes[..., i], 0, side) for i, side in enumerate((width, height))], -1)
        high = jnp.stack([jnp.clip(boxes[..., 2 + i], 0, side) for i, side in enumerate((width, height))], -1)
        arrays["boxes"] = jnp.concatenate([low, jnp.maximum(low, high)], -1)
        arrays["visibility"] = (
            arrays["visibility"].astype(jnp.float32)
            if "visibility" in arrays
            else jnp.ones(boxes.shape[:-1], jnp.float32)
        )
    return Prepared(arrays, names)


def shape_of(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape of an image or a batch.

    Raises:
      ValueError: it is that of neither, or something in it is 0.
    """
    if (
        not isinstance(shape, (tuple, list))
        or len(shape) not in (3, 4)
        or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in shape)
    ):
        raise ValueError(f"shape: expected (H, W, C) or (B, H, W, C), none of them 0, got {shape!r}")
    return tuple(int(size) for size in shape)


def sizes_of(size: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """True heights and widths of images in arrays of a shape.

    Raises:
      TypeError: they are no integers.
      ValueError: they are of another shape, or out of range.
    """
    _check_size(size, shape)
    return jnp.clip(jnp.asarray(size, jnp.int32), 1, jnp.array(shape[-3:-1]))


def _sides(arrays: Targets, axes: int) -> tuple[Size, Size]:
    """Height and width of the image, or of each of a batch, with so many axes of 1 behind."""
    if "size" not in arrays:
        return arrays["image"].shape[-3], arrays["image"].shape[-2]
    size = arrays["size"]
    height, width = (size[..., i].reshape(size.shape[:-1] + (1,) * axes) for i in (0, 1))
    return height, width


def _check_types(arrays: Targets) -> None:
    """Refuses arrays of wrong types and shapes."""
    image = arrays["image"]
    dtype = getattr(image, "dtype", None)
    if dtype is None or str(dtype) not in DTYPES:
        raise TypeError(
            f"image: expected an array of dtype {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got "
            f"{type(image).__name__ if dtype is None else f'dtype {dtype}'}"
        )
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(f"image: expected shape (H, W, C) or (B, H, W, C), none of them 0, got {image.shape}")
    channels, *sides = image.shape[-3:]  # as they would be; a size that is exported as a symbol says nothing
    if all(isinstance(n, int) for n in (channels, *sides)) and min(sides) >= LEAST_SIDE.get(channels, math.inf):
        warnings.warn(
            f"image: expected channels last, (H, W, C) or (B, H, W, C), got {image.shape}, as if they came "
            f"first: jnp.moveaxis(image, -3, -1) puts them there",
            stacklevel=4,
        )
    batch = image.shape[:-3]
    front = ", ".join(map(str, batch)) + (", " if batch else "")
    for name, x in arrays.items():
        _check_type(name, x)
    if "mask" in arrays:
        mask = arrays["mask"]
        if mask.shape[: image.ndim - 1] != image.shape[:-1] or mask.ndim > image.ndim:
            raise ValueError(f"mask: expected shape {image.shape[:-1]}, or that with channels behind, got {mask.shape}")
    if "boxes" in arrays:
        boxes = arrays["boxes"]
        if boxes.ndim != len(batch) + 2 or boxes.shape[:-2] != batch or boxes.shape[-1] != 4:
            raise ValueError(f"boxes: expected shape ({front}N, 4), got {boxes.shape}")
    if "visibility" in arrays:
        wanted = arrays["boxes"].shape[:-1] if "boxes" in arrays else None
        if arrays["visibility"].shape != wanted:
            raise ValueError(
                f"visibility: expected a number for each of 'boxes', "
                f"{'shape ' + str(wanted) if wanted else 'which there are none'}, got shape "
                f"{arrays['visibility'].shape}"
            )
    if "keypoints" in arrays:
        points = arrays["keypoints"]
        if points.ndim < len(batch) + 2 or points.shape[: len(batch)] != batch or points.shape[-1] < 2:
            raise ValueError(f"keypoints: expected shape ({front}..., N, 2 or more), x and y first, got {points.shape}")
    if "label" in arrays and np.shape(arrays["label"])[: len(batch)] != batch:
        raise ValueError(f"label: expected one for each of {batch[0]} images, got shape {np.shape(arrays['label'])}")
    if "size" in arrays:
        _check_size(arrays["size"], image.shape)


def _check_type(name: str, x: object) -> None:
    dtype = getattr(x, "dtype", None)
    if dtype is None and name == "label" and isinstance(x, (int, float)):
        return
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(
            f"{name}: expected an array of numbers, got {type(x).__name__ if dtype is None else f'dtype {dtype}'}"
        )


def _check_size(size: Any, shape: tuple[int, ...]) -> None:
    dtype = getattr(size, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"size: expected an array of integers, height and width, got "
            f"{type(size).__name__ if dtype is None else f'dtype {dtype}'}"
        )
    if size.shape != (*shape[:-3], 2):
        raise ValueError(f"size: expected shape {(*shape[:-3], 2)}, height and width of each image, got {size.shape}")
    if _concrete(size):
        size = np.asarray(size).reshape(-1, 2)
        fits = ((size >= 1) & (size <= np.array(shape[-3:-1]))).all(-1)
        if not fits.all():
            raise ValueError(
                f"size: expected heights from 1 to {shape[-3]} and widths from 1 to {shape[-2]}, got "
                f"{size[~fits][0].tolist()}"
            )


def _check_numbers(arrays: Targets, layout: str, stage: Built) -> None:
    """Refuses numbers out of range, as far as they are known before the program runs."""
    image = arrays["image"]
    if "size" in arrays and _concrete(arrays["size"]):
        # The smallest of them has to do, for what takes images of several sizes at all.
        height, width = np.asarray(arrays["size"]).reshape(-1, 2).min(0).tolist()
        stage.out_shape((jnp.int32(height), jnp.int32(width), image.shape[-1]))
        stage.out_shape((height, width, image.shape[-1]))
    if _concrete(image) and _concrete(arrays.get("size")) and white_of(image.dtype) == 1 and (needs_unit(stage)):
        values = np.asarray(image, np.float32)
        if "size" in arrays:
            # Whatever stands beyond a true size is not looked at.
            size = np.asarray(arrays["size"])[..., None, None]
            inside = (np.arange(image.shape[-3])[:, None] < size[..., 0, :, :]) & (
                np.arange(image.shape[-2]) < size[..., 1, :, :]
            )
            values = np.where(inside[..., None], values, 0)
        low, high = float(values.min()), float(values.max())
        slack = max(ROUNDING, 4 * float(jnp.finfo(image.dtype).eps))
        if not (low >= -slack and high <= 1 + slack):
            raise ValueError(
                f"image: expected floats in [0, 1] for a change of colours, got a range of [{low:.9g}, "
                f"{high:.9g}]; give images of 8 and 16 bits as uint8 and uint16, and normalize last"
            )
    if "boxes" in arrays and _concrete(arrays["boxes"]) and _concrete(arrays.get("size")):
        _check_boxes(np.asarray(arrays["boxes"], np.float64), *_sides(arrays, 1), layout)


def _check_boxes(boxes: np.ndarray, height: Any, width: Any, layout: str) -> None:
    if not boxes.size:
        return
    height, width = (np.broadcast_to(np.asarray(side, np.int64), boxes.shape[:-1]) for side in (height, width))
    bounds = np.stack([width, height, width, height], -1)
    fine = ((boxes >= -SLACK) & (boxes <= bounds + SLACK)).all(-1) & (boxes[..., 2:] >= boxes[..., :2] - SLACK).all(-1)
    if not fine.all():
        box, (wide, high) = boxes[~fine][0], bounds[~fine][0][:2]
        found = "" if layout == "xyxy" else f", from {layout!r},"
        raise ValueError(
            f"boxes: expected 0 <= x1 <= x2 <= {wide} and 0 <= y1 <= y2 <= {high} in pixels, but for half "
            f"a pixel, as x1, y1, x2, y2{found} got {box.tolist()}; boxes= names another format, one of "
            f"{', '.join(FORMATS)}"
        )
    if layout == "xyxy" and boxes.max() <= 1 < min(height.min(), width.min()) and (boxes % 1).any():
        warnings.warn(
            "boxes: expected pixels, got nothing above 1, as if in shares of the image: those are boxes='rel_xyxy'",
            stacklevel=5,
        )


def _concrete(x: object) -> bool:
    return not isinstance(x, jax.core.Tracer)
