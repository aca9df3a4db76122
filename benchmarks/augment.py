"""Images a second of augmentations: gradxform, dm-pix, augmax, kornia, Pillow and OpenCV in turns.

Each peer augments batch after batch of images, each image with parameters of its own where the peer can. gradxform is
measured on 8-bit images, as Pillow and OpenCV are, and on float32 images, as the others are. Pillow and OpenCV work on
one image after another on one thread, with parameters drawn beforehand; torch and XLA use all cores. The policies are
measured against the same kernels under ``vmap(lax.switch)`` too.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradxform as gx
from benchmarks import harness

HELP = "images a second of augmentations, against dm-pix, augmax, kornia, Pillow and OpenCV"
VARIABLES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""As in the suite of norms: no array is faulted in anew, and idle threads of torch sleep."""

OURS, OURS_FLOAT, SWITCH = "gradxform", "gradxform f32", "vmap(switch)"
PIX, AUGMAX, KORNIA, PILLOW, OPENCV = "dm-pix", "augmax", "kornia", "Pillow", "OpenCV"
SIZES = {224: 64, 32: 256}
"""Images of a batch by their height and width."""
TURN = 0.03
"""Seconds that each peer goes on in its turn: images a second are those of a loop that goes on."""
A = gx.augment

Run = Callable[[], None]
Maker = Callable[[np.ndarray], Run]
"""From a batch of 8-bit images to something to time."""


def ours(aug: Any, dtype: str = "uint8", batching: str = "auto") -> Maker:
    def make(images: np.ndarray) -> Run:
        function = jax.jit(lambda key, images: aug(key, images, batching=batching))
        batch = jnp.asarray(images) if dtype == "uint8" else jnp.asarray(images, dtype) / 255
        return _timed_by_jax(function, batch)

    return make


def each(function: Callable[..., Any]) -> Maker:
    """A function of a key and one float image, vmapped."""

    def make(images: np.ndarray) -> Run:
        call = jax.jit(lambda key, images: jax.vmap(function)(jax.random.split(key, len(images)), images))
        return _timed_by_jax(call, jnp.asarray(images, jnp.float32) / 255)

    return make


def _timed_by_jax(function: Callable[..., Any], images: jax.Array) -> Run:
    keys = itertools.cycle(list(jax.random.split(jax.random.key(0), 100)))

    def run() -> None:
        jax.block_until_ready(function(next(keys), images))

    return run


def torch_module(make_module: Callable[[Any], Any]) -> Maker:
    """A module of kornia."""

    def make(images: np.ndarray) -> Run:
        torch = importlib.import_module("torch")
        module = make_module(importlib.import_module("kornia.augmentation"))
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255

        def run() -> None:
            with torch.no_grad():
                module(batch)

        return run

    return make


def one_by_one(function: Callable[[Any, Any, np.random.Generator], Any], package: str) -> Maker:
    """A function of Pillow or OpenCV, an image and a generator."""

    def make(images: np.ndarray) -> Run:
        if package == "cv2":
            module = importlib.import_module("cv2")
            module.setNumThreads(1)
            batch: list[Any] = list(images)
        else:
            module = importlib.import_module("PIL.Image")
            importlib.import_module("PIL.ImageOps")
            importlib.import_module("PIL.ImageEnhance")
            module = importlib.import_module("PIL")
            batch = [module.Image.fromarray(image) for image in images]
        rng = np.random.default_rng(0)

        def run() -> None:
            for image in batch:
                np.asarray(function(module, image, rng))

        return run

    return make


