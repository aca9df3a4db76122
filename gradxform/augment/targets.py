"""What augmentations take: an image or a batch of them, alone or in a dict with what is known of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("uint8", "float32", "bfloat16", "float16")
NAMES = ("image", "mask", "boxes", "keypoints", "label")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Checked inputs.

    Attributes:
      arrays: the arrays by name.
      alone: whether the image was given without a dict.
    """

    arrays: dict[str, Any]
    alone: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the image or images."""
        return tuple(self.arrays["image"].shape)

    def restored(self, result: Any) -> Any:
        """What stages made of the targets, in the form of the inputs."""
        if isinstance(result, tuple):
            return tuple(self.restored(one) for one in result)
        return result["image"] if self.alone else {name: result[name] for name in self.arrays}


def check(inputs: Any) -> None:
    """Refuses numbers out of range, as far as they are known before the program runs.

    Raises:
      TypeError: an array is of the wrong type.
      ValueError: a shape or a number is out of range.
    """
    arrays = prepared(inputs).arrays
    image = arrays["image"]
    if not _concrete(image):
        return
    if image.dtype != jnp.uint8 and image.size:
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"image: expected floats in [0, 1], got a range of [{low:g}, {high:g}]; give 8-bit images "
                             f"as uint8, and normalize last")
    boxes = arrays.get("boxes")
    if boxes is not None and _concrete(boxes) and boxes.size:
        boxes = np.asarray(boxes, np.float64)
        height, width = image.shape[-3:-1]
        inside = (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        if not inside or (boxes[..., 2:] < boxes[..., :2]).any():
            raise ValueError(f"boxes: expected 0 <= x1 <= x2 <= {width} and 0 <= y1 <= y2 <= {height} in pixels, as "
                             f"x1, y1, x2, y2, got {_first_bad(boxes, width, height)}")


def prepared(inputs: Any) -> Prepared:
    """Checked inputs; numbers are checked by ``check``.

    Raises:
      TypeError: an array is of the wrong type.
      ValueError: a shape is out of range, or a name is unknown.
    """
    alone = not isinstance(inputs, dict)
    arrays = {"image": inputs} if alone else dict(inputs)
    if "image" not in arrays:
        raise ValueError(f"inputs: expected a dict with 'image', got {', '.join(map(repr, arrays)) or 'an empty one'}")
    for name in arrays:
        if name not in NAMES:
            raise ValueError(f"inputs: expected {', '.join(map(repr, NAMES))}, got {name!r}")
    image = arrays["image"] = _image(arrays["image"])
    batch = image.shape[:-3]
    if "mask" in arrays:
        mask = arrays["mask"] = _array("mask", arrays["mask"])
        if mask.shape[:image.ndim - 1] != image.shape[:-1] or mask.ndim > image.ndim:
            raise ValueError(f"mask: expected shape {image.shape[:-1]}, or that with channels behind, got {mask.shape}")
    for name, last in (("boxes", 4), ("keypoints", 2)):
        if name in arrays:
            points = arrays[name] = _array(name, arrays[name])
            if points.ndim != len(batch) + 2 or points.shape[:-2] != batch or points.shape[-1] != last:
                expected = ", ".join([*map(str, batch), "N", str(last)])
                raise ValueError(f"{name}: expected shape ({expected}), got {points.shape}")
            arrays[name] = points.astype(jnp.float32)
    if "label" in arrays:
        label = arrays["label"] = _array("label", arrays["label"])
        if label.shape[:len(batch)] != batch:
            raise ValueError(f"label: expected one for each of {batch[0]} images, got shape {label.shape}")
    return Prepared(arrays, alone)


def shape_of(shape: Any) -> tuple[int, ...]:
    """The shape of an image or a batch.

    Raises:
      ValueError: it is that of neither, or something in it is 0.
    """
    if not isinstance(shape, (tuple, list)) or len(shape) not in (3, 4) or not all(
            isinstance(size, (int, np.integer)) and size >= 1 for size in shape):
        raise ValueError(f"shape: expected (H, W, C) or (B, H, W, C), none of them 0, got {shape!r}")
    return tuple(int(size) for size in shape)


def _image(image: Any) -> jax.Array:
    dtype = getattr(image, "dtype", None)
    if dtype is None or str(dtype) not in DTYPES:
        raise TypeError(f"image: expected an array of dtype {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got "
                        f"{type(image).__name__ if dtype is None else f'dtype {dtype}'}")
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(f"image: expected shape (H, W, C) or (B, H, W, C), none of them 0, got {image.shape}")
    return jnp.asarray(image)


def _array(name: str, x: Any) -> jax.Array:
    dtype = getattr(x, "dtype", None)
    if dtype is None and name == "label" and isinstance(x, (int, float)):
        return jnp.asarray(x)
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(f"{name}: expected an array of numbers, got "
                        f"{type(x).__name__ if dtype is None else f'dtype {dtype}'}")
    return jnp.asarray(x)


def _concrete(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def _first_bad(boxes: np.ndarray, width: int, height: int) -> list[float]:
    boxes = boxes.reshape(-1, 4)
    inside = ((boxes >= 0) & (boxes <= [width, height, width, height])).all(1)
    return boxes[~(inside & (boxes[:, 2:] >= boxes[:, :2]).all(1))][0].tolist()
