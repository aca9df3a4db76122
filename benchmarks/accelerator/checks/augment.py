"""8-bit augmentations, which are the same to the bit on every platform."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gradxform as gx
from benchmarks.accelerator import inputs
from benchmarks.accelerator.budget import TimeUp
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.compare import compared
from benchmarks.accelerator.record import FAILED

A = gx.augment

AUGMENTATIONS: dict[str, Callable[[int], gx.augment.Augmentation]] = {
    "flip": lambda size: A.random_flip_left_right(),
    "crop": lambda size: A.random_crop(size * 6 // 7, padding=2),
    "resized crop": lambda size: A.random_resized_crop(size),
    "rotation, nearest": lambda size: A.random_rotation(30, interpolation="nearest"),
    "rotation, bilinear": lambda size: A.random_rotation(30),
    "color_jitter": lambda size: A.color_jitter(0.8, 0.8, 0.8, 0.2),
    "equalize": lambda size: A.equalize(),
    "autocontrast": lambda size: A.autocontrast(),
    "posterize": lambda size: A.posterize(4),
    "solarize": lambda size: A.solarize(128),
    "blur": lambda size: A.gaussian_blur((0.1, 2.0), 5),
    "rand_augment": lambda size: A.rand_augment(2),
    "aug_mix": lambda size: A.aug_mix(),
    "simclr_views": lambda size: A.simclr_views(size),
}
"""By the rows and columns of the images."""
SEVERAL = ("color_jitter", "rand_augment", "aug_mix", "simclr_views")
"""Those of several operations, which take long to compile."""


def cases() -> list[Case]:
    """A check of each augmentation."""
    return [
        Case(
            f"check: {name}, 8 bits",
            "augment",
            functools.partial(_check, make),
            weight=6.0 if name in SEVERAL else 2.0,
            timed=False,
        )
        for name, make in AUGMENTATIONS.items()
    ]


def _check(make: Callable[[int], gx.augment.Augmentation], session: Session) -> dict[str, Any]:
    count, size = session.sizes.checked
    aug, images = make(size), inputs.photographs(count, size)
    entry = compared(session, lambda key, images: aug(key, images), (jax.random.key(1), images), 0.0)
    return entry if entry["status"] != FAILED else entry | _diagnosis(session, aug, images)


def _diagnosis(session: Session, aug: gx.augment.Augmentation, images: np.ndarray) -> dict[str, Any]:
    """Which of the two differs: what is drawn, or what is made of it."""
    key = jax.random.key(1)
    try:
        drawn = compared(session, lambda key: aug.sample(key, images.shape), (key,), 0.0)
        with jax.default_device(jax.devices("cpu")[0]):
            params = aug.sample(key, images.shape)
        made = compared(session, lambda params, images: aug.apply(params, images), (params, images), 0.0)
    except (TimeUp, RuntimeError) as error:
        return {"undiagnosed": str(error)}
    return {"largest_of_parameters": drawn["largest"], "largest_with_the_same_parameters": made["largest"]}