def _cases(size: int) -> dict[str, dict[str, Maker]]:
    """The peers of each augmentation of images of a size."""
    pix, augmax = _module("dm_pix"), _module("augmax")
    window, kernel = size * 6 // 7, 23 if size == 224 else 3

    def both(aug: Any) -> dict[str, Maker]:
        return {OURS: ours(aug), OURS_FLOAT: ours(aug, "float32")}

    def pix_jitter(key: jax.Array, image: jax.Array) -> jax.Array:
        b, c, s, h = jax.random.split(key, 4)
        image = pix.random_contrast(c, pix.random_brightness(b, image, 0.8), 0.2, 1.8)
        return pix.random_hue(h, pix.random_saturation(s, image, 0.2, 1.8), 0.2)

    def turned(cv2: Any, image: Any, rng: np.random.Generator) -> Any:
        matrix = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), rng.uniform(-30, 30), 1)
        return cv2.warpAffine(image, matrix, (size, size))

    def pillow_window(pil: Any, image: Any, rng: np.random.Generator) -> Any:
        w, h = (rng.uniform(0.3, 1) * size for _ in range(2))
        x, y = rng.uniform(0, size - w), rng.uniform(0, size - h)
        return image.resize((size, size), pil.Image.BILINEAR, box=(x, y, x + w, y + h))

    cases = {
        "flip": both(A.random_flip_left_right())
        | {
            PIX: each(lambda key, x: pix.random_flip_left_right(key, x)),
            AUGMAX: each(lambda key, x: augmax.Chain(augmax.HorizontalFlip())(key, x)),
            KORNIA: torch_module(lambda k: k.RandomHorizontalFlip(0.5)),
            PILLOW: one_by_one(lambda pil, x, rng: x.transpose(pil.Image.FLIP_LEFT_RIGHT), "PIL"),
            OPENCV: one_by_one(lambda cv2, x, rng: cv2.flip(x, 1), "cv2"),
        },
        "crop": both(A.random_crop(window))
        | {
            PIX: each(lambda key, x: pix.random_crop(key, x, (window, window, 3))),
            AUGMAX: each(lambda key, x: augmax.Chain(augmax.RandomCrop(window, window))(key, x)),
            KORNIA: torch_module(lambda k: k.RandomCrop((window, window))),
        },
        "resized crop": both(A.random_resized_crop(size))
        | {
            AUGMAX: each(lambda key, x: augmax.Chain(augmax.RandomSizedCrop(size, size))(key, x)),
            KORNIA: torch_module(lambda k: k.RandomResizedCrop((size, size))),
            PILLOW: one_by_one(pillow_window, "PIL"),
        },
        "rotation": both(A.random_rotation(30))
        | {
            PIX: each(lambda key, x: pix.rotate(x, jax.random.uniform(key, minval=-0.5, maxval=0.5), order=1)),
            AUGMAX: each(lambda key, x: augmax.Chain(augmax.Rotate((-30, 30)))(key, x)),
            KORNIA: torch_module(lambda k: k.RandomRotation(30.0, p=1.0)),
            PILLOW: one_by_one(lambda pil, x, rng: x.rotate(rng.uniform(-30, 30), pil.Image.BILINEAR), "PIL"),
            OPENCV: one_by_one(turned, "cv2"),
        },
        "elastic": both(A.elastic_deformation(50.0, 5.0))
        | {
            PIX: each(lambda key, x: pix.elastic_deformation(key, x, 50.0, 5.0)),
            AUGMAX: each(lambda key, x: augmax.Chain(augmax.Warp(strength=5, coarseness=32))(key, x)),
            KORNIA: torch_module(
                lambda k: k.RandomElasticTransform((63, 63) if size > 63 else (31, 31), (5.0, 5.0), p=1.0)
            ),
        },
        "colour jitter": both(A.color_jitter(0.8, 0.8, 0.8, 0.2))
        | {
            PIX: each(pix_jitter),
            AUGMAX: each(
                lambda key, x: augmax.Chain(augmax.ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2))(
                    key, x
                )
            ),
            KORNIA: torch_module(lambda k: k.ColorJitter(0.8, 0.8, 0.8, 0.2, p=1.0)),
        },
        "grayscale": both(A.random_grayscale(0.5))
        | {
            PIX: each(lambda key, x: pix.rgb_to_grayscale(x, keep_dims=True)),
            AUGMAX: each(lambda key, x: augmax.Chain(augmax.RandomGrayscale(0.5))(key, x)),
            KORNIA: torch_module(lambda k: k.RandomGrayscale(p=0.5)),
            PILLOW: one_by_one(lambda pil, x, rng: x.convert("L").convert("RGB"), "PIL"),
        },
        "blur": both(A.gaussian_blur((0.1, 2.0), kernel))
        | {
            PIX: each(lambda key, x: pix.gaussian_blur(x, jax.random.uniform(key, minval=0.1, maxval=2.0), kernel)),
            KORNIA: torch_module(lambda k: k.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=1.0)),
            OPENCV: one_by_one(lambda cv2, x, rng: cv2.GaussianBlur(x, (kernel, kernel), rng.uniform(0.1, 2)), "cv2"),
        },
        "equalize": both(A.equalize())
        | {
            KORNIA: torch_module(lambda k: k.RandomEqualize(p=1.0)),
            PILLOW: one_by_one(lambda pil, x, rng: pil.ImageOps.equalize(x), "PIL"),
        },
        "sharpness": both(A.sharpness(1.5))
        | {
            KORNIA: torch_module(lambda k: k.RandomSharpness((0.5, 0.5), p=1.0)),
            PILLOW: one_by_one(lambda pil, x, rng: pil.ImageEnhance.Sharpness(x).enhance(1.5), "PIL"),
        },
        "RandAugment(2)": both(A.rand_augment(2))
        | {
            SWITCH: ours(A.rand_augment(2), batching="vmap"),
            KORNIA: torch_module(lambda k: k.auto.RandAugment(2, 9)),
            PILLOW: one_by_one(lambda pil, x, rng: _pillow_policy(pil, x, rng, 2), "PIL"),
        },
        "AugMix(3)": both(A.aug_mix())
        | {SWITCH: ours(A.aug_mix(), batching="vmap"), PILLOW: one_by_one(_pillow_aug_mix, "PIL")},
        "SimCLR views": both(A.simclr_views(size, blur=size > 32))
        | {KORNIA: torch_module(lambda k: _kornia_views(k, size, kernel))},
    }
    missing = {name for name in (PIX, AUGMAX, KORNIA, PILLOW, OPENCV) if _module(_PACKAGES[name]) is None}
    return {case: {name: peer for name, peer in named.items() if name not in missing} for case, named in cases.items()}


