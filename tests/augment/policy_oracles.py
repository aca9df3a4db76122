"""What policies are held against: the numbers of the published codes, and Pillow for each operation.

A *policy* is here ``"torchvision"``, ``"timm"``, ``"google"`` (RandAugment), ``"trivial"`` (TrivialAugment),
``"aug_mix"`` or ``"learned"`` (AutoAugment).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from photometric_oracles import from_pillow, photograph, solarize_added, to_pillow
from PIL import Image, ImageEnhance, ImageOps

from gradxform.augment.geometry.borders import Border
from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.policies.operations import operation
from gradxform.augment.policies.presets import AUG_MIX, AUG_MIX_ALL, LEARNED, RAND_AUGMENT, TRIVIAL_AUGMENT, Preset

PRESETS: dict[str, Preset] = RAND_AUGMENT | {"trivial": TRIVIAL_AUGMENT, "aug_mix": AUG_MIX_ALL, "learned": LEARNED}
SIZES = [(32, 32), (57, 91), (224, 160)]
ENHANCE = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
SHIFTS = ("shear_x", "shear_y", "translate_x", "translate_y")
MOVES = ("rotate", *SHIFTS)
BARE = ("auto_contrast", "equalize", "invert", "identity")
OPERATIONS = {
    "torchvision": ("identity", *MOVES, *ENHANCE, "posterize", "solarize", "auto_contrast", "equalize"),
    "timm": ("auto_contrast", "equalize", "invert", *MOVES, "posterize", "solarize", "solarize_add", *ENHANCE),
    "google": (
        "auto_contrast",
        "equalize",
        "invert",
        *MOVES,
        "posterize",
        "solarize",
        "solarize_add",
        *ENHANCE,
        "cutout",
    ),
    "trivial": ("identity", *MOVES, *ENHANCE, "posterize", "solarize", "auto_contrast", "equalize"),
    "aug_mix": ("auto_contrast", "equalize", "posterize", "rotate", "solarize", *SHIFTS, *ENHANCE),
    "learned": ("identity", *MOVES, *ENHANCE, "posterize", "solarize", "auto_contrast", "equalize", "invert"),
}
MAGNITUDES: dict[str, list[float]] = {
    "torchvision": list(range(31)),
    "trivial": list(range(31)),
    "timm": list(range(11)),
    "google": list(range(11)),
    # Between two whole levels too, and none where a product of a level is a whole number that floats may miss.
    "aug_mix": [0.1, 0.37, *(1 + 0.5 * i for i in range(18)), 9.93, 10.0],
    "learned": list(range(10)),
}
INTERPOLATION = {
    "torchvision": "nearest",
    "timm": "bilinear",
    "google": "nearest",
    "trivial": "nearest",
    "aug_mix": "bilinear",
    "learned": "nearest",
}
GRAY_FILL = ("timm", "google")


def signed(size: float) -> list[float]:
    return [size, -size]


def published(policy: str, name: str, m: float, height: int, width: int) -> list[float]:
    """The number that the published code gives an operation for a magnitude, or both where a sign is random."""
    if name in BARE:
        return []
    if policy == "learned":
        policy, m = "torchvision", m * 30 / 9
    side = width if name.endswith("_x") else height
    if policy in ("torchvision", "trivial"):
        wide = policy == "trivial"

        def bins(start: float, stop: float) -> float:
            return start + (stop - start) * m / 30

        if name in SHIFTS[:2]:
            return signed(bins(0, 0.99 if wide else 0.3))
        if name in SHIFTS[2:]:
            return signed(int(bins(0, 32 if wide else 150 * side / 331)))
        if name == "rotate":
            return signed(bins(0, 135 if wide else 30))
        if name in ENHANCE:
            return [1 + d for d in signed(bins(0, 0.99 if wide else 0.9))]
        if name == "posterize":
            return [8 - round(m / (30 / (6 if wide else 4)))]
        return [bins(255, 0)]
    if name in SHIFTS[:2]:
        return signed(0.3 * m / 10)
    if name == "rotate":
        return signed(int(30 * m / 10) if policy == "aug_mix" else 30 * m / 10)
    if name == "posterize":
        return [int(4 * m / 10) if policy == "google" else 4 - int(4 * m / 10)]
    if name == "solarize":
        return [int(256 * m / 10) if policy == "google" else 256 - int(256 * m / 10)]
    if name == "solarize_add":
        return [min(128, int(110 * m / 10))]
    if name == "cutout":
        return [int(40 * m / 10)]
    if name in ENHANCE:
        return [max(0.1, 1 + d) for d in signed(0.9 * m / 10)] if policy == "timm" else [1.8 * m / 10 + 0.1]
    return signed({"timm": 0.45 * side * m / 10, "google": 100 * m / 10, "aug_mix": int(side * m / 30)}[policy])


def same_number(name: str, got: float, want: float) -> bool:
    """Whether two numbers of an operation do the same but for a rounding of floats."""
    if name == "solarize":
        return math.ceil(got) == math.ceil(want)  # all that counts for 8 bits
    if isinstance(want, int):
        return got == want
    return math.isclose(got, want, rel_tol=3e-6, abs_tol=1e-6)


def number_of(policy: str, name: str, m: float, sign: float, height: int, width: int) -> float:
    """The number that the library gives, with the arithmetic of its programs."""
    return float(_numbers(policy, m, sign, height, width)[entry(policy, name)])


@functools.cache
def _numbers(policy: str, m: float, sign: float, height: int, width: int) -> np.ndarray:
    if (policy, height, width) not in _COMPILED:
        preset = PRESETS[policy]
        _COMPILED[policy, height, width] = jax.jit(
            lambda m, sign: jnp.stack(
                [each.number(m / preset.levels, sign, (height, width, 3)) for each in preset.entries]
            )
        )
    return np.asarray(_COMPILED[policy, height, width](np.float32(m), np.float32(sign)))


_COMPILED: dict[Any, Any] = {}


def entry(policy: str, name: str) -> int:
    return [canonical(each.name) for each in PRESETS[policy].entries].index(name)


def canonical(name: str) -> str:
    """The name in ``OPERATIONS``: the library tells translations by whole pixels, shifts, from others."""
    return name.replace("shift_", "translate_")


def ours(
    name: str, interpolation: str, image: np.ndarray, number: float, place: Any = (0.5, 0.5), fill: float = 0.0
) -> np.ndarray:
    """An operation of the library, compiled once for each name and shape."""
    if (name, interpolation) not in _COMPILED:

        def run(image: jax.Array, number: jax.Array, place: jax.Array, fill: jax.Array) -> jax.Array:
            change = operation(name, interpolation, Border("constant", fill, 0))
            return change(number, place, {"image": Canvas.of(image)})["image"].image()

        _COMPILED[name, interpolation] = jax.jit(run)
    return np.asarray(_COMPILED[name, interpolation](image, np.float32(number), np.float32(place), np.float32(fill)))


def pillow(
    name: str, interpolation: str, image: np.ndarray, number: float, place: Any = (0.5, 0.5), fill: float = 0.0
) -> np.ndarray:
    """The same in Pillow; ``fill`` as for the library, 128 for 0.5."""
    old, channels = to_pillow(image), image.shape[2]
    height, width = image.shape[:2]
    level = round(fill * 255)
    fills = level if channels == 1 else (level,) * 3
    how = Image.Resampling.NEAREST if interpolation == "nearest" else Image.Resampling.BILINEAR

    def affine(*matrix: float) -> Image.Image:
        return old.transform(old.size, Image.Transform.AFFINE, matrix, how, fillcolor=fills)

    match name:
        case "identity":
            new = old
        case "rotate":
            new = old.rotate(number, how, fillcolor=fills)
        case "shear_x":
            new = affine(1, number, 0, 0, 1, 0)
        case "shear_y":
            new = affine(1, 0, 0, number, 1, 0)
        case "translate_x":
            new = affine(1, 0, -number, 0, 1, 0)
        case "translate_y":
            new = affine(1, 0, 0, 0, 1, -number)
        case "auto_contrast":
            new = ImageOps.autocontrast(old)
        case "equalize" | "invert":
            new = getattr(ImageOps, name)(old)
        case "posterize":
            if number == 0:
                return np.zeros_like(image)  # which Pillow refuses
            new = ImageOps.posterize(old, int(number))
        case "solarize":
            new = ImageOps.solarize(old, number)
        case "solarize_add":
            return solarize_added(image, int(number), 128)
        case "cutout":
            result = image.copy()
            row, column = int(np.float32(place[0]) * height), int(np.float32(place[1]) * width)
            half = int(number)
            result[max(0, row - half) : row + half, max(0, column - half) : column + half] = level
            return result
        case _:
            new = ENHANCE[name](old).enhance(number)
    return from_pillow(new, channels)


def names_of(policy: str, ops: np.ndarray) -> np.ndarray:
    """The names of operations of a policy, with the identity for what is not done; ``"aug_mix_9"`` is not all ops."""
    preset = AUG_MIX if policy == "aug_mix_9" else PRESETS[policy]
    return np.array([*(canonical(each.name) for each in preset.entries), "identity"])[ops]


def chained(
    policy: str, interpolation: str, steps: dict[str, np.ndarray], image: np.ndarray, fill: float
) -> np.ndarray:
    """An image after the operations of one image's parameters, one by one in Pillow."""
    for name, value, place in zip(names_of(policy, steps["op"]), steps["value"], steps["place"], strict=True):
        image = pillow(name, interpolation, image, float(value), place, fill)
    return image


def of_image(params: Any, i: int) -> Any:
    """The parameters of one image of a batch, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[i]), params)


def photographs(count: int, height: int, width: int) -> np.ndarray:
    """Different parts of two photographs, (count, height, width, 3)."""
    rng = np.random.default_rng(count)
    result = []
    for i in range(count):
        whole = photograph("china.jpg" if i % 2 else "flower.jpg", 2 * height, 3 * width)
        top, left = rng.integers(height), rng.integers(2 * width)
        result.append(whole[top : top + height, left : left + width])
    return np.stack(result)
