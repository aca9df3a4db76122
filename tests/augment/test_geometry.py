"""Crops, mirror images and new sizes: exact copies, NumPy's padding, and Pillow's resize to the bit."""

from __future__ import annotations

import itertools
from typing import Any

import geometry_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import gradxform as gx
from gradxform.augment.geometry.borders import inward_position

pytestmark = pytest.mark.long

KEY = jax.random.key(0)
DTYPES: list[Any] = [jnp.uint8, jnp.float32, jnp.bfloat16]
KINDS = [*itertools.product((1, 3, 4, 5), DTYPES[:2]), (3, jnp.bfloat16), (3, jnp.float16)]


def bits(x: Any) -> np.ndarray:
    """A copy is one to the bit."""
    return np.asarray(x).view(f"uint{8 * x.dtype.itemsize}")


def assert_copy(got: Any, wanted: Any) -> None:
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(bits(got), bits(wanted))


def many(image: Any, count: int) -> Any:
    return jnp.broadcast_to(image, (count, *image.shape))


# Windows and mirror images.


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_a_crop_is_a_copy_at_every_place(channels: int, dtype: Any) -> None:
    image = oracles.noise(7, 6, channels, dtype)
    places = np.array(list(itertools.product(range(4), range(2))), np.int32)
    got = gx.augment.random_crop((4, 5)).apply(({"top": places[:, 0], "left": places[:, 1]},), many(image, 8))
    for one, (top, left) in zip(got, places, strict=True):
        assert_copy(one, image[top : top + 4, left : left + 5])


@pytest.mark.parametrize("border", oracles.MODES)
@pytest.mark.parametrize(("channels", "dtype"), [(3, jnp.uint8), (5, jnp.uint8), (1, jnp.float32), (4, jnp.bfloat16)])
def test_a_padded_crop_is_one_of_numpys_padding(border: str, channels: int, dtype: Any) -> None:
    """At every place; in one direction the padding is wider than the image."""
    image, (down, across) = oracles.noise(3, 5, channels, dtype), (7, 2)
    fill = tuple(np.linspace(0.2, 1, channels).tolist())
    crop = gx.augment.random_crop((4, 6), (down, across), border=border, fill=fill)
    places = np.array(list(itertools.product(range(-7, 7), range(-2, 2))), np.int32)
    got = crop.apply(({"top": places[:, 0], "left": places[:, 1]},), many(image, len(places)))
    color = (np.round(np.array(fill) * 255) if dtype == jnp.uint8 else np.array(fill, np.float32)).astype(image.dtype)
    padded = np.stack(
        [
            np.pad(
                np.asarray(image)[..., c],
                ((down, down), (across, across)),
                oracles.MODES[border],
                **({"constant_values": color[c]} if border == "constant" else {}),
            )
            for c in range(channels)
        ],
        -1,
    )
    for one, (top, left) in zip(got, places, strict=True):
        assert_copy(one, padded[top + down : top + down + 4, left + across : left + across + 6])


def test_the_whole_of_a_padded_image_is_a_crop() -> None:
    image = oracles.noise(4, 5, 3)
    got = gx.augment.random_crop((8, 9), 2, fill=1.0)(KEY, image)
    np.testing.assert_array_equal(got, np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=255))


