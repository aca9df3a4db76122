"""Augmentations of colour and tone, and erased rectangles: what is drawn, and that each draw is applied as it is."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import photometric_oracles as oracles
import pytest
import scipy.stats

from gradxform.augment.augmentation import Augmentation
from gradxform.augment.photometry import erase, jitter, levels, normalize

pytestmark = pytest.mark.long

MANY = 4000
IMAGES = np.stack([np.roll(oracles.photograph("china.jpg", 32, 32), i, 0) for i in range(6)])
FLOATS = (IMAGES / 255).astype(np.float32)
KEY = jax.random.key(7)

FIXED: dict[str, tuple[Augmentation, Any]] = {
    "sharpness": (levels.sharpness(1.7), lambda x: oracles.pillow("sharpness", x, 1.7)),
    "equalize": (levels.equalize(), lambda x: oracles.pillow("equalize", x)),
    "autocontrast": (levels.autocontrast(), lambda x: oracles.pillow("autocontrast", x)),
    "invert": (levels.invert(), lambda x: oracles.pillow("invert", x)),
    "posterize": (levels.posterize(3), lambda x: oracles.pillow("posterize", x, 3)),
    "solarize": (levels.solarize(100.5), lambda x: oracles.pillow("solarize", x, 100.5)),
}
RANDOM: dict[str, Augmentation] = {
    "color_jitter": jitter.color_jitter(0.8, 0.8, (0.2, 1.8), 0.2),
    "one jitter": jitter.color_jitter(hue=0.3),
    "random_brightness": jitter.random_brightness(0.4),
    "random_contrast": jitter.random_contrast(0.4),
    "random_saturation": jitter.random_saturation(0.4),
    "random_hue": jitter.random_hue(0.2),
    "random_grayscale": jitter.random_grayscale(0.5),
    "gaussian_blur": levels.gaussian_blur((0.1, 1.0)),
    "cutout": erase.cutout(9),
    "random_erasing": erase.random_erasing(0.6, fill=(0.2, 0.5, 1.0)),
    "noise": erase.random_erasing(0.6, fill="random"),
}
ALL = RANDOM | {name: aug for name, (aug, _) in FIXED.items()}


def draws(aug: Augmentation, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0) -> Any:
    # Numbers as arrays: one compiled program serves all of a factory's augmentations.
    aug = jax.tree.map(jnp.float32, aug)
    return jax.tree.map(np.asarray, aug.sample(jax.random.key(seed), (MANY, *shape)))


def assert_uniform_between(x: np.ndarray, low: float, high: float) -> None:
    assert low <= x.min() and x.max() <= high
    assert scipy.stats.kstest(x, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def assert_even(counts: Any) -> None:
    assert scipy.stats.chisquare(np.asarray(counts)).pvalue > 1e-3


def assert_share(hits: Any, p: float) -> None:
    hits = np.asarray(hits)
    assert abs(hits.mean() - p) <= 4 * np.sqrt(p * (1 - p) / hits.size)


def assert_independent(*numbers: np.ndarray) -> None:
    for a, b in itertools.combinations(numbers, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))


@pytest.mark.parametrize("name", FIXED)
def test_fixed_ones_do_what_the_kernel_does_whatever_the_key(name: str) -> None:
    aug, rule = FIXED[name]
    got = aug(KEY, jnp.asarray(IMAGES))
    np.testing.assert_array_equal(got, np.stack([rule(image) for image in IMAGES]))
    np.testing.assert_array_equal(got, aug(jax.random.key(8), jnp.asarray(IMAGES)))
    assert jax.tree.leaves(aug.sample(KEY, IMAGES.shape)) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float_dtypes_stay(dtype: str) -> None:
    """The result is that of float32, rounded once."""
    x = jnp.asarray(FLOATS[0], dtype)
    for name in ("random_contrast", "gaussian_blur", "random_erasing", "equalize"):
        aug = ALL[name]
        got = aug(KEY, x)
        assert got.dtype == x.dtype and got.shape == x.shape, name
        np.testing.assert_array_equal(got, aug(KEY, x.astype(jnp.float32)).astype(dtype), err_msg=name)
        assert got.min() >= 0 and got.max() <= 1, name


@pytest.mark.parametrize(
    "aug",
    [
        jitter.color_jitter(0.8, contrast=(0.2, 1.8)),
        jitter.color_jitter(hue=0.3),
        levels.gaussian_blur((0.1, 1.0), 5),
        erase.random_erasing(0.6, fill="random"),
        levels.equalize(),
    ],
    ids=repr,
)
def test_all_ways_through_a_batch_are_one(aug: Augmentation) -> None:
    """Also one image alone, and params that were drawn before."""
    x = jnp.asarray(IMAGES)
    wanted = np.asarray(aug(KEY, x))
    for batching in ("map", "vmap"):
        np.testing.assert_array_equal(aug(KEY, x, batching=batching), wanted, err_msg=batching)
    params = aug.sample(KEY, x.shape)
    np.testing.assert_array_equal(aug.apply(params, x), wanted)
    first = jax.tree.map(lambda leaf: leaf[0], params)
    np.testing.assert_array_equal(aug.apply(first, x[0]), wanted[0])


@pytest.mark.parametrize("name", ALL)
def test_it_is_a_value(name: str) -> None:
    aug = ALL[name]
    assert pickle.loads(pickle.dumps(aug)) == aug
    assert jax.tree.map(lambda x: x, aug) == aug


def test_only_the_image_changes() -> None:
    inputs = {
        "image": jnp.asarray(IMAGES),
        "mask": jnp.ones((6, 32, 32), jnp.int32),
        "boxes": jnp.full((6, 2, 4), 3.0),
        "keypoints": jnp.full((6, 5, 2), 3.0),
        "label": jnp.arange(6),
    }
    for name in ("cutout", "invert"):
        got = ALL[name](KEY, inputs)
        assert not jnp.array_equal(got["image"], inputs["image"])
        for other in set(inputs) - {"image"}:
            np.testing.assert_array_equal(got[other], inputs[other])


def test_jitter_is_the_enhancers_one_after_another() -> None:
    """The draws of each image applied by Pillow in the drawn order."""
    aug = RANDOM["color_jitter"]
    x = np.concatenate([IMAGES] * 3)
    params = aug.sample(KEY, x.shape)
    got = np.asarray(aug.apply(params, jnp.asarray(x)))
    names = ("brightness", "contrast", "saturation", "hue")
    assert len(set(map(tuple, np.asarray(params["order"]).tolist()))) > 9
    for i, image in enumerate(x):
        for step in np.asarray(params["order"][i]):
            image = oracles.pillow(names[step], image, np.asarray(params["strengths"][step])[i])
        np.testing.assert_array_equal(got[i], image)


def test_jitter_of_floats_is_cut_after_each_step() -> None:
    aug = RANDOM["color_jitter"]
    params = aug.sample(KEY, FLOATS.shape)
    got = np.asarray(aug.apply(params, jnp.asarray(FLOATS)))
    names = ("brightness", "contrast", "saturation", "hue")
    for i, image in enumerate(FLOATS.astype(np.float64)):
        for step in np.asarray(params["order"][i]):
            image = oracles.expected(names[step], image, np.asarray(params["strengths"][step])[i])
        np.testing.assert_allclose(got[i], image, rtol=0, atol=3e-6)


def test_what_jitter_draws() -> None:
    params = draws(jitter.color_jitter(0.8, 1.5, (0.5, 3.0), 0.2))
    orders = list(map(tuple, params["order"].tolist()))
    assert_even([orders.count(order) for order in itertools.permutations(range(4))])
    for x, low, high in zip(params["strengths"], (0.2, 0.0, 0.5, -0.2), (1.8, 2.5, 3.0, 0.2), strict=True):
        assert_uniform_between(x, np.float32(low), np.float32(high))
    assert_independent(*params["strengths"], params["order"][:, 0])


def test_jitter_leaves_out_what_has_no_strength() -> None:
    """And draws the rest as it would with all of them."""
    whole, some = (
        jax.tree.map(np.asarray, aug.sample(KEY, (500, 8, 8, 3)))
        for aug in (
            jitter.color_jitter(0.4, 0.3, 0.2, 0.1),
            jitter.color_jitter(contrast=0.3, saturation=(1.0, 1.0), hue=0.1),
        )
    )
    assert len(some["strengths"]) == 2
    np.testing.assert_array_equal(some["strengths"][0], whole["strengths"][1])
    np.testing.assert_array_equal(some["strengths"][1], whole["strengths"][3])
    hue_first = np.argmax(whole["order"] == 3, 1) < np.argmax(whole["order"] == 1, 1)
    np.testing.assert_array_equal(some["order"][:, 0], hue_first)
    np.testing.assert_array_equal(jitter.color_jitter()(KEY, jnp.asarray(IMAGES)), IMAGES)
    assert jitter.color_jitter()(KEY, jnp.asarray(IMAGES[..., :2])).shape[-1] == 2


def test_a_traced_strength_of_0_leaves_out_too() -> None:
    """An array among the numbers makes all of them traced; a hue turned by 0 would not be the hue that it was."""
    for x in (jnp.asarray(IMAGES), jnp.asarray(FLOATS)):
        np.testing.assert_array_equal(jitter.color_jitter(jnp.float32(0.0))(KEY, x), x)


@pytest.mark.parametrize(
    ("factory", "amount", "low", "high"),
    [
        (jitter.random_brightness, 0.4, 0.6, 1.4),
        (jitter.random_contrast, 1.5, 0.0, 2.5),
        (jitter.random_saturation, (0.5, 0.75), 0.5, 0.75),
        (jitter.random_hue, 0.3, -0.3, 0.3),
        (jitter.random_hue, (0.1, 0.5), 0.1, 0.5),
    ],
)
def test_single_changes(factory: Any, amount: Any, low: float, high: float) -> None:
    assert_uniform_between(draws(factory(amount))["strength"], np.float32(low), np.float32(high))
    aug = factory(amount)
    name = aug.name.removeprefix("augment.").removeprefix("random_")
    strengths = aug.sample(KEY, IMAGES.shape)["strength"]
    wanted = [oracles.pillow(name, image, np.asarray(s)) for image, s in zip(IMAGES, strengths, strict=True)]
    np.testing.assert_array_equal(aug(KEY, jnp.asarray(IMAGES)), np.stack(wanted))


@pytest.mark.parametrize("p", [0.1, 0.75, 0.0, 1.0])
def test_gray_for_a_share_of_the_images(p: float) -> None:
    gray = draws(jitter.random_grayscale(p))["gray"]
    assert_share(gray, p) if 0 < p < 1 else np.testing.assert_array_equal(gray, bool(p))
    got = np.asarray(jitter.random_grayscale(p)(KEY, jnp.asarray(IMAGES)))
    for image, result, is_gray in zip(
        IMAGES, got, jitter.random_grayscale(p).sample(KEY, IMAGES.shape)["gray"], strict=True
    ):
        np.testing.assert_array_equal(result, oracles.pillow("grayscale", image) if is_gray else image)


def test_the_blur_draws_a_sigma_for_each_image() -> None:
    sigma = draws(levels.gaussian_blur((0.5, 2.0), kernel_size=3))["sigma"]
    assert_uniform_between(sigma, 0.5, 2.0)
    assert not levels.gaussian_blur(1.5).sample(KEY, (32, 32, 3))
    image = jnp.zeros((41, 41, 1)).at[20, 20].set(1)
    row = levels.gaussian_blur((0.1, 2.0))(KEY, image)[20, :, 0]
    assert row[12] > 0 and row[11] == 0  # four times the largest sigma
    row = levels.gaussian_blur(2.0, kernel_size=5)(KEY, image)[20, :, 0]
    assert row[18] > 0 and row[17] == 0
    assert float(row[19] / row[20]) == pytest.approx(np.exp(-0.125), rel=1e-5)


def test_normalize() -> None:
    aug = normalize.normalize((0.5, 0.25, 0.0), (0.5, 2.0, 1.0))
    wanted = (IMAGES / 255 - [0.5, 0.25, 0.0]) / [0.5, 2.0, 1.0]
    for x in (IMAGES, FLOATS):
        got = aug(KEY, jnp.asarray(x))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert aug(KEY, jnp.asarray(FLOATS, jnp.bfloat16)).dtype == jnp.bfloat16
    one = normalize.normalize(0.5, 0.25)(KEY, jnp.asarray(IMAGES[0, ..., :1]))
    np.testing.assert_allclose(one, (IMAGES[0, ..., :1] / 255 - 0.5) / 0.25, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="mean: expected a number or one for each of the 1 channels, got 3"):
        aug(KEY, jnp.asarray(IMAGES[..., :1]))


def boxes_of(params: Any, height: Any, width: Any) -> np.ndarray:
    return np.stack([params["top"], params["left"], params["top"] + height, params["left"] + width])


@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_cutout_is_a_square_about_any_pixel(size: int) -> None:
    aug = erase.cutout(size, fill=0.5)
    params = draws(aug, (8, 6, 3))
    centres = 6 * (params["top"] + size // 2) + params["left"] + size // 2
    assert_even(np.bincount(centres, minlength=48))
    white = jnp.ones((48, 8, 6, 1))
    rows, columns = (x.ravel() for x in np.indices((8, 6)))
    params = {"top": jnp.asarray(rows - size // 2), "left": jnp.asarray(columns - size // 2)}
    got = np.asarray(aug.apply(params, white))[..., 0]
    for image, row, column in zip(got, rows, columns, strict=True):
        i, j = np.arange(8)[:, None] - row + size // 2, np.arange(6)[None] - column + size // 2
        np.testing.assert_array_equal(image, np.where((i >= 0) & (i < size) & (j >= 0) & (j < size), 0.5, 1.0))


def test_erasing_has_the_areas_and_ratios_asked_for() -> None:
    height, width = 1000, 800
    params = draws(erase.random_erasing(0.3), (height, width, 3))
    hit = params["height"] > 0
    assert_share(hit, 0.3)
    boxes = boxes_of(params, params["height"], params["width"])[:, hit]
    assert (boxes >= 0).all() and (boxes[2] <= height).all() and (boxes[3] <= width).all()
    h, w = params["height"][hit], params["width"][hit]
    assert (h * w / (height * width)).min() > 0.0195 and (h * w / (height * width)).max() < 0.3305
    assert (h / w).min() > 0.299 and (h / w).max() < 3.31
    # These all fit, so that nothing is drawn again.
    params = draws(erase.random_erasing(1.0, scale=(0.02, 0.2), ratio=(0.5, 2.0)), (height, width, 3))
    h, w = params["height"].astype(float), params["width"].astype(float)
    area, ratio = (h * w / (height * width) - 0.02) / 0.18, np.log2(h / w)
    assert_uniform_between(0.01 + 0.98 * area, 0, 1)  # the sides are rounded to pixels
    assert_uniform_between(0.98 * ratio, -1, 1)
    top, left = params["top"] / (height + 1 - h), params["left"] / (width + 1 - w)
    assert_uniform_between(top, 0, 1)
    assert_uniform_between(left, 0, 1)
    assert_independent(area, ratio, top, left)


def test_what_does_not_fit_is_not_erased() -> None:
    params = draws(erase.random_erasing(1.0, scale=(1.0, 1.0)))
    assert (params["height"] == 0).all() and (params["width"] == 0).all()
    x = jnp.asarray(IMAGES)
    for fill in (0.0, "random"):
        np.testing.assert_array_equal(erase.random_erasing(1.0, scale=(1.0, 1.0), fill=fill)(KEY, x), x)
    # A quarter of the area fits up to a ratio of 3.96, where the height rounds to 100; ten draws are made.
    params = draws(erase.random_erasing(1.0, scale=(0.25, 0.25), ratio=(3.9, 40.0)), (100, 100, 1))
    fits = np.log(3.9601 / 3.9) / np.log(40 / 3.9)
    assert_share(params["height"] == 0, (1 - fits) ** 10)


def test_what_is_erased_is_filled() -> None:
    for fill, values in ((0.0, (0, 0, 0)), ((0.2, 0.5, 1.0), (51, 128, 255))):
        aug = erase.random_erasing(1.0, fill=fill)
        params = aug.sample(KEY, IMAGES.shape)
        for x, scale in ((IMAGES, 1), (FLOATS, 255)):
            got = np.asarray(aug.apply(params, jnp.asarray(x)))
            for i in range(len(x)):
                wanted = x[i].copy()
                top, left, below, right = boxes_of(params, params["height"], params["width"])[:, i]
                wanted[top:below, left:right] = np.array(values if scale == 1 else fill)
                np.testing.assert_array_equal(got[i], wanted)


def test_noise_is_uniform_and_each_images_own() -> None:
    aug = erase.random_erasing(1.0, scale=(0.3, 0.3), ratio=(1.0, 1.0), fill="random")
    for dtype, low, high in ((jnp.uint8, -0.5, 255.5), (jnp.float32, 0.0, 1.0)):
        black = jnp.zeros((20, 32, 32, 3), dtype)
        params = aug.sample(KEY, black.shape)
        got = np.asarray(aug.apply(params, black), np.float64)
        inside = np.stack(
            [
                got[i, top:below, left:right]
                for i, (top, left, below, right) in enumerate(boxes_of(params, params["height"], params["width"]).T)
            ]
        )
        assert (got != 0).sum() == (inside != 0).sum()
        spread = np.random.default_rng(0).uniform(-0.5, 0.5, inside.size) if dtype == jnp.uint8 else 0
        assert_uniform_between(inside.ravel() + spread, low, high)
        assert_independent(*inside.reshape(20, -1)[:5])  # images
        assert_independent(*inside.reshape(-1, 3).T)  # channels


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: jitter.color_jitter(brightness=-0.1), ValueError, "brightness: .*>= 0.*-0.1"),
        (lambda: jitter.color_jitter(contrast=(0.5,)), TypeError, "contrast: .*pair"),
        (lambda: jitter.color_jitter(saturation=(1.5, 0.5)), ValueError, "saturation: .*lower bound first"),
        (lambda: jitter.color_jitter(hue=0.6), ValueError, "hue: .*<= 0.5.*0.6"),
        (lambda: jitter.color_jitter(hue=(-0.6, 0.1)), ValueError, "hue: .*>= -0.5.*-0.6"),
        (lambda: jitter.color_jitter("strong"), TypeError, "brightness: .*real number.*'strong'"),
        (lambda: jitter.random_brightness(-1), ValueError, "amount: .*>= 0"),
        (lambda: jitter.random_contrast(None), TypeError, "amount: "),
        (lambda: jitter.random_saturation((0.5, -1)), ValueError, "amount: .*>= 0"),
        (lambda: jitter.random_hue(1), ValueError, "amount: .*<= 0.5"),
        (lambda: jitter.random_grayscale(1.5), ValueError, "p: .*<= 1.*1.5"),
        (lambda: levels.gaussian_blur(-1.0), ValueError, "sigma: .*>= 0"),
        (lambda: levels.gaussian_blur((2.0, 0.1)), ValueError, "sigma: .*lower bound first"),
        (lambda: levels.gaussian_blur(1.0, kernel_size=4), ValueError, "kernel_size: .*odd.*4"),
        (lambda: levels.gaussian_blur(1.0, kernel_size=0), ValueError, "kernel_size: .*>= 1"),
        (lambda: levels.gaussian_blur(1.0, kernel_size=2.5), TypeError, "kernel_size: .*integer"),
        (lambda: levels.gaussian_blur(jnp.float32(1)), TypeError, "kernel_size: .*sigma"),
        (lambda: levels.sharpness(-1), ValueError, "factor: .*>= 0"),
        (lambda: levels.posterize(9), ValueError, "bits: .*<= 8.*9"),
        (lambda: levels.posterize(2.5), TypeError, "bits: .*integer"),
        (lambda: levels.solarize(257), ValueError, "threshold: .*<= 256"),
        (lambda: normalize.normalize(None, 1.0), TypeError, "mean: "),
        (lambda: normalize.normalize(0.5, (1.0, 0.0)), ValueError, "std: .*> 0"),
        (lambda: erase.cutout(0), ValueError, "size: .*>= 1"),
        (lambda: erase.cutout(2.0), TypeError, "size: .*integer"),
        (lambda: erase.cutout(2, fill=2), ValueError, "fill: .*<= 1"),
        (lambda: erase.random_erasing(-0.5), ValueError, "p: .*>= 0"),
        (lambda: erase.random_erasing(scale=(0.5, 1.5)), ValueError, "scale: .*<= 1"),
        (lambda: erase.random_erasing(ratio=(0.0, 1.0)), ValueError, "ratio: .*> 0"),
        (lambda: erase.random_erasing(ratio=3.0), TypeError, "ratio: .*pair"),
        (lambda: erase.random_erasing(fill="white"), ValueError, "fill: .*'random'.*'white'"),
        (lambda: erase.cutout(2, fill=(0.1, 0.2))(KEY, jnp.ones((4, 4, 3))), ValueError, "fill: .*3 channels, got 2"),
        (lambda: jitter.color_jitter(0.1)(KEY, jnp.ones((4, 4, 2))), ValueError, "image: .*1 channel.*got 2"),
        (lambda: jitter.random_hue(0.1)(KEY, jnp.ones((4, 4, 4))), ValueError, "image: .*1 channel.*got 4"),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


TRACED: dict[str, Any] = {
    "color_jitter": (jitter.color_jitter, (0.8, 0.3)),  # and nothing else
    "random_brightness": (jitter.random_brightness, (0.4,)),
    "random_hue": (jitter.random_hue, (0.4,)),
    "random_grayscale": (jitter.random_grayscale, (0.5,)),
    "gaussian_blur": (lambda sigma: levels.gaussian_blur((0.1, sigma), kernel_size=5), (1.5,)),
    "sharpness": (levels.sharpness, (1.7,)),
    "solarize": (levels.solarize, (100.5,)),
    "random_erasing": (lambda p, least: erase.random_erasing(p, (least, 0.33)), (0.6, 0.02)),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_numbers_give_the_same_and_one_program_serves_all(name: str) -> None:
    make, numbers = TRACED[name]
    traces = 0

    @jax.jit
    def run(key: jax.Array, x: jax.Array, *numbers: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return make(*numbers)(key, x)

    x = jnp.asarray(IMAGES)
    for seed in range(2):
        got = run(jax.random.key(seed), x, *map(jnp.float32, numbers))
        np.testing.assert_array_equal(got, make(*numbers)(jax.random.key(seed), x))
    run(KEY, x, *(jnp.float32(number / 2) for number in numbers))
    assert traces == 1


@pytest.mark.as_in_use
def test_traced_bits() -> None:
    run = jax.jit(lambda x, bits: levels.posterize(bits)(KEY, x))
    for bits in range(9):
        wanted = np.stack([oracles.pillow("posterize", image, bits) for image in IMAGES[:2]])
        np.testing.assert_array_equal(run(jnp.asarray(IMAGES[:2]), jnp.int32(bits)), wanted)


@pytest.mark.parametrize("dtype", [jnp.uint8, pytest.param(jnp.bfloat16, marks=pytest.mark.exhaustive)])
def test_one_export_for_all_platforms(dtype: Any) -> None:
    def everything(key: jax.Array, x: jax.Array) -> jax.Array:
        for name in ("color_jitter", "random_grayscale", "gaussian_blur", "cutout", "noise", *FIXED):
            x = ALL[name](key, x)
        return normalize.normalize(0.5, 0.5)(key, x)

    key = jax.random.PRNGKey(0)
    exported = jax.export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(
        key, jax.ShapeDtypeStruct((2, 16, 16, 3), dtype)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.out_avals[0].dtype == (jnp.float32 if dtype == jnp.uint8 else dtype)
