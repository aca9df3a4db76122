"""Kernels of colour, tone and sharpness: 8-bit images against Pillow to the bit, floats against float64."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import photometric_oracles as oracles
import pytest
import scipy.ndimage
from photometric_oracles import FACTORS, GRAY, IMAGES, SHIFTS, THRESHOLDS
from PIL import Image, ImageOps

from gradxform.augment.pixels import color, filters, histogram, tone
from gradxform.augment.pixels.canvas import Canvas

pytestmark = pytest.mark.long

NUMBERS: dict[str, Any] = {
    "brightness": FACTORS,
    "contrast": FACTORS,
    "saturation": FACTORS,
    "sharpness": FACTORS,
    "hue": SHIFTS,
    "posterize": np.arange(9, dtype=np.int32),
    "solarize": THRESHOLDS,
}
PLAIN = ("grayscale", "invert", "equalize", "autocontrast")
SMALL = ["china 32x32", "flower 57x91", "noise", "one colour", "two levels"]


def assert_equal(got: Any, wanted: Any, what: Any = "") -> None:
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, what
    different = np.argwhere(got != wanted)
    assert not len(different), f"{what}: {len(different)} differ, first at {different[0]}"


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", NUMBERS)
def test_8_bits_are_pillows(name: str) -> None:
    for title, image in (IMAGES | GRAY).items():
        # Every number on the small ones; on the large ones some, so that a loop over many rows is seen, too.
        numbers = NUMBERS[name] if image.shape[0] != 224 else NUMBERS[name][::7]
        for number, got in zip(numbers, oracles.ours(name, image, numbers), strict=True):
            assert_equal(got, oracles.pillow(name, image, number), (name, title, number))


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", PLAIN)
def test_8_bits_without_a_number_are_pillows(name: str) -> None:
    for title, image in (IMAGES | GRAY).items():
        assert_equal(oracles.ours(name, image), oracles.pillow(name, image), (name, title))


@pytest.mark.as_in_use
def test_every_colour_comes_back_from_hue_as_from_pillows() -> None:
    """A grid that meets all sectors and the levels where floats fall short of a whole number."""
    levels = np.unique(np.concatenate([np.arange(0, 256, 6), [1, 17, 51, 85, 127, 128, 170, 204, 254, 255]]))
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(len(levels), -1, 3).astype(np.uint8)
    shifts = np.array([0, 0.25, -0.4], np.float32)
    for shift, got in zip(shifts, oracles.ours("hue", grid, shifts), strict=True):
        assert_equal(got, oracles.pillow("hue", grid, shift), shift)


@pytest.mark.as_in_use
def test_hues_at_whole_levels_are_pillows() -> None:
    """All colours with a spread that divides 255 times six often: whole levels, where Pillow's floats are short."""
    colours = []
    for spread in (15, 17, 51, 60, 75, 85, 90, 102, 150, 170, 180, 204, 240, 255):
        low = np.arange(0, 256 - spread, 5)[:, None]
        values = np.stack(np.broadcast_arrays(low, low + np.arange(spread + 1), low + spread), -1).reshape(-1, 3)
        colours += [values[:, list(order)] for order in itertools.permutations(range(3))]
    image = np.concatenate(colours).astype(np.uint8)[None]
    got = jax.jit(color._to_hsv)([jnp.asarray(image[..., i], jnp.int32) for i in range(3)])
    assert_equal(np.stack(got, -1).astype(np.uint8), np.asarray(Image.fromarray(image).convert("HSV")))


@pytest.mark.as_in_use
def test_autocontrast_of_every_range_is_pillows() -> None:
    """For every least and greatest level, all the levels between: Pillow's table of float64."""
    low, high = (x.astype(np.int32) for x in np.triu_indices(256, 1))
    table = functools.partial(histogram._stretch, jnp.arange(256, dtype=jnp.int32))
    got = np.asarray(jax.jit(jax.vmap(table))(low, high))
    scale = 255.0 / (high - low)
    levels = np.arange(256)
    wanted = np.clip((levels * scale[:, None] + (-low * scale)[:, None]).astype(np.int64), 0, 255)
    between = (levels >= low[:, None]) & (levels <= high[:, None])
    np.testing.assert_array_equal(got[between], wanted[between])
    # And the table is Pillow's: for some of these ranges float64 makes 254 of the greatest level.
    brightest = wanted[np.arange(len(high)), high]
    short = np.flatnonzero(brightest == 254)
    assert 1000 < len(short) < len(high) / 4
    for a, b in [(7, 11), (100, 149), *((low[i], high[i]) for i in short[::400])]:
        image = np.clip(np.arange(256), a, b).astype(np.uint8).reshape(16, 16, 1)
        assert_equal(oracles.ours("autocontrast", image), oracles.pillow("autocontrast", image), (a, b))


