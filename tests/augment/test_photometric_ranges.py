"""Noise, gamma, the order of channels, numbers drawn between bounds, normalization: and what may stand behind it."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import photometric_oracles as oracles
import pytest
import scipy.stats

import gradxform as gx
from gradxform.augment.photometry.normalize import PRESETS
from gradxform.augment.pixels import color, tone

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(5)
IMAGES = np.stack([np.roll(oracles.photograph("china.jpg", 24, 32), i, 0) for i in range(8)])
FLOATS = (IMAGES / 255).astype(np.float32)
MANY = 4000


def draws(aug: Any, name: str) -> np.ndarray:
    return np.asarray(aug.sample(KEY, (MANY, 4, 4, 3))[name])


def assert_uniform(x: np.ndarray, low: float, high: float) -> None:
    assert low <= x.min() and x.max() <= high
    assert scipy.stats.kstest(x, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_noise_is_normal_and_each_values_own() -> None:
    aug = A.gaussian_noise(0.25, clip=False)
    params = aug.sample(KEY, FLOATS.shape)
    noise = np.asarray(aug.apply(params, FLOATS), np.float64) - FLOATS
    assert scipy.stats.kstest(noise.ravel(), scipy.stats.norm(0, 0.25).cdf).pvalue > 1e-3
    correlated = np.corrcoef(np.moveaxis(noise, 3, 1).reshape(24, -1)) - np.eye(24)  # images and channels
    assert np.abs(correlated).max() < 5 / np.sqrt(noise[0, ..., 0].size)
    # With the same draws the cut ones are those, and 8-bit levels the nearest to them.
    cut = np.asarray(A.gaussian_noise(0.25).apply(params, FLOATS))
    np.testing.assert_allclose(cut, np.clip(FLOATS + noise, 0, 1), rtol=0, atol=1e-6)
    assert (cut == 0).any() and (cut == 1).any()
    levels = np.clip(IMAGES + 255 * noise, 0, 255)
    off = np.abs(np.asarray(aug.apply(params, IMAGES), np.float64) - levels)
    assert off.max() < 0.5 + 1e-3


def test_noise_of_a_deviation_of_each_images_own() -> None:
    aug = A.gaussian_noise((0.0, 0.2), clip=False)
    std = draws(aug, "std")
    assert_uniform(std, 0.0, np.float32(0.2))
    params = aug.sample(KEY, FLOATS.shape)
    found = (np.asarray(aug.apply(params, FLOATS)) - FLOATS).std((1, 2, 3))
    np.testing.assert_allclose(found, params["std"], rtol=0.08, atol=1e-6)


def test_gamma_is_torchvisions_table() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for gamma in (0.2, 0.5, 0.8, 1.0, 1.25, 2.2, 5.0):
        exact = 255.999 * (np.arange(256) / 255) ** np.float64(np.float32(gamma))
        got = np.asarray(jax.jit(tone.gamma)([jnp.asarray(levels[..., 0], jnp.int32)], gamma)[0]).ravel()
        near = np.abs(exact - np.round(exact)) < 1e-3
        np.testing.assert_array_equal(got[~near], exact[~near].astype(int))
        assert np.abs(got - exact).max() < 1 + 1e-3
        assert (near[1:-1] & (exact[1:-1] > 1)).sum() < 6 or gamma == 1.0
    np.testing.assert_array_equal(A.random_gamma(1.0)(KEY, levels), levels)
    got = A.random_gamma(2.2)(KEY, FLOATS)
    np.testing.assert_allclose(got, FLOATS.astype(np.float64) ** 2.2, rtol=0, atol=2e-6)
    slope = jax.grad(lambda x: A.random_gamma(0.5).apply({}, x).sum())(jnp.zeros((1, 1, 1)))
    assert slope == 0  # and not NaN


def test_gamma_is_uniform_by_its_logarithm() -> None:
    aug = A.random_gamma((0.5, 2.0))
    assert_uniform(np.log2(draws(aug, "gamma")), -1 - 1e-6, 1 + 1e-6)
    gamma = np.asarray(aug.sample(KEY, FLOATS.shape)["gamma"], np.float64)
    np.testing.assert_allclose(aug(KEY, FLOATS), FLOATS.astype(np.float64) ** gamma[:, None, None, None], atol=2e-6)


@pytest.mark.parametrize("channels", [3, 6])
def test_channels_in_any_order(channels: int) -> None:
    aug, rng = A.channel_shuffle(), np.random.default_rng(0)
    for image in (rng.integers(0, 256, (5, 4, 6, channels), np.uint8), rng.normal(size=(5, 4, 6, channels))):
        image = image if image.dtype == np.uint8 else image.astype(np.float32)
        params = aug.sample(KEY, image.shape)
        got = jax.jit(aug.apply)(params, image)  # not in [0, 1]: any floats
        np.testing.assert_array_equal(got, np.take_along_axis(image, params["order"][:, None, None], 3))
    if channels == 3:
        orders = list(map(tuple, draws(aug, "order").tolist()))
        counts = [orders.count(order) for order in itertools.permutations(range(3))]
        assert sum(counts) == MANY and scipy.stats.chisquare(counts).pvalue > 1e-3


BETWEEN = {
    "posterize": (A.posterize((2, 5)), "bits"),
    "solarize": (A.solarize((20.0, 230.0)), "threshold"),
    "sharpness": (A.sharpness((0.0, 3.0)), "factor"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_numbers_between_bounds(name: str) -> None:
    """Uniform, and each image is Pillow's with the number that was drawn for it."""
    aug, number = BETWEEN[name]
    if name == "posterize":
        counts = np.bincount(draws(aug, number), minlength=6)
        assert counts[:2].sum() == 0 and scipy.stats.chisquare(counts[2:]).pvalue > 1e-3
    else:
        assert_uniform(draws(aug, number), *{"threshold": (20, 230), "factor": (0, 3)}[number])
    numbers = np.asarray(aug.sample(KEY, IMAGES.shape)[number])
    assert len(set(numbers.tolist())) > 2
    wanted = [oracles.pillow(name, image, one) for image, one in zip(IMAGES, numbers, strict=True)]
    np.testing.assert_array_equal(aug(KEY, IMAGES), np.stack(wanted))


