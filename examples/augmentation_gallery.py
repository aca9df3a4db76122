"""Draws every augmentation: a row for each, with several random results for one photograph.

    python examples/augmentation_gallery.py --output pictures

What moves pixels moves a box and a point with them. The photograph comes with scikit-learn.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from sklearn.datasets import load_sample_images

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

import gradxform as gx
from gradxform.plot.style import COLORS

OUTPUT = pathlib.Path(__file__).parent / "output"
SIZE = (96, 144)
WINDOW = (64, 96)
BOX = (62.0, 44.0, 112.0, 72.0)
POINT = (83.0, 38.0)
A = gx.augment

MOVING = {
    "random_crop": A.random_crop(WINDOW, padding=8, border="reflect"),
    "center_crop": A.center_crop(WINDOW),
    "resize": A.resize((96, 96)),
    "random_resized_crop": A.random_resized_crop(WINDOW),
    "resize, longer side": A.resize(longer=96, interpolation="bicubic"),
    "pad": A.pad((8, 24), border="reflect"),
    "pad_to": A.pad_to((112, 144), fill=0.5),
    "letterbox": A.letterbox(96, fill=0.5),
    "random_scale_jitter": A.random_scale_jitter(WINDOW, (0.5, 2.0), fill=0.5),
    "random_zoom_out": A.random_zoom_out((1.0, 3.0), 0.8, fill=0.5),
    "random_iou_crop": A.random_iou_crop(WINDOW),
    "random_object_crop": A.random_object_crop((48, 72)),
    "random_rot90": A.chain(A.center_crop(96), A.random_rot90()),
    "random_transpose": A.chain(A.center_crop(96), A.random_transpose()),
    "random_d4": A.chain(A.center_crop(96), A.random_d4()),
    "rotate": A.rotate(20, border="edge"),
    "random_flip_left_right": A.random_flip_left_right(),
    "random_flip_up_down": A.random_flip_up_down(),
    "random_rotation": A.random_rotation(30),
    "random_rotation, crop_border": A.random_rotation((10, 30), crop_border=True),
    "random_perspective": A.random_perspective(0.6, 0.9),
    "random_affine, antialias": A.random_affine(scale=(0.2, 0.5), antialias=True, fill=0.5),
    "random_affine": A.random_affine(15, (0.1, 0.1), (0.8, 1.2), (10, 10), border="edge"),
    "elastic_deformation": A.elastic_deformation(120.0, 6.0, border="reflect"),
    "chain, as one resampling": A.chain(
        A.random_resized_crop(SIZE, scale=(0.5, 1.0)),
        A.random_flip_left_right(),
        A.random_rotation(15),
        A.elastic_deformation(60.0, 6.0),
    ),
    "drop_slivers": A.chain(A.random_crop(WINDOW), A.drop_slivers(0.8)),
    "rand_augment, torchvision": A.rand_augment(2, 15),
    "rand_augment, timm": A.rand_augment(2, 9, "timm"),
    "rand_augment, google": A.rand_augment(2, 9, "google"),
    "trivial_augment": A.trivial_augment(),
    "auto_augment": A.auto_augment("cifar10"),
}
STAYING = {
    "color_jitter": A.color_jitter(0.8, 0.8, 0.8, 0.2),
    "random_brightness": A.random_brightness(0.8),
    "random_contrast": A.random_contrast(0.8),
    "random_saturation": A.random_saturation(1.0),
    "random_hue": A.random_hue(0.5),
    "random_grayscale": A.random_grayscale(0.5),
    "random_gamma": A.random_gamma((0.4, 2.5)),
    "channel_shuffle": A.channel_shuffle(),
    "gaussian_noise": A.gaussian_noise((0.0, 0.3)),
    "gaussian_blur": A.gaussian_blur((0.1, 3.0)),
    "jpeg": A.jpeg((3, 40)),
    "equalize": A.equalize(),
    "autocontrast": A.autocontrast(),
    "invert": A.invert(),
    "posterize": A.posterize((1, 4)),
    "solarize": A.solarize((64, 256)),
    "sharpness": A.sharpness((0.0, 5.0)),
    "cutout": A.cutout(40),
    "random_erasing": A.random_erasing(1.0, fill="random"),
    "random_photometric_distort": A.random_photometric_distort(),
    "aug_mix": A.aug_mix(10.0),
    "three_augment": A.three_augment(),
    "random_apply": A.random_apply(A.invert()),
    "one_of": A.one_of(A.equalize(), A.solarize(128), A.gaussian_blur((2.0, 3.0))),
}
PAIRED = {
    "two_views": A.two_views(A.random_crop(WINDOW), A.chain(A.random_crop(WINDOW), A.random_grayscale(1.0))),
    "views": A.views(A.random_resized_crop((96, 96)), A.random_resized_crop((32, 32), scale=(0.05, 0.2))),
    "simclr_views": A.simclr_views(WINDOW),
    "byol_views": A.byol_views(WINDOW),
}
MIXING = {
    # As good as halves: the usual alpha of 0.2 leaves most images nearly as they were.
    "mixup": A.mixup(8.0, num_classes=2, per_image=True),
    "cutmix": A.cutmix(1.0, num_classes=2, per_image=True),
    "mixup_or_cutmix": A.mixup_or_cutmix(1.0, 1.0, num_classes=2, per_image=True),
}
TOGETHER = {"mosaic": A.mosaic(SIZE), "copy_paste": A.copy_paste(1.0)}
"""Every augmentation; only ``normalize`` has no row, since its results are no pictures."""
FLOWER = (40.0, 14.0, 98.0, 82.0)
"""Of the other photograph."""


def photographs() -> np.ndarray:
    """Two photographs, 8-bit, of (96, 144) pixels."""
    shrink = A.resize(SIZE)
    return np.stack([np.asarray(shrink(jax.random.key(0), image)) for image in load_sample_images().images])


def results(count: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """By name, ``count`` results of each augmentation, each with its image and perhaps its box and its point."""
    images, key = photographs(), jax.random.key(seed)
    batch = jnp.tile(images[:1], (count, 1, 1, 1))
    targets = {
        "image": batch,
        "boxes": jnp.tile(jnp.array(BOX), (count, 1, 1)),
        "keypoints": jnp.tile(jnp.array(POINT), (count, 1, 1)),
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, aug in MOVING.items():
        rows[name] = _apart(aug(key, targets), count)
    for name, aug in STAYING.items():
        rows[name] = _apart({"image": aug(key, batch)}, count)
    for name, aug in PAIRED.items():
        views = [_apart({"image": view}, count) for view in aug(key, batch)]
        rows[name] = [one for each in zip(*views, strict=True) for one in each][:count]
    both = {"image": jnp.asarray(images[np.arange(count) % 2]), "label": jnp.arange(count) % 2}
    other = 1 - jnp.arange(count, dtype=jnp.int32) % 2
    for name, aug in MIXING.items():
        # Each with the other photograph: a partner at random is often of the same one.
        params = aug.sample(key, both["image"].shape) | {"partner": other}
        rows[name] = _apart(aug.apply(params, both), count)
    boxes = np.array([BOX, FLOWER], np.float32)[np.arange(count) % 2, None]
    things = {"image": both["image"], "boxes": boxes, "mask": np.stack([_ellipse(box) for box in boxes[:, 0]])}
    for name, aug in TOGETHER.items():
        params = aug.sample(key, both["image"].shape)
        params |= {"partner": other} if name == "copy_paste" else {}
        rows[name] = _apart(aug.apply(params, things), count)
    return rows


def _ellipse(box: np.ndarray) -> np.ndarray:
    """The mask of one object, as large as its box."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return inside[..., None]


