"""JPEG, there and back, and SSD's distortion: Pillow's bits and torchvision's order."""

from __future__ import annotations

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import photometric_oracles as oracles
import pytest
from PIL import Image

import gradxform as gx

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(0)
ROOM = (50, 70)
SIZES = [(50, 70), (33, 37), (32, 48), (17, 4), (8, 5), (1, 1), (2, 6), (31, 33), (16, 3), (49, 65)]
QUALITIES = [75, 1, 100, 50, 10, 30, 90, 95, 60, 5]


def pillow(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    gray = image.shape[-1] == 1
    Image.fromarray(image[..., 0] if gray else image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


@pytest.mark.parametrize("channels", [3, 1])
def test_jpeg_is_pillows_to_the_bit(channels: int) -> None:
    """Images of several sizes in one batch, half of them noise, whose levels leave the range."""
    images = [
        (
            oracles.photograph("china.jpg", *size)
            if i % 2
            else np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        )
        for i, size in enumerate(SIZES)
    ]
    images = [image[..., :channels] for image in images]
    padded = np.stack([np.pad(x, ((0, ROOM[0] - x.shape[0]), (0, ROOM[1] - x.shape[1]), (0, 0))) for x in images])
    params = {"quality": jnp.array(QUALITIES, jnp.int32)}
    got = A.jpeg((1, 100)).apply(params, {"image": padded, "size": np.array(SIZES)})["image"]
    for one, image, quality in zip(np.asarray(got), images, QUALITIES, strict=True):
        height, width = image.shape[:2]
        np.testing.assert_array_equal(one[:height, :width], pillow(image, quality), f"{image.shape} at {quality}")


def test_jpeg_of_floats_is_that_of_their_levels() -> None:
    image = oracles.photograph("flower.jpg", 24, 29)
    got = A.jpeg(40)(KEY, (image / 255).astype(np.float32))
    np.testing.assert_allclose(got, pillow(image, 40) / 255, atol=1e-6)


def test_what_jpeg_draws() -> None:
    drawn = np.asarray(A.jpeg((10, 12)).sample(KEY, (300, 8, 8, 3))["quality"])
    assert (np.bincount(drawn, minlength=13)[10:] > 70).all() and drawn.min() == 10 and drawn.max() == 12


def test_photometric_distort_is_torchvisions() -> None:
    """Each of the five by its own coin, contrast early or late, to the bit."""
    count, image = 24, oracles.photograph("flower.jpg", 24, 32)
    aug = A.random_photometric_distort()
    many = aug.sample(KEY, (2000, 8, 8, 3))
    params = jax.tree.map(lambda x: x[:count], many)
    got: Any = np.asarray(aug.apply(params, np.broadcast_to(image, (count, *image.shape))))
    for i in range(count):
        wanted = image
        for name, factor in steps(jax.tree.map(lambda x, i=i: np.asarray(x[i]), params)):
            wanted = wanted[..., factor] if name == "order" else oracles.pillow(name, wanted, factor)
        np.testing.assert_array_equal(got[i], wanted)
    brightness, (early, _), order = many.tree
    for coin in (brightness[0], early, order[0]):
        assert abs(float(np.mean(coin)) - 0.5) < 4 * 0.5 / np.sqrt(2000)
    for factor, low, high in ((brightness[1][1]["strength"], 0.875, 1.125),):
        assert low <= factor.min() < low + 0.01 and high - 0.01 < factor.max() <= high


def steps(params: Any) -> list[tuple[str, Any]]:
    """The changes of an image in their order."""
    brightness, (late, branches), order = params.tree
    first = branches[int(late)]
    names = ("saturation", "hue", "contrast") if late else ("contrast", "saturation", "hue")
    found = [("brightness", brightness), *zip(names, first, strict=True)]
    done = [(name, one[1][1]["strength"]) for name, one in found if one[0]]
    return done + ([("order", order[1][1]["order"])] if order[0] else [])