def test_erased_by_normal_noise() -> None:
    aug = A.chain(A.normalize("imagenet"), A.random_erasing(1.0, scale=(0.3, 0.3), ratio=(1.0, 1.0), fill="normal"))
    plain = np.asarray(A.normalize("imagenet")(KEY, IMAGES))
    got = np.asarray(aug(KEY, IMAGES))
    inside = (np.abs(got - plain) > 1e-4).any(-1)
    np.testing.assert_array_equal(inside.sum((1, 2)), 15**2)
    noise = got[inside]
    assert scipy.stats.kstest(noise.ravel(), scipy.stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / np.sqrt(len(noise))
    with pytest.raises(ValueError, match=r"^fill: expected float images for 'normal'.*got uint8"):
        A.random_erasing(fill="normal")(KEY, IMAGES)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_normalize(name: str) -> None:
    mean, std = PRESETS[name]
    np.testing.assert_array_equal(A.normalize(name)(KEY, FLOATS[0]), A.normalize(mean, std)(KEY, FLOATS[0]))
    assert eval(repr(A.normalize(name)), {"augment": A}) == A.normalize(name) != A.normalize(mean, std)


UNIT = {
    "brightness": A.random_brightness(0.1),
    "jitter": A.color_jitter(0.1, 0.1),
    "equalize": A.equalize(),
    "policy": A.rand_augment(),
    "aug_mix": A.aug_mix(),
    "noise": A.random_erasing(fill="random"),
    "sharpness": A.sharpness((0.5, 2.0)),
    "posterize": A.posterize((3, 8)),
    "normalize": A.normalize("half"),
    "nested": A.random_apply(A.chain(A.random_flip_left_right(), A.random_gamma())),
}


@pytest.mark.parametrize("name", UNIT)
def test_behind_normalize_nothing_needs_the_unit_range(name: str) -> None:
    """It would be cut to [0, 1]; the error names both."""
    for first in (A.normalize("half"), A.random_apply(A.normalize("half")), A.gaussian_noise(0.1, clip=False)):
        with pytest.raises(ValueError) as caught:
            A.chain(A.random_crop(8), first, A.random_grayscale(), UNIT[name])
        assert str(caught.value).startswith("augmentations[3]: ")
        assert repr(first) in str(caught.value) and repr(UNIT[name]) in str(caught.value)
    A.chain(A.chain(UNIT[name] if name != "normalize" else A.invert()), A.normalize("half"))


def test_what_stands_behind_normalize_does_not_cut() -> None:
    """Moved by weights that add up to 1, values are the same before and behind."""
    norm, moves, image = A.normalize("imagenet"), (A.resize((12, 12)), A.random_rotation(20, border="edge")), FLOATS[0]
    got = np.asarray(A.chain(norm, *moves)(KEY, image))
    assert got.min() < -1 and got.max() > 1.5
    params = A.chain(norm, *moves).sample(KEY, image.shape)
    np.testing.assert_allclose(got, norm(KEY, A.chain(*moves).apply(params[1:], image)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 5])
def test_contrast_of_any_number_of_channels(channels: int) -> None:
    """About the mean of all of them; brightness knows no channels at all."""
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (7, 9, channels), np.uint8)
    for x, top in ((image, 255.0), ((image / 255).astype(np.float32), 1.0)):
        planes = [jnp.asarray(x[..., i], jnp.int32 if top == 255 else jnp.float32) for i in range(channels)]
        got = np.stack(jax.jit(color.contrast)(planes, 1.7), -1)
        mean = np.floor(image.mean() + 0.5) if top == 255 else x.astype(np.float64).mean()
        wanted = np.clip(mean + np.float32(1.7) * (x.astype(np.float64) - mean), 0, top)
        np.testing.assert_allclose(got, np.floor(wanted + 1e-4) if top == 255 else wanted, rtol=0, atol=2e-6)
    assert A.random_contrast(0.5)(KEY, image).shape == A.random_brightness(0.5)(KEY, image).shape == image.shape


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: A.gaussian_noise(-0.1), ValueError, "std: .*>= 0"),
        (lambda: A.gaussian_noise((0.2, 0.1)), ValueError, "std: .*lower bound first"),
        (lambda: A.gaussian_noise(clip=1), TypeError, "clip: .*bool"),
        (lambda: A.random_gamma(0.0), ValueError, "gamma: .*> 0"),
        (lambda: A.posterize((3, 9)), ValueError, "bits: .*<= 8"),
        (lambda: A.posterize((3, 4.5)), TypeError, "bits: .*integer"),
        (lambda: A.posterize((5, 3)), ValueError, "bits: .*lower bound first"),
        (lambda: A.solarize((0.0, 300.0)), ValueError, "threshold: .*<= 256"),
        (lambda: A.sharpness("strong"), TypeError, "factor: "),
        (lambda: A.normalize("mnist"), ValueError, "mean: .*'imagenet'.*'mnist'"),
        (lambda: A.normalize("half", 0.5), ValueError, "std: expected none.*'half'"),
        (lambda: A.normalize(0.5), TypeError, "std: .*got None"),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