@pytest.mark.as_in_use
def test_equalize_of_skewed_and_small_images_is_pillows() -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        skewed = np.floor(256 * rng.random((16, 16, 3)) ** rng.uniform(0.1, 8)).astype(np.uint8)
        assert_equal(oracles.ours("equalize", skewed), oracles.pillow("equalize", skewed), i)
    for levels in (1, 2, 3, 200):  # fewer than 255 pixels besides the brightest: a step of 0
        image = rng.integers(0, levels, (15, 17, 1), np.uint8)
        assert_equal(oracles.ours("equalize", image), oracles.pillow("equalize", image), levels)


def test_a_mean_of_many_pixels_does_not_overflow() -> None:
    """Sums past 32 bits, and a mean that lies just at the half."""
    mean = jax.jit(lambda image: color._rounded_mean(image, *image.shape))
    for level in (127, 255):
        assert int(mean(jnp.full((4200, 4100), level, jnp.int32))) == level
    for ones in (255, 256, 257):  # of 512: means of 100.498, 100.5 and 100.502
        image = np.full(512, 100, np.uint8)
        image[:ones] = 101
        image = image.reshape(16, 32, 1)
        got = oracles.ours("contrast", image, np.zeros(1, np.float32))[0]
        assert np.unique(got) == (101 if ones >= 256 else 100)
        assert_equal(got, oracles.pillow("contrast", image, 0))


def test_solarize_at_every_level() -> None:
    image = oracles.made_up()["ramps"]
    thresholds = np.arange(257, dtype=np.float32)
    for threshold, got in zip(thresholds, oracles.ours("solarize", image, thresholds), strict=True):
        assert_equal(got, from_rule := np.where(image < threshold, image, 255 - image))
        assert from_rule.dtype == np.uint8
    assert_equal(oracles.ours("solarize", image, thresholds[-1:])[0], image)


@pytest.mark.parametrize("title", ["china 57x91", "ramps", "gray noise"])
def test_solarize_add_is_the_policies_table(title: str) -> None:
    image = (IMAGES | GRAY)[title]
    additions = np.array([min(128, int(11 * m)) for m in range(13)], np.int32)
    for threshold in (128, 90):
        got = oracles.ours("solarize_add", image, additions, np.full(13, threshold, np.int32))
        for i, addition in enumerate(additions):
            assert_equal(got[i], oracles.solarize_added(image, int(addition), threshold))
    down = oracles.ours("solarize_add", image, np.array([-50]))[0]
    assert_equal(down, np.where(image < 128, np.clip(image.astype(int) - 50, 0, 255), image).astype(np.uint8))


@pytest.mark.as_in_use
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (9, 2), (3, 3), (3, 20)])
def test_sharpness_of_narrow_images_is_pillows(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    for factor, got in zip(FACTORS[::10], oracles.ours("sharpness", image, FACTORS[::10]), strict=True):
        assert_equal(got, oracles.pillow("sharpness", image, factor))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness", "hue", *PLAIN[:2], PLAIN[3]])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_are_the_formula(name: str, channels: int) -> None:
    rng = np.random.default_rng(4)
    image = rng.random((9, 14, channels)).astype(np.float32)
    image[0, :3] = [[0.5], [0.0], [1.0]]  # gray, black and white among the colours
    if name in NUMBERS:
        numbers = NUMBERS[name][::5]
        for number, got in zip(numbers, oracles.ours(name, image, numbers), strict=True):
            np.testing.assert_allclose(got, oracles.expected(name, image, number), rtol=0, atol=1e-6)
    else:
        np.testing.assert_allclose(oracles.ours(name, image), oracles.expected(name, image), rtol=0, atol=1e-6)


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", ["invert", "posterize", "solarize", "equalize"])
def test_floats_made_of_8_bits_give_what_the_8_bits_give(name: str) -> None:
    """Whichever way they were made: a division or a product, rounded up or down."""
    for title in (*SMALL, "ramps"):
        image = IMAGES[title]
        numbers = (NUMBERS[name][::3],) if name in NUMBERS else ()
        wanted = oracles.ours(name, image, *numbers) / 255
        near = image.astype(np.float32) / 255
        for x in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1))):
            np.testing.assert_allclose(oracles.ours(name, x, *numbers), wanted, rtol=0, atol=1e-6, err_msg=title)


