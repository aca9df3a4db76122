"""3-Augment, BYOL's views, Google's preset in proportion: the papers' probabilities and ranges, and step by step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import photometric_oracles as oracles
import pytest
import scipy.stats

import gradxform as gx
from gradxform.augment.policies import presets

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(2)
COUNT = 3000
IMAGE = oracles.photograph("flower.jpg", 24, 32)
NAMES = ("brightness", "contrast", "saturation", "hue")


def assert_share(hits: Any, share: float) -> None:
    hits = np.asarray(hits)
    assert abs(hits.mean() - share) <= 4 * np.sqrt(share * (1 - share) / hits.size)


def assert_uniform(x: Any, low: float, high: float) -> None:
    assert scipy.stats.kstest(np.asarray(x), scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4


def jittered(image: np.ndarray, params: Any) -> np.ndarray:
    for step in np.asarray(params["order"]):
        image = oracles.pillow(NAMES[step], image, np.asarray(params["strengths"][step]))
    return image


def test_three_augment() -> None:
    aug = A.three_augment()
    flip, (which, (_, _, blur)), jitter = aug.sample(KEY, (COUNT, 8, 8, 3))
    assert_share(flip[0]["flip"], 0.5)
    assert scipy.stats.chisquare(np.bincount(which)).pvalue > 1e-4 and len(np.bincount(which)) == 3
    assert_uniform(blur["sigma"], 0.1, 2.0)
    assert len(jitter["strengths"]) == 3
    for factor in jitter["strengths"]:
        assert_uniform(factor, 0.7, 1.3)
    flip, (_, each), jitter = aug.sample(KEY, IMAGE.shape)
    start = IMAGE[:, ::-1] if flip[0]["flip"] else IMAGE
    blurred = np.asarray(A.gaussian_blur((0.1, 2.0)).apply(each[2], start))
    for i, one in enumerate((oracles.pillow("grayscale", start), oracles.pillow("solarize", start, 128), blurred)):
        got = aug.apply((flip, (jnp.int32(i), each), jitter), IMAGE)
        np.testing.assert_array_equal(got, jittered(one, jitter))


def test_byol_views() -> None:
    aug = A.byol_views(40)
    first, second = aug.sample(KEY, (COUNT, 48, 48, 3))
    for (crop, flip), (jitters, (_, jitter)), gray, *_ in (first, second):
        area = np.asarray(crop["height"] * crop["width"]) / 48**2
        assert area.min() < 0.1 and area.max() > 0.9
        assert_share(flip["flip"], 0.5)
        assert_share(jitters, 0.8)
        assert_share(gray["gray"], 0.2)
        for x, low, high in zip(jitter["strengths"], (0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1), strict=True):
            assert_uniform(x, low, high)
    assert len(first) == 4 and len(second) == 5
    assert_uniform(first[3]["sigma"], 0.1, 2.0)
    (blurs, (_, blur)), (solarizes, _) = second[3:]
    assert_uniform(blur["sigma"], 0.1, 2.0)
    assert_share(blurs, 0.1)
    assert_share(solarizes, 0.2)
    assert abs(np.corrcoef(first[3]["sigma"], blur["sigma"])[0, 1]) < 4 / np.sqrt(COUNT)
    assert len(A.byol_views(16).sample(KEY, (20, 20, 3))[0]) == 3  # a tenth of 16 is no kernel


@pytest.mark.exhaustive
def test_byol_views_are_their_steps() -> None:
    """With every step of the second view done: crop, flip, jitter, gray, blur, solarized."""
    aug = A.byol_views(24)
    params = aug.sample(KEY, IMAGE.shape)
    (crop, flip), (_, jitter), gray, (_, blur), (_, solar) = params[1]
    one = jnp.int32(1)
    got = aug.apply((params[0], ((crop, flip), (one, jitter), gray, (one, blur), (one, solar))), IMAGE)
    image = np.asarray(A.random_resized_crop(24).apply((crop,), IMAGE))
    image = jittered(image[:, ::-1] if flip["flip"] else image, jitter[1])
    image = oracles.pillow("grayscale", image) if gray["gray"] else image
    image = np.asarray(A.gaussian_blur((0.1, 2.0), kernel_size=3).apply(blur[1], image))
    np.testing.assert_array_equal(got[1], oracles.pillow("solarize", image, 128))
    assert np.any(np.asarray(got[0]) != got[1])


def test_googles_pixels_in_proportion_to_the_size() -> None:
    """The same for images of 224; of 32 a seventh, where as published 90 pixels leave nothing."""

    def numbers(scaled: bool, shape: tuple[int, int, int]) -> dict[str, float]:
        level, one = jnp.float32(0.9), jnp.float32(1.0)
        return {entry.name: float(entry.number(level, one, shape)) for entry in presets.google(scaled).entries}

    published = numbers(False, (32, 64, 3))
    assert [published[name] for name in ("translate_x", "translate_y", "cutout")] == [90.0, 90.0, 36.0]
    assert published == numbers(False, (224, 224, 3)) == numbers(True, (224, 224, 3))
    scaled = numbers(True, (32, 64, 3))
    np.testing.assert_allclose(
        [scaled.pop(name) for name in ("translate_x", "translate_y", "cutout")],
        [90 * 64 / 224, 90 * 32 / 224, 5],
        rtol=1e-6,
    )
    assert scaled == {name: published[name] for name in scaled}
    taken = [
        A.rand_augment(preset="google", scaled=one)
        .stage.preset.entries[-1]
        .number(jnp.float32(0.9), jnp.float32(1), (32, 64, 3))
        for one in (False, True)
    ]
    assert [float(one) for one in taken] == [36.0, 5.0]