_PACKAGES = {PIX: "dm_pix", AUGMAX: "augmax", KORNIA: "kornia", PILLOW: "PIL", OPENCV: "cv2"}


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _pillow_policy(pil: Any, image: Any, rng: np.random.Generator, steps: int, level: float = 0.3) -> Any:
    """Operations of RandAugment, drawn with replacement, on one image of Pillow's."""
    size, sign = image.size, rng.choice((-1, 1))
    pixels, enhance = int(150 / 331 * size[0] * level), 1 + sign * 0.9 * level

    def affine(*matrix: float) -> Callable[[Any], Any]:
        return lambda x: x.transform(size, pil.Image.AFFINE, matrix, pil.Image.NEAREST)

    operations: list[Callable[[Any], Any]] = [
        lambda x: x,
        affine(1, sign * 0.3 * level, 0, 0, 1, 0),
        affine(1, 0, 0, sign * 0.3 * level, 1, 0),
        affine(1, 0, sign * pixels, 0, 1, 0),
        affine(1, 0, 0, 0, 1, sign * pixels),
        lambda x: x.rotate(sign * 30 * level),
        lambda x: pil.ImageOps.posterize(x, 8 - round(4 * level)),
        lambda x: pil.ImageOps.solarize(x, 255 * (1 - level)),
        pil.ImageOps.autocontrast,
        pil.ImageOps.equalize,
        *(
            lambda x, kind=kind: getattr(pil.ImageEnhance, kind)(x).enhance(enhance)
            for kind in ("Brightness", "Color", "Contrast", "Sharpness")
        ),
    ]
    for _ in range(steps):
        image = operations[rng.integers(len(operations))](image)
    return image


def _pillow_aug_mix(pil: Any, image: Any, rng: np.random.Generator) -> Any:
    weights, mixture = rng.dirichlet((1, 1, 1)), rng.beta(1, 1)
    chains = [np.asarray(_pillow_policy(pil, image, rng, rng.integers(1, 4)), np.float32) for _ in weights]
    mixed = sum(weight * chain for weight, chain in zip(weights, chains, strict=True))
    return np.uint8((1 - mixture) * np.asarray(image, np.float32) + mixture * mixed)


