"""What changes of colour and tone are held against: Pillow for 8 bits, NumPy in float64 for floats."""

from __future__ import annotations

import colorsys
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from gradxform.augment.pixels import color, filters, histogram, tone
from gradxform.augment.pixels.canvas import Canvas

KERNELS: dict[str, Any] = {
    "grayscale": color.grayscale,
    "brightness": color.brightness,
    "contrast": color.contrast,
    "saturation": color.saturation,
    "hue": color.adjust_hue,
    "invert": tone.invert,
    "posterize": tone.posterize,
    "solarize": tone.solarize,
    "solarize_add": tone.solarize_add,
    "equalize": histogram.equalize,
    "autocontrast": histogram.autocontrast,
    "sharpness": filters.sharpness,
}
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}

# What the policies ask for: 31 bins, their mirror image, ten levels one-sided and two-sided, and beyond.
FACTORS = np.unique(
    np.concatenate(
        [
            1 + np.linspace(0, 0.9, 31),
            1 - np.linspace(0, 0.9, 31),
            1.8 * np.arange(11) / 10 + 0.1,
            1 + 0.9 * np.arange(11) / 10,
            1 - 0.9 * np.arange(11) / 10,
            np.random.default_rng(0).uniform(0, 3, 12),
            [0, 3.7],
        ]
    ).astype(np.float32)
)
SHIFTS = np.concatenate([np.linspace(-0.5, 0.5, 21), np.random.default_rng(1).uniform(-0.5, 0.5, 12)]).astype(
    np.float32
)
THRESHOLDS = np.unique(
    np.concatenate(
        [255 * (1 - np.arange(31) / 30), 256 - (25.6 * np.arange(11)).astype(int), (25.6 * np.arange(11)).astype(int)]
    ).astype(np.float32)
)


@functools.cache
def photograph(name: str, height: int, width: int) -> np.ndarray:
    """One of two photographs at a size, uint8."""
    return np.asarray(Image.fromarray(load_sample_image(name)).resize((width, height)))


def made_up() -> dict[str, np.ndarray]:
    """Images with nothing in common with a photograph, all (32, 32, 3)."""
    rng = np.random.default_rng(2)
    ramp = np.arange(1024).reshape(32, 32, 1)
    return {
        "noise": rng.integers(0, 256, (32, 32, 3), np.uint8),
        "black": np.zeros((32, 32, 3), np.uint8),
        "white": np.full((32, 32, 3), 255, np.uint8),
        "one colour": np.full((32, 32, 3), (17, 200, 94), np.uint8),
        "two levels": (ramp % 2 * np.array([255, 1, 40]) + np.array([0, 7, 90])).astype(np.uint8),
        "one pixel of another": np.where(ramp == 500, 200, 30).astype(np.uint8).repeat(3, 2),
        "ramps": np.concatenate([ramp // 4, 255 - ramp // 4, ramp // 16 + 60], 2).astype(np.uint8),
        "dark": np.minimum(rng.geometric(0.2, (32, 32, 3)), 255).astype(np.uint8),
    }


SIZES = [(32, 32), (57, 91), (224, 224)]
IMAGES: dict[str, np.ndarray] = {
    f"{name} {height}x{width}": photograph(f"{name}.jpg", height, width)
    for name in ("china", "flower")
    for height, width in SIZES
} | made_up()
GRAY = {
    f"gray {name}": np.asarray(Image.fromarray(image).convert("L"))[..., None]
    for name, image in IMAGES.items()
    if image.shape[0] != 224
}


@functools.cache
def compiled(name: str) -> Any:
    """A kernel for an image, with one result for each row of numbers."""

    def one(image: jax.Array, numbers: tuple[Any, ...]) -> jax.Array:
        canvas = Canvas.of(image)
        return canvas.with_planes(KERNELS[name](canvas.planes(), *numbers)).image()

    return jax.jit(lambda image, *numbers: lax.map(lambda row: one(image, row), numbers) if numbers else one(image, ()))


def ours(name: str, image: np.ndarray, *numbers: Any) -> np.ndarray:
    """The image, or the images for several numbers, by one of the ``KERNELS``."""
    return np.asarray(compiled(name)(jnp.asarray(image), *map(jnp.asarray, numbers)))


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    array = np.asarray(image).reshape(image.height, image.width, -1)
    return array if array.shape[2] == channels else np.repeat(array, channels, 2)


def pillow(name: str, image: np.ndarray, number: Any = None) -> np.ndarray:
    """The image by Pillow."""
    old, channels = to_pillow(image), image.shape[2]
    if name in ENHANCERS:
        new = ENHANCERS[name](old).enhance(float(number))
    elif name == "grayscale":
        new = old.convert("L")
    elif name == "hue":
        new = old if channels == 1 else _hue_shifted(old, number)
    elif name == "posterize":
        # Of no bits Pillow made black before it came to refuse them.
        new = ImageOps.posterize(old, int(number)) if number else old.point(lambda _: 0)
    elif name == "solarize":
        new = ImageOps.solarize(old, float(number))
    else:
        new = getattr(ImageOps, name)(old)
    return from_pillow(new, channels)


def _hue_shifted(image: Image.Image, shift: Any) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(int) + int(np.float32(shift) * np.float32(255))) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")


def luma(x: np.ndarray) -> np.ndarray:
    return x if x.shape[2] == 1 else (x @ np.array([0.299, 0.587, 0.114]))[..., None]


def expected(name: str, x: np.ndarray, number: Any = None) -> np.ndarray:
    """What a float image becomes, by the formulas in float64."""
    x = np.asarray(x, np.float64)
    number = None if number is None else float(number)
    if name in ("brightness", "contrast", "saturation", "sharpness"):
        away = {
            "brightness": lambda: 0.0 * x,
            "contrast": lambda: luma(x).mean() + 0 * x,
            "saturation": lambda: luma(x) + 0 * x,
            "sharpness": lambda: _smoothed(x),
        }[name]()
        return np.clip(away + number * (x - away), 0, 1)
    if name == "grayscale":
        return luma(x) + 0 * x
    if name == "hue":
        return x if x.shape[2] == 1 else np.apply_along_axis(_turned, 2, x, number)
    if name == "invert":
        return 1 - x
    if name == "autocontrast":
        low, high = x.min((0, 1)), x.max((0, 1))
        return np.where(high > low, (x - low) / np.where(high > low, high - low, 1), x)
    raise ValueError(name)


def _turned(rgb: np.ndarray, turns: float) -> np.ndarray:
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    return np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))


def _smoothed(x: np.ndarray) -> np.ndarray:
    result = x.copy()
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            result[i, j] = (x[i - 1 : i + 2, j - 1 : j + 2].sum((0, 1)) + 4 * x[i, j]) / 13
    return result


def solarize_added(image: np.ndarray, addition: int, threshold: int) -> np.ndarray:
    """As the table of levels that policies give to Pillow's ``point``."""
    table = [min(255, i + addition) if i < threshold else i for i in range(256)]
    old = to_pillow(image)
    return from_pillow(old.point(table * image.shape[2]), image.shape[2])