@pytest.mark.parametrize(("shape", "size"), [((6, 7), (4, 3)), ((7, 6), (4, 3)), ((5, 5), (5, 2)), ((4, 4), (4, 4))])
def test_a_crop_of_the_middle(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = oracles.noise(*shape, 3)
    top, left = (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2
    got = gx.augment.center_crop(size)(KEY, image)
    np.testing.assert_array_equal(got, image[top : top + size[0], left : left + size[1]])


@pytest.mark.as_in_use
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_a_mirror_image_is_exact(channels: int, dtype: Any) -> None:
    image = oracles.noise(5, 4, channels, dtype)
    flips = ({"flip": jnp.array([False, True])},)
    got = gx.augment.random_flip_left_right().apply(flips, many(image, 2))
    assert_copy(got[0], image)
    assert_copy(got[1], image[:, ::-1])
    got = gx.augment.random_flip_up_down().apply(flips, many(image, 2))
    assert_copy(got[0], image)
    assert_copy(got[1], image[::-1])


@pytest.mark.parametrize("pad", [0, 2])
def test_a_crop_of_a_mirror_image(pad: int) -> None:
    """One resampling: the window is slid on the mirrored image, and the other way round."""
    image = oracles.noise(6, 7, 3)
    crop, across, down = (
        gx.augment.random_crop((4, 4), pad),
        gx.augment.random_flip_left_right(),
        gx.augment.random_flip_up_down(),
    )
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    both = gx.augment.chain(across, crop, down)
    for top, left, flip, turn in itertools.product((-pad, 1 + pad), (-pad, 3 + pad), (False, True), (False, True)):
        params = (
            ({"flip": jnp.array(flip)}, {"top": jnp.array(top), "left": jnp.array(left)}, {"flip": jnp.array(turn)}),
        )
        wanted = padded[:, ::-1] if flip else padded
        wanted = wanted[top + pad : top + pad + 4, left + pad : left + pad + 4]
        np.testing.assert_array_equal(both.apply(params, image), wanted[::-1] if turn else wanted)


# New sizes.


SIZES = [
    ((37, 53), (16, 20)),
    ((37, 53), (64, 99)),
    ((37, 53), (80, 7)),
    ((37, 53), (37, 53)),
    ((64, 64), (32, 32)),
    ((224, 200), (9, 17)),
    ((1, 5), (4, 1)),
    ((3, 2), (7, 11)),
    ((100, 90), (33, 45)),
]


@pytest.mark.as_in_use
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_resize_is_pillows_to_the_bit(shape: tuple[int, int], size: tuple[int, int]) -> None:
    for image in (oracles.photo(*shape), oracles.noise(*shape, 1)):
        for interpolation in ("bilinear", "nearest"):
            wanted = oracles.rgb(image).resize(size[::-1], getattr(Image.Resampling, interpolation.upper()))
            got = gx.augment.resize(size, interpolation=interpolation)(KEY, image)
            assert got.dtype == jnp.uint8
            np.testing.assert_array_equal(got, oracles.back(wanted), interpolation)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("shape", "size"), [SIZES[2], SIZES[5], SIZES[7]])
def test_resize_of_floats(shape: tuple[int, int], size: tuple[int, int], antialias: bool) -> None:
    image = oracles.noise(*shape, 2, np.float32)
    got = gx.augment.resize(size, antialias=antialias)(KEY, image)
    np.testing.assert_allclose(got, oracles.resized(image, size, antialias=antialias), atol=1e-6)
    low = gx.augment.resize(size, antialias=antialias)(KEY, image.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    wanted = oracles.resized(np.asarray(image.astype(jnp.bfloat16), np.float64), size, antialias=antialias)
    np.testing.assert_allclose(np.asarray(low, np.float64), wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("shape", "size"), [((224, 30), (17, 7)), ((40, 33), (16, 45))])
def test_resized_white_stays_white(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Sums of rounded weights leave [0, 1] by their last bits alone, which a change of colours does not refuse."""
    for image in (np.ones((*shape, 1), np.float32), np.float32(oracles.noise(*shape, 1) > 2)):
        for aug in (gx.augment.resize(size), gx.augment.random_resized_crop(size)):
            got = aug(KEY, image)
            assert -1e-6 <= got.min() <= got.max() <= 1 + 1e-6
            gx.augment.invert()(KEY, got)


@pytest.mark.as_in_use
def test_without_antialias_eight_bits_are_interpolated() -> None:
    image = oracles.photo(40, 50)
    got = gx.augment.resize((13, 11), antialias=False)(KEY, image)
    assert np.abs(np.float64(got) - oracles.resized(image, (13, 11), antialias=False)).max() <= 1


WINDOWS = np.array([[0, 0, 30, 41], [3, 7, 20, 30], [11, 2, 9, 8], [29, 40, 1, 1], [0, 33, 30, 8], [5, 5, 16, 12]])


def windows(size: tuple[int, int], image: Any, **options: Any) -> Any:
    top, left, height, width = jnp.asarray(WINDOWS, jnp.int32).T
    params = ({"top": top, "left": left, "height": height, "width": width},)
    return gx.augment.random_resized_crop(size, **options).apply(params, many(jnp.asarray(image), len(WINDOWS)))


@pytest.mark.as_in_use
@pytest.mark.parametrize(("size", "share"), [((17, 13), 0.98), ((24, 35), 0.97), ((5, 59), 0.8)])
def test_a_resized_crop_is_pillows_with_a_box(size: tuple[int, int], share: float) -> None:
    """To a level: the weights are rounded to float32 first."""
    image = oracles.photo(30, 41)
    exact = 0.0
    for (top, left, height, width), got in zip(WINDOWS, windows(size, image), strict=True):
        box = (left, top, left + width, top + height)
        wanted = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, box=box))
        difference = np.abs(np.int32(got) - wanted)
        assert difference.max() <= 1, (top, left, height, width)
        exact += np.mean(difference == 0) / len(WINDOWS)
    assert exact >= share


def test_the_nearest_pixels_of_a_resized_crop() -> None:
    """Pillow's; with these sizes no position falls on the line between two pixels."""
    image = oracles.photo(30, 41)
    for (top, left, height, width), got in zip(WINDOWS, windows((16, 48), image, interpolation="nearest"), strict=True):
        box = (left, top, left + width, top + height)
        wanted = np.asarray(Image.fromarray(image).resize((48, 16), Image.Resampling.NEAREST, box=box))
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("antialias", [True, False])
def test_a_resized_crop_of_floats(antialias: bool) -> None:
    image = oracles.noise(30, 41, 1, np.float32)
    for window, got in zip(WINDOWS, windows((10, 19), image, antialias=antialias), strict=True):
        wanted = oracles.resized(image, (10, 19), tuple(window), antialias)
        np.testing.assert_allclose(got, wanted, atol=2e-6, err_msg=str(window))


def test_a_mirrored_resized_crop_is_the_mirror_image() -> None:
    image = jnp.asarray(oracles.photo(30, 41))
    aug = gx.augment.chain(gx.augment.random_resized_crop((16, 12)), gx.augment.random_flip_left_right(1.0))
    key = jax.random.key(3)
    ((params, flip),) = aug.sample(key, image.shape)
    assert bool(flip["flip"])
    wanted = gx.augment.random_resized_crop((16, 12)).apply((params,), image)[:, ::-1]
    assert np.abs(np.int32(aug(key, image)) - np.int32(wanted)).max() <= 1


# What is drawn.


def drawn(aug: Any, shape: tuple[int, ...], count: int = 4000, seed: int = 0) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in aug.sample(jax.random.key(seed), (count, *shape))[0].items()}


def likely(counts: Any) -> None:
    assert scipy.stats.chisquare(counts).pvalue > 1e-4, counts


@pytest.mark.parametrize("padding", [0, (2, 1)])
def test_every_place_of_a_crop_is_equally_likely(padding: Any) -> None:
    got = drawn(gx.augment.random_crop((4, 5), padding), (7, 8, 3))
    down, across = (0, 0) if padding == 0 else padding
    rows, columns = 4 + 2 * down, 4 + 2 * across
    top, left = got["top"] + down, got["left"] + across
    likely(np.bincount(top * columns + left, minlength=rows * columns))
    assert top.max() == rows - 1 and left.max() == columns - 1


def test_areas_are_uniform_and_ratios_log_uniform_where_all_fit() -> None:
    got = drawn(gx.augment.random_resized_crop(8, (0.1, 0.4), (0.6, 1.5)), (1000, 1000, 3))
    height, width = got["height"], got["width"]
    share, ratio = height * width / 1e6, np.log(width / height)
    assert scipy.stats.kstest(share, scipy.stats.uniform(0.1, 0.3).cdf).pvalue > 1e-4
    low, high = np.log(0.6), np.log(1.5)
    assert scipy.stats.kstest(ratio, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(share, ratio)[0, 1]) < 5 / np.sqrt(share.size)
    for start, size in ((got["top"], height), (got["left"], width)):
        # Uniform among the places that there are for a window of this size.
        assert scipy.stats.kstest((start + 0.5) / (1001 - size), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(got["top"] / (1001 - height), got["left"] / (1001 - width))[0, 1]) < 5 / np.sqrt(share.size)


def test_of_the_draws_the_first_that_fits_is_taken() -> None:
    """In a wide image high windows are refused: areas and ratios are those of the accepted."""
    shape, low, high = (40, 100), 0.3, 1.0
    got = drawn(gx.augment.random_resized_crop(8, (low, high), (0.5, 2.0)), (*shape, 1))
    height, width = got["height"], got["width"]
    assert np.all((got["top"] >= 0) & (got["top"] + height <= 40) & (got["left"] >= 0) & (got["left"] + width <= 100))
    random = np.random.RandomState(0)
    area = random.uniform(low, high, (4000, 10)) * 4000
    ratio = np.exp(random.uniform(np.log(0.5), np.log(2), (4000, 10)))
    w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (w <= 100) & (h <= 40)
    rows = np.arange(4000)
    first = fits.argmax(1)
    some = fits.any(1)
    wanted_w, wanted_h = np.where(some, w[rows, first], 80), np.where(some, h[rows, first], 40)
    assert scipy.stats.ks_2samp(height, wanted_h).pvalue > 1e-4
    assert scipy.stats.ks_2samp(width, wanted_w).pvalue > 1e-4


@pytest.mark.parametrize(
    ("shape", "ratio", "window"),
    [
        ((10, 100), (3 / 4, 4 / 3), (0, 43, 10, 13)),
        ((100, 10), (3 / 4, 4 / 3), (43, 0, 13, 10)),
        ((1, 100), (0.2, 0.3), (0, 49, 1, 1)),
        ((90, 100), (1e-9, 1e9), (0, 0, 90, 100)),
    ],
)
def test_without_a_draw_that_fits_the_largest_window_in_the_middle(shape: Any, ratio: Any, window: Any) -> None:
    """torchvision's rule; a window of the whole area fits into none of these."""
    got = gx.augment.random_resized_crop(4, (1.0, 1.0), ratio).sample(KEY, (*shape, 3))[0]
    assert tuple(int(got[name]) for name in ("top", "left", "height", "width")) == window


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_the_share_of_mirror_images(p: float) -> None:
    for aug in (gx.augment.random_flip_left_right(p), gx.augment.random_flip_up_down(p)):
        flips = drawn(aug, (4, 4, 1))["flip"]
        assert flips.dtype == bool
        assert abs(flips.mean() - p) <= 5 * np.sqrt(p * (1 - p) / flips.size)


# Look-ups.


@pytest.mark.parametrize(
    "aug",
    [
        gx.augment.random_rotation(20),
        gx.augment.random_rotation(20, interpolation="nearest", border="edge"),
        gx.augment.elastic_deformation(5.0, 2.0, border="reflect"),
        gx.augment.resize((5, 9), interpolation="nearest"),
    ],
    ids=["rotation", "nearest", "elastic", "resize"],
)
def test_wide_types_change_nothing_about_types(aug: Any) -> None:
    """With JAX's 64-bit types on."""
    images = jnp.stack([jnp.asarray(oracles.noise(8, 8, 3, jnp.uint8, i)) for i in range(2)])
    with jax.enable_x64(True):
        for image in (images, images.astype(jnp.float32) / 255):
            got = aug(jax.random.key(0), image)
            assert got.dtype == image.dtype and len(jnp.unique(got)) > 1


@pytest.mark.as_in_use
def test_positions_just_beyond_the_rim_are_mirrored_exactly() -> None:
    position = jnp.asarray([-0.8, -1e-3, 0.3, 8190.75, 8191.25, 16382.5], jnp.float32)
    got = inward_position(position, 8192, "reflect")
    np.testing.assert_array_equal(got, np.float32([0.8, 1e-3, 0.3, 8190.75, 8190.75, 0.5]))
    np.testing.assert_array_equal(inward_position(position, 1, "reflect"), np.zeros(6))
    np.testing.assert_array_equal(inward_position(position, 8192, "edge"), np.clip(position, 0, 8191))
