"""Images a second of every augmentation, of 8-bit images and of floats, beside dm-pix and ``vmap(switch)``."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import gradxform as gx
from benchmarks.accelerator import inputs
from benchmarks.accelerator.build import Program
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.measure import measured
from benchmarks.accelerator.timing import keyed
from benchmarks.augment import OURS, OURS_FLOAT, PIX, SWITCH

ONE_BY_ONE = "gradxform, one by one"
A = gx.augment
Pix = Callable[[Any, jax.Array, jax.Array, int], jax.Array]
"""dm-pix's: of the package, a key, a float image and its size."""


class Row(NamedTuple):
    """An augmentation.

    Attributes:
      make: ours, for images of so many rows and columns.
      pix: dm-pix's; None where it has none.
    """

    make: Callable[[int], gx.augment.Augmentation]
    pix: Pix | None = None


def _pix_jitter(pix: Any, key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    b, c, s, h = jax.random.split(key, 4)
    image = pix.random_contrast(c, pix.random_brightness(b, image, 0.8), 0.2, 1.8)
    return pix.random_hue(h, pix.random_saturation(s, image, 0.2, 1.8), 0.2)


def _sigma(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, minval=0.1, maxval=2.0)


def _kernel(size: int) -> int:
    return 23 if size > 32 else 3


POLICIES: dict[str, Row] = {
    "RandAugment(2)": Row(lambda size: A.rand_augment(2)),
    "SimCLR views": Row(lambda size: A.simclr_views(size, blur=size > 32)),
    "AugMix(3)": Row(lambda size: A.aug_mix()),
}
OPERATIONS: dict[str, Row] = {
    "colour jitter": Row(lambda size: A.color_jitter(0.8, 0.8, 0.8, 0.2), _pix_jitter),
    "resized crop": Row(lambda size: A.random_resized_crop(size)),
    "rotation": Row(
        lambda size: A.random_rotation(30),
        lambda pix, key, x, size: pix.rotate(x, jax.random.uniform(key, minval=-0.5, maxval=0.5), order=1),
    ),
    "equalize": Row(lambda size: A.equalize()),
    "blur": Row(
        lambda size: A.gaussian_blur((0.1, 2.0), _kernel(size)),
        lambda pix, key, x, size: pix.gaussian_blur(x, _sigma(key), _kernel(size)),
    ),
    "crop": Row(
        lambda size: A.random_crop(size * 6 // 7),
        lambda pix, key, x, size: pix.random_crop(key, x, (size * 6 // 7, size * 6 // 7, 3)),
    ),
    "flip": Row(lambda size: A.random_flip_left_right(), lambda pix, key, x, size: pix.random_flip_left_right(key, x)),
    "autocontrast": Row(lambda size: A.autocontrast()),
    "rotation, nearest": Row(
        lambda size: A.random_rotation(30, interpolation="nearest"),
        lambda pix, key, x, size: pix.rotate(x, jax.random.uniform(key, minval=-0.5, maxval=0.5), order=0),
    ),
    "affine": Row(lambda size: A.random_affine(20.0, (0.1, 0.1), (0.8, 1.2), (10.0, 10.0))),
    "elastic": Row(
        lambda size: A.elastic_deformation(50.0, 5.0),
        lambda pix, key, x, size: pix.elastic_deformation(key, x, 50.0, 5.0),
    ),
    "grayscale": Row(
        lambda size: A.random_grayscale(0.5), lambda pix, key, x, size: pix.rgb_to_grayscale(x, keep_dims=True)
    ),
    "solarize": Row(lambda size: A.solarize(128), lambda pix, key, x, size: pix.solarize(x, 0.5)),
    "posterize": Row(lambda size: A.posterize(4)),
    "sharpness": Row(lambda size: A.sharpness(1.5)),
    "brightness": Row(
        lambda size: A.random_brightness(0.8), lambda pix, key, x, size: pix.random_brightness(key, x, 0.8)
    ),
    "contrast": Row(
        lambda size: A.random_contrast(0.8), lambda pix, key, x, size: pix.random_contrast(key, x, 0.2, 1.8)
    ),
    "saturation": Row(
        lambda size: A.random_saturation(0.8), lambda pix, key, x, size: pix.random_saturation(key, x, 0.2, 1.8)
    ),
    "hue": Row(lambda size: A.random_hue(0.2), lambda pix, key, x, size: pix.random_hue(key, x, 0.2)),
    "invert": Row(lambda size: A.invert()),
    "normalize": Row(lambda size: A.normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    "resize": Row(lambda size: A.resize(size * 2 // 3)),
    "center crop": Row(
        lambda size: A.center_crop(size * 6 // 7),
        lambda pix, key, x, size: pix.center_crop(x, size * 6 // 7, size * 6 // 7),
    ),
    "flip up and down": Row(
        lambda size: A.random_flip_up_down(), lambda pix, key, x, size: pix.random_flip_up_down(key, x)
    ),
    "cutout": Row(lambda size: A.cutout(size // 4)),
    "erasing": Row(lambda size: A.random_erasing()),
    "mixup": Row(lambda size: A.mixup()),
    "CutMix": Row(lambda size: A.cutmix()),
    "TrivialAugment": Row(lambda size: A.trivial_augment()),
}
FLOATS_ONLY, LABELLED = ("normalize",), ("mixup", "CutMix")


def cases(rows: dict[str, Row]) -> list[Case]:
    """A case for each augmentation."""
    weight = 6.0 if rows is POLICIES else 2.0
    return [Case(name, "augment", functools.partial(_row, name, row), weight=weight) for name, row in rows.items()]


def _row(name: str, row: Row, session: Session) -> dict[str, Any]:
    count, size = session.sizes.images
    aug, images = row.make(size), jnp.asarray(inputs.photographs(count, size))
    floats, labels = images.astype(jnp.float32) / 255, jax.nn.one_hot(jnp.arange(count) % 10, 10)
    key, missing = jax.random.key(0), {}

    def program(call: Callable[[jax.Array, jax.Array], Any], images: jax.Array) -> Any:
        return Program(call, (key, images)), lambda built: keyed(built, images)

    def ours(batching: str) -> Callable[[jax.Array, jax.Array], Any]:
        if name in LABELLED:
            return lambda key, images: aug(key, {"image": images, "label": labels}, batching=batching)
        return lambda key, images: aug(key, images, batching=batching)

    programs = {OURS_FLOAT: program(ours("auto"), floats)}
    if name not in FLOATS_ONLY:
        programs = {OURS: program(ours("auto"), images)} | programs
        if getattr(aug.stage, "chooses", False):
            programs |= {ONE_BY_ONE: program(ours("map"), images), SWITCH: program(ours("vmap"), images)}
    if row.pix is not None:
        try:
            pix = importlib.import_module("dm_pix")
        except ImportError as error:
            missing[PIX] = f"not installed: {error}"
        else:
            programs[PIX] = program(
                lambda key, images: jax.vmap(lambda key, x: row.pix(pix, key, x, size))(
                    jax.random.split(key, count), images
                ),
                floats,
            )
    entry = measured(session, programs)
    entry["missing"] |= missing
    for peer, figures in entry["peers"].items():
        call, batch = programs[peer][0].function, programs[peer][0].args[1]
        results = jax.eval_shape(call, key, batch)
        nbytes = batch.nbytes + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(results))
        figures["images_per_s"] = count / figures["median_s"]
        figures["share_of_copy"] = session.share(nbytes / figures["median_s"])
    return entry | {"images": count, "size": size}
