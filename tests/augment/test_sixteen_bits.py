"""Images of uint16: copied where pixels only move, else what their floats become, rounded once."""

from __future__ import annotations

from typing import Any

import geometry_oracles as oracles
import jax
import numpy as np
import pytest
from PIL import Image

import gradxform as gx

A = gx.augment
KEY = jax.random.key(5)
WHITE = 65535


def photographs() -> np.ndarray:
    """Two of 24 x 30 pixels, with all 16 bits in use."""
    rough = np.stack([oracles.photo(24, 30), oracles.photo(24, 30, 1)]).astype(np.uint16)
    return rough * 257 - np.minimum(rough, np.random.default_rng(0).integers(0, 257, rough.shape, np.uint16))


IMAGES = photographs()


@pytest.mark.parametrize(
    "aug",
    [
        A.chain(A.random_crop((20, 20), (6, 2), fill=0.25, mask_fill=16384), A.random_flip_left_right(), A.random_d4()),
        A.random_affine(30, (0.2, 0.2), interpolation="nearest", fill=0.75, mask_fill=49151),
    ],
)
def test_pixels_that_only_move_are_copied(aug: Any) -> None:
    """A mask of the same numbers moves alike; colours are shares of 65535."""
    got = aug(KEY, {"image": IMAGES, "mask": IMAGES})
    assert got["image"].dtype == np.uint16
    np.testing.assert_array_equal(got["image"], got["mask"])
    assert len(np.unique(got["image"])) > 500


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_a_resize_is_pillows_to_a_level(how: str) -> None:
    """Pillow rounds columns before rows."""
    gray = IMAGES[0, :, :, :1]
    for size in ((9, 20), (40, 33)):
        got = np.int32(A.resize(size, interpolation=how)(KEY, gray))[..., 0]
        wanted = Image.fromarray(gray[..., 0]).resize(size[::-1], getattr(Image.Resampling, how.upper()))
        assert np.abs(got - np.int32(np.asarray(wanted))).max() <= 1


def test_they_become_what_their_floats_do() -> None:
    aug = A.chain(
        A.random_rotation(20, fill=0.25),
        A.random_contrast(0.5),
        A.sharpness(1.5),
        A.random_gamma(),
        A.cutout(6, fill=0.5),
    )
    got, floats = (np.float64(aug(KEY, images)) for images in (IMAGES, IMAGES.astype(np.float32) / WHITE))
    assert np.abs(got - WHITE * floats).max() < 0.6
    assert np.abs(got - np.round(got / 257) * 257).max() > 100


def test_what_no_integer_holds() -> None:
    """Normalized images are floats, and nothing normal is put into others."""
    got = A.chain(A.random_flip_left_right(0.0), A.normalize((0.5, 0.25, 0.0), 0.5))(KEY, IMAGES)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (IMAGES / WHITE - [0.5, 0.25, 0]) / 0.5, atol=1e-6)
    with pytest.raises(ValueError, match=r"^fill: expected float images for 'normal'.*got uint16"):
        A.random_erasing(1.0, fill="normal")(KEY, IMAGES)


def test_mixed_images_are_rounded_once() -> None:
    aug, batch = A.mixup(1.0, num_classes=2), {"image": IMAGES, "label": np.arange(2)}
    params = {"lam": np.float32(0.3), "partner": np.array([1, 0])}
    wanted = 0.3 * np.float64(IMAGES) + 0.7 * np.float64(IMAGES[::-1])
    assert np.abs(np.float64(aug.apply(params, batch)["image"]) - wanted).max() < 0.55
