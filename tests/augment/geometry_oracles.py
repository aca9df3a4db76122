"""Geometry in float64 NumPy, each written from its formula, and photographs to try it on.

Positions are (x, y) in pixels from the top-left corner; the pixel of row i and column j has its centre at
(j + 0.5, i + 0.5). A map is a function from positions in the result to positions in the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect"}
"""Our borders as ``np.pad`` names them."""
SCIPY = {"edge": "nearest", "reflect": "mirror"}
"""Our borders as SciPy names them."""

Map = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@functools.cache
def photo(height: int, width: int, which: int = 0) -> np.ndarray:
    """A real photograph, uint8, at another size."""
    image = Image.fromarray(load_sample_images().images[which])
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def noise(height: int, width: int, channels: int, dtype: Any = np.uint8, seed: int = 0) -> Any:
    """An image of independent pixels, black and white among them."""
    levels = np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)
    return levels if dtype == np.uint8 else jax.numpy.asarray(levels.astype(np.float32) / 255, dtype)


def smooth(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A float32 image in [0, 1] of a few slow waves."""
    random = np.random.RandomState(seed)
    y, x = centers(height, width)[::-1]
    waves = [
        sum(np.cos(2 * np.pi * (a * x / width + b * y / height + c)) for a, b, c in random.uniform(-1.5, 1.5, (4, 3)))
        for _ in range(channels)
    ]
    return np.float32(0.5 + np.stack(waves, -1) / 8)


def rgb(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def back(image: Image.Image) -> np.ndarray:
    """The array (H, W, C) of a Pillow image."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


# Positions.


def centers(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of all pixels, each (height, width)."""
    y, x = np.mgrid[:height, :width] + 0.5
    return x, y


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def affine(
    shape: tuple[int, ...],
    *,
    degrees: float = 0,
    down: float = 0,
    right: float = 0,
    scale: float = 1,
    shear_x: float = 0,
    shear_y: float = 0,
) -> np.ndarray:
    """The 3 x 3 matrix from the result to the image.

    About the middle of the image: what is done to it last, the shift, is undone first, then the rotation and the scale,
    then the shears.
    """
    angle = np.deg2rad(np.float64(degrees))
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    sheared = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]], np.float64)
    x, y = shape[1] / 2, shape[0] / 2
    return (
        translation(x, y)
        @ sheared
        @ np.diag([1 / scale, 1 / scale, 1])
        @ turned
        @ translation(-x, -y)
        @ translation(-right, -down)
    )


def placed(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix's map of positions."""
    return (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2], matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2])


def elastic_field(noise: Any, shape: tuple[int, ...], alpha: float, sigma: float) -> np.ndarray:
    """The displacement (2, H, W) that noise makes, given at points ``floor(sigma / 2)`` apart (at least 1).

    The points begin as many steps before the image as cover three standard deviations. A point counts as much as the
    independent noise of all its pixels, so that the variance is that of noise at each pixel.
    """
    step = max(1, int(sigma // 2))
    beyond = int(np.ceil(3 * sigma / step)) * step
    result = np.asarray(noise, np.float64)
    for axis, size in ((1, shape[0]), (2, shape[1])):
        points = np.arange(-beyond, size + beyond, step)
        distance = np.arange(size)[:, None] - points
        weights = np.exp(-(distance**2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2) * np.sqrt(step)
        weights[np.abs(distance) > 3 * sigma + step] = 0
        result = np.moveaxis(np.tensordot(result, weights, ((axis,), (1,))), -1, axis)
    return alpha * result


def field_at(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A field (H, W), given at the centres of pixels, bilinearly at positions; beyond its rim as on it."""
    return bilinear(field[..., None], x, y, "edge")[..., 0]


# Pixels at positions.


def inward(index: np.ndarray, size: int, border: str) -> np.ndarray:
    """Which pixel stands for one beyond the rim."""
    if border == "reflect":
        return np.pad(np.arange(size), 4 * size, mode="reflect")[np.clip(index, -4 * size, 5 * size - 1) + 4 * size]
    return np.clip(index, 0, size - 1)


def nearest(image: np.ndarray, x: np.ndarray, y: np.ndarray, border: str = "constant", fill: Any = 0) -> np.ndarray:
    rows, columns = image.shape[:2]
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    result = image[inward(row, rows, border), inward(column, columns, border)]
    outside = (row < 0) | (row >= rows) | (column < 0) | (column >= columns)
    if border == "constant":
        result = np.where(outside.reshape(outside.shape + (1,) * (image.ndim - 2)), fill, result)
    return result.astype(image.dtype)


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray, border: str = "constant", fill: Any = 0) -> np.ndarray:
    """In float64, not rounded; the fill only where the position itself is outside, as in Pillow."""
    rows, columns = image.shape[:2]
    image = np.asarray(image, np.float64)
    left, top = np.floor(x - 0.5).astype(int), np.floor(y - 0.5).astype(int)
    fx, fy = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    at = lambda down, across: image[inward(top + down, rows, border), inward(left + across, columns, border)]  # noqa: E731
    result = (at(0, 0) * (1 - fx) + at(0, 1) * fx) * (1 - fy) + (at(1, 0) * (1 - fx) + at(1, 1) * fx) * fy
    outside = (x < 0) | (x >= columns) | (y < 0) | (y >= rows)
    return np.where(outside[..., None], fill, result) if border == "constant" else result


def triangle(size: int, result: int, start: float, length: float, antialias: bool = True) -> np.ndarray:
    """(result, size): the weights of the pixels of an axis for a window of it at another size, without what is outside.

    They fall linearly to 0 over one pixel of the coarser of the two grids, or of the image's without ``antialias``.
    """
    scale = length / result
    support = max(scale, 1.0) if antialias else 1.0
    distance = np.arange(size) + 0.5 - (start + (np.arange(result)[:, None] + 0.5) * scale)
    weights = np.maximum(1 - np.abs(distance) / support, 0)
    return weights / weights.sum(1, keepdims=True)


def resized(
    image: np.ndarray,
    size: tuple[int, int],
    window: tuple[float, float, float, float] | None = None,
    antialias: bool = True,
) -> np.ndarray:
    """A window (top, left, height, width) of an image at another size, in float64."""
    rows, columns = image.shape[:2]
    top, left, height, width = window or (0, 0, rows, columns)
    down = triangle(rows, size[0], top, height, antialias)
    across = triangle(columns, size[1], left, width, antialias)
    return np.einsum("iy,yxc,jx->ijc", down, np.asarray(image, np.float64), across)


# Programs.


def count(program: Any, name: str) -> int:
    """How many operations of a name a jaxpr has, those in its inner ones too, but not those of kernels."""
    return len(result_shapes(program, name))


def result_shapes(program: Any, name: str) -> list[tuple[int, ...]]:
    """The shapes of what the operations of a name in a jaxpr return, those in its inner ones too.

    Those of kernels are left out: they are of registers.
    """
    shapes = []
    for equation in program.eqns:
        if equation.primitive.name == "pallas_call":
            continue
        if equation.primitive.name == name:
            shapes.append(equation.outvars[0].aval.shape)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            shapes += result_shapes(inner, name) if hasattr(inner, "eqns") else []
    return shapes
