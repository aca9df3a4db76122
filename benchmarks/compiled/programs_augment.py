"""Augmentations and policies on 64 images of 224 x 224 x 3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import gradxform as gx
from benchmarks.compiled.program import OURS, Call, Program, shaped

A = gx.augment
SWITCH = "vmap(lax.switch)"
IMAGES = (64, 224, 224, 3)
KEY = jax.eval_shape(lambda: jax.random.key(0))
STAGES: dict[str, Any] = {
    "posterize": A.posterize(4),
    "solarize": A.solarize(0.5),
    "invert": A.invert(),
    "brightness": A.random_brightness(0.4),
    "contrast": A.random_contrast(0.4),
    "saturation": A.random_saturation(0.4),
    "hue": A.random_hue(0.1),
    "grayscale": A.random_grayscale(0.5),
    "cutout 56": A.cutout(56),
    "random_erasing": A.random_erasing(),
    "flip": A.random_flip_left_right(),
    "sharpness": A.sharpness(1.5),
    "autocontrast": A.autocontrast(),
    "equalize": A.equalize(),
    "rotation": A.random_rotation(30.0),
    "rotation, nearest": A.random_rotation(30.0, interpolation="nearest"),
    "affine": A.random_affine(20.0, (0.1, 0.1), (0.8, 1.2), (10.0, 10.0)),
    "elastic": A.elastic_deformation(50.0, 5.0),
    "random_crop 192": A.random_crop(192),
    "random_resized_crop 224": A.random_resized_crop(224),
    "gaussian_blur 23": A.gaussian_blur((0.1, 2.0), 23),
}
SIXTEEN_TOO = ("random_crop 192", "rotation")
FLOAT_TOO = ("random_crop 192", "gaussian_blur 23", "rotation", "equalize", "flip")
MIXES = {"mixup": A.mixup(0.2), "cutmix": A.cutmix(1.0)}
POLICIES: dict[str, Any] = {
    "color_jitter": A.color_jitter(0.4, 0.4, 0.4, 0.1),
    "rand_augment(2, 9)": A.rand_augment(2, 9.0),
    "trivial_augment": A.trivial_augment(),
    "auto_augment": A.auto_augment(),
    "aug_mix": A.aug_mix(),
    "simclr_views(224)": A.simclr_views(224),
}


def call_of(augmentation: Any, inputs: Any, batching: str = "auto") -> Call:
    """An augmentation of inputs of these shapes."""
    image = inputs["image"] if isinstance(inputs, dict) else inputs
    return Call(
        lambda key, inputs: augmentation(key, inputs, batching=batching),
        (KEY, inputs),
        (),
        math.prod(image.shape) * image.dtype.itemsize,
    )


def _program(name: str, augmentation: Any, dtype: Any = jnp.uint8, peer: str = OURS, labels: bool = False) -> Program:
    inputs: Any = shaped(IMAGES, dtype)
    if labels:
        inputs = {"image": inputs, "label": shaped((IMAGES[0], 1000))}
    return Program(
        "augment",
        f"{name}, {jnp.dtype(dtype).name}",
        peer,
        lambda _: call_of(augmentation, inputs, "vmap" if peer == SWITCH else "auto"),
        unit="passes",
    )


def programs() -> Iterator[Program]:
    """The room's programs."""
    for name, augmentation in STAGES.items():
        yield _program(name, augmentation)
        if name in FLOAT_TOO:
            yield _program(name, augmentation, jnp.float32)
        if name in SIXTEEN_TOO:
            yield _program(name, augmentation, jnp.uint16)
    for name, augmentation in MIXES.items():
        yield _program(name, augmentation, labels=True)
    for name, augmentation in POLICIES.items():
        yield _program(name, augmentation)
        if not name.startswith(("simclr", "auto")):
            yield _program(name, augmentation, peer=SWITCH)
    name = "rand_augment(2, 9)"
    yield _program(name, POLICIES[name], jnp.float32)