def test_solarize_add_of_floats() -> None:
    image = IMAGES["ramps"]
    additions = np.array([0, 33, 110, -20])
    wanted = oracles.ours("solarize_add", image, additions) / 255
    got = oracles.ours("solarize_add", (image / 255).astype(np.float32), additions)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_a_float_channel_of_one_level_stays() -> None:
    image = np.full((8, 8, 3), (0.1234, 0.0, 1.0), np.float32)
    for name in ("equalize", "autocontrast"):
        assert_equal(oracles.ours(name, image), image)
        assert np.isfinite(oracles.ours(name, image)).all()


@pytest.mark.as_in_use
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("shape", "radius"), [((20, 31, 3), 1), ((20, 31, 3), 11), ((5, 3, 1), 8), ((1, 4, 3), 2)])
def test_the_blur_is_scipys(sigma: float, shape: tuple[int, ...], radius: int) -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, shape, np.uint8)
    wanted = image.astype(np.float64)
    for axis in (0, 1):
        if shape[axis] > 1:  # SciPy's mirror of a single row is one
            wanted = scipy.ndimage.gaussian_filter1d(wanted, sigma, axis=axis, mode="mirror", radius=radius)
    got = blurred(jnp.asarray(image), sigma, radius)
    assert got.dtype == jnp.uint8
    # Rounded to the nearest level, once.
    assert np.abs(np.asarray(got, np.float64) - wanted).max() <= 0.5 + 1e-3
    got = blurred(jnp.asarray(image / 255, jnp.float32), sigma, radius)
    np.testing.assert_allclose(got, wanted / 255, rtol=0, atol=1e-6)


def blurred(image: jax.Array, sigma: Any, radius: int) -> jax.Array:
    canvas = Canvas.of(image)
    return canvas.with_planes(_blur(canvas.planes(), jnp.float32(sigma), radius)).image()


_blur = jax.jit(filters.gaussian_blur, static_argnums=2)


def test_a_blur_of_sigma_0_changes_nothing_and_a_constant_stays() -> None:
    for image in (IMAGES["noise"], IMAGES["one colour"]):
        assert_equal(blurred(jnp.asarray(image), 0.0, 3), image)
    assert_equal(blurred(jnp.asarray(IMAGES["white"]), 2.0, 8), IMAGES["white"])


@pytest.mark.parametrize("name", ["grayscale", "saturation", "hue"])
def test_colours_need_one_or_three_channels(name: str) -> None:
    arguments = () if name == "grayscale" else (0.3,)
    for channels in (2, 4):
        with pytest.raises(ValueError, match=f"image: expected 1 channel .* or 3 .* got {channels}"):
            oracles.KERNELS[name]([jnp.zeros((2, 2), jnp.int32)] * channels, *arguments)


@pytest.mark.parametrize("name", [*oracles.KERNELS, "blur"])
def test_kernels_keep_their_form(name: str) -> None:
    """Channels of int32 or float32, also with 64-bit types on."""
    kernel = oracles.KERNELS.get(name, lambda planes, sigma: filters.gaussian_blur(planes, sigma, 2))
    numbers = {"posterize": (3,), "solarize_add": (40,)}.get(name, () if name in PLAIN else (0.3,))
    with jax.enable_x64(True):
        for dtype in (jnp.int32, jnp.float32):
            planes = [jax.ShapeDtypeStruct((8, 9), dtype)] * 3
            assert jax.eval_shape(kernel, planes, *numbers) == planes
            # A number that is traced is one of 64 bits here.
            assert jax.eval_shape(kernel, planes, *map(jnp.asarray, numbers)) == planes


@pytest.mark.as_in_use
def test_thresholds_of_pillow_are_ours() -> None:
    """The oracle of the test above, checked itself: Pillow's rule is below, not at."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert_equal(np.asarray(ImageOps.solarize(Image.fromarray(ramp), 100)), np.where(ramp < 100, ramp, 255 - ramp))
    assert_equal(
        np.asarray(tone.solarize([jnp.asarray(ramp, jnp.int32)], 100)[0]).astype(np.uint8),
        np.where(ramp < 100, ramp, 255 - ramp),
    )