def _apart(batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
    return [{name: np.asarray(value[i]) for name, value in batch.items()} for i in range(count)]


def draw(rows: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    """Draws the photograph, then a row for each augmentation."""
    columns = 1 + max(map(len, rows.values()))
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(1.9 * columns + 1.6, 1.3 * len(rows)),
        squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.12},
    )
    original = {"image": photographs()[0], "boxes": np.array([BOX]), "keypoints": np.array([POINT])}
    for row, (name, samples) in zip(axes, rows.items(), strict=True):
        shown = [original if name in MOVING else {"image": original["image"]}, *samples]
        for ax, sample in zip(row, shown, strict=True):
            _show(ax, sample)
        row[0].set_ylabel(
            name.replace(", ", ",\n").replace(" of ", "\nof "), rotation=0, ha="right", va="center", fontsize=10
        )
    axes[0, 0].set_title("photograph", fontsize=10)
    axes[0, 1].set_title("at random", fontsize=10)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _show(ax: Any, sample: dict[str, Any]) -> None:
    image = sample["image"]
    height, width = image.shape[:2]
    # An image from 0 to its width, so that positions are those of the library.
    ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    for x1, y1, x2, y2 in sample.get("boxes", ()):
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=COLORS[1], linewidth=1.8))
    for x, y in sample.get("keypoints", ()):
        if 0 <= x <= width and 0 <= y <= height:
            ax.plot(x, y, "o", color=COLORS[0], markeredgecolor="white", markersize=6)
    if "label" in sample:
        ax.text(
            3,
            11,
            f"{sample['label'][1]:.2f}",
            color="white",
            fontsize=8,
            bbox={"color": "black", "pad": 1.5, "alpha": 0.6},
        )
    ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws ``augmentation_gallery.png``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=6, help="results of each augmentation (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="folder of the picture (%(default)s)")
    options = parser.parse_args(arguments)
    if options.count < 2:
        parser.error(f"--count: expected at least 2, got {options.count}")

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "augmentation_gallery.png"
    rows = results(options.count, options.seed)
    draw(rows, path)
    print(f"{len(rows)} augmentations, {options.count} results each, in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