def _kornia_views(kornia: Any, size: int, kernel: int) -> Any:
    torch = importlib.import_module("torch")
    parts = [
        kornia.RandomResizedCrop((size, size)),
        kornia.RandomHorizontalFlip(0.5),
        kornia.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        kornia.RandomGrayscale(p=0.2),
    ]
    if size > 32:
        parts.append(kornia.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    view = torch.nn.Sequential(*parts)
    return lambda batch: (view(batch), view(batch))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="augmentations whose name has this")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="heights and widths (%(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the tables and the verdicts, and returns the record."""
    repeats = args.repeats or (3 if args.quick else 10)
    tables: dict[str, Any] = {}
    for size in args.sizes:
        rows = []
        for name, named in _cases(size).items():
            if args.only and not any(part in name for part in args.only):
                continue
            # Compiled programs and modules of the case before make room.
            jax.clear_caches()
            rates, others = harness.undisturbed(lambda: _measured(named, size, repeats), args.patience)
            tables[f"{name} {size}"] = {"images_per_second": rates, "others_cores": round(others, 2)}
            rows.append(
                [name, *(f"{rates[peer]:,.0f}" if peer in rates else "-" for peer in _COLUMNS), f"{others:.1f}"]
            )
        harness.table(
            f"images/s, {size} x {size} x 3, batches of {SIZES.get(size, 64)}", ["", *_COLUMNS, "others' cores"], rows
        )
    return {"tables": tables, "targets": _judge(tables)}


_COLUMNS = (OURS, OURS_FLOAT, SWITCH, PIX, AUGMAX, KORNIA, PILLOW, OPENCV)


def _measured(named: Mapping[str, Maker], size: int, repeats: int) -> dict[str, float]:
    images = _photographs(size, SIZES.get(size, 64))
    samples = harness.in_turns({name: make(images) for name, make in named.items()}, repeats, 1, TURN)
    return {name: len(images) / sample.median for name, sample in samples.items()}


def _photographs(size: int, count: int) -> np.ndarray:
    """Windows of two photographs, since how long a histogram takes depends on the pixels."""
    from sklearn.datasets import load_sample_images

    rng, images = np.random.default_rng(0), load_sample_images().images
    windows = []
    for i in range(count):
        image = images[i % len(images)]
        top, left = (rng.integers(0, n - size + 1) for n in image.shape[:2])
        windows.append(image[top : top + size, left : left + size])
    return np.stack(windows)


def _judge(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The targets: how many times faster than a peer, on a processor."""
    targets: dict[str, Any] = {}
    rows = []

    def judge(case: str, mine: str, peer: str, least: float) -> None:
        rates = tables.get(case, {}).get("images_per_second", {})
        if mine not in rates or peer not in rates or math.isnan(rates[peer]):
            return
        ratio, others = rates[mine] / rates[peer], tables[case]["others_cores"]
        verdict = harness.verdict(least / ratio, 1.0, others)
        targets[f"{case}: {mine} over {peer}"] = {"ratio": ratio, "at_least": least, "verdict": verdict}
        rows.append([case, mine, peer, f"{ratio:.2f}", f"{least:g}", verdict])

    for size in SIZES:
        for policy in ("RandAugment(2)", "AugMix(3)"):
            judge(f"{policy} {size}", OURS, SWITCH, 15)
        judge(f"RandAugment(2) {size}", OURS, PILLOW, 1.5)
        judge(f"rotation {size}", OURS, AUGMAX, 4)
        judge(f"rotation {size}", OURS, PIX, 100)
        judge(f"blur {size}", OURS, PIX, 10)
    for case in tables:
        for peer in (PIX, AUGMAX, KORNIA):
            judge(case, OURS_FLOAT, peer, 1)
    harness.table("targets: how many times faster", ["case", "of", "over", "ratio", "at least", ""], rows)
    return targets
