"""Rotations, other affine maps and elastic fields: Pillow's and SciPy's pixels, and one resampling for a chain."""

from __future__ import annotations

import math
from typing import Any

import geometry_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

import gradxform as gx
from gradxform.augment.geometry.borders import border_of
from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.policies.operations import operation

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(0)
ANGLES = np.float32([0, 7.3, -30, 45, 90, 133.7, -180, 1e-3])
PHOTOS = [(32, 32, 0), (57, 91, 1), (160, 224, 0)]


def many(image: Any, count: int) -> Any:
    return jnp.broadcast_to(image, (count, *image.shape))


def rotated(image: np.ndarray, **options: Any) -> np.ndarray:
    """By all the angles."""
    images = many(jnp.asarray(image), len(ANGLES))
    return np.asarray(A.random_rotation(180, **options).apply(({"degrees": ANGLES},), images))


# Beside Pillow.


def off_lines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where rounding does not move a position from one pixel to the next: not to float32, nor to steps of 2^-16."""
    return (np.abs(np.round(x) - x) > 4e-3) & (np.abs(np.round(y) - y) > 4e-3)


@pytest.mark.as_in_use
@pytest.mark.parametrize("at", PHOTOS)
def test_a_rotation_is_pillows(at: tuple[int, int, int]) -> None:
    """Pillow finds the nearest pixel in steps of 2^-16, so the formula itself is asked, too."""
    image = oracles.photo(*at)
    pillow = Image.fromarray(image)
    color = (51, 102, 255)
    options = {"fill": (0.2, 0.4, 1.0)}
    for angle, got in zip(ANGLES, rotated(image, interpolation="nearest", **options), strict=True):
        wanted = np.asarray(pillow.rotate(float(angle), Image.Resampling.NEAREST, fillcolor=color))
        assert np.mean(got != wanted) <= 5e-4, angle
        x, y = oracles.placed(oracles.affine(image.shape, degrees=angle), *oracles.centers(*at[:2]))
        clear = off_lines(x, y)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(got[clear], oracles.nearest(image, x, y, "constant", color)[clear])
    for angle, got in zip(ANGLES, rotated(image, **options), strict=True):
        wanted = np.asarray(pillow.rotate(float(angle), Image.Resampling.BILINEAR, fillcolor=color))
        difference = np.abs(np.int32(got) - wanted)
        # Where a position is just outside for one and inside for the other, it is not a level but the fill.
        assert np.mean(difference > 1) <= 5e-4, angle
        # Nothing is rounded up: where all should be whole numbers, some are less by a level.
        assert np.mean(difference > 0) <= (0.4 if angle in (90, -180) else 2e-2 if angle == ANGLES[-1] else 5e-4), angle


AFFINE: dict[str, np.ndarray] = {
    "degrees": np.float32([0, 0, 0, 20, -75]),
    "down": np.float32([0, 0, 5, 1.5, -3]),
    "right": np.float32([0, 0, -3, 2.25, 7]),
    "scale": np.float32([1, 1, 1, 1.5, 0.6]),
    "shear_x": np.float32([0.25, 0, 0, 0.2, -0.1]),
    "shear_y": np.float32([0, -0.3125, 0, -0.1, 0.3]),
}


def affine_params() -> tuple[dict[str, Any]]:
    return ({name: jnp.asarray(values) for name, values in AFFINE.items()},)


def matrices(shape: tuple[int, ...]) -> list[np.ndarray]:
    return [oracles.affine(shape, **{name: float(values[i]) for name, values in AFFINE.items()}) for i in range(5)]


@pytest.mark.as_in_use
@pytest.mark.parametrize("at", PHOTOS[:2])
def test_an_affine_map_is_pillows(at: tuple[int, int, int]) -> None:
    image = oracles.photo(*at)
    images = many(jnp.asarray(image), 5)
    for interpolation in ("nearest", "bilinear"):
        got = A.random_affine(interpolation=interpolation, fill=0.2).apply(affine_params(), images)
        for i, matrix in enumerate(matrices(image.shape)):
            wanted = np.asarray(
                Image.fromarray(image).transform(
                    at[1::-1],
                    Image.Transform.AFFINE,
                    matrix[:2].ravel().tolist(),
                    getattr(Image.Resampling, interpolation.upper()),
                    fillcolor=(51, 51, 51),
                )
            )
            difference = np.abs(np.int32(got[i]) - wanted)
            if interpolation == "nearest" and i < 3:
                # Shears and shifts by whole pixels alone are exact.
                assert not difference.any(), i
            assert np.mean(difference > (interpolation == "bilinear")) <= 2e-3, i


@pytest.mark.as_in_use
@pytest.mark.parametrize("border", ["edge", "reflect", "constant"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_an_affine_map_of_floats_is_scipys(interpolation: str, border: str) -> None:
    """Of an image so small that a reflected one is met three times over."""
    image = oracles.noise(9, 12, 2, np.float32)
    got = A.random_affine(interpolation=interpolation, border=border, fill=(0.25, 0.75)).apply(
        affine_params(), many(image, 5)
    )
    x, y = oracles.centers(9, 12)
    for i, matrix in enumerate(matrices(image.shape)):
        source_x, source_y = oracles.placed(matrix, x, y)
        sample = oracles.bilinear if interpolation == "bilinear" else oracles.nearest
        wanted = sample(np.asarray(image), source_x, source_y, border, (0.25, 0.75))
        # A nearest pixel, and whether a position is inside, changes where it is on a line.
        close = np.abs(np.round(source_x) - source_x) < 1e-5, np.abs(np.round(source_y) - source_y) < 1e-5
        clear = ~(close[0] | close[1]) if interpolation == "nearest" or border == "constant" else np.full((9, 12), True)
        assert clear.mean() > 0.7
        np.testing.assert_allclose(np.asarray(got[i])[clear], wanted[clear], atol=1e-5, err_msg=str(i))
        if border == "constant" or interpolation == "nearest":
            continue
        # SciPy's positions are rows before columns, and count from the centre of the first pixel.
        for channel in range(2):
            flipped = matrix[1::-1, [1, 0]]
            offset = matrix[1::-1, 2] + flipped @ [0.5, 0.5] - 0.5
            found = scipy.ndimage.affine_transform(
                np.asarray(image, np.float64)[..., channel], flipped, offset, order=1, mode=oracles.SCIPY[border]
            )
            np.testing.assert_allclose(got[i][..., channel], found, atol=1e-5)


def test_what_random_affine_draws() -> None:
    aug = A.random_affine(20, (0.25, 0.5), (0.5, 2.0), (30, 10))
    params = {name: np.asarray(x, np.float64) for name, x in aug.sample(KEY, (4000, 40, 10, 1))[0].items()}
    spans = {"degrees": (-20, 20), "down": (-10, 10), "right": (-5, 5), "scale": (0.5, 2)}
    values = {name: params[name] for name in spans}
    for name, angle in (("shear_x", 30), ("shear_y", 10)):
        values[name], spans[name] = np.rad2deg(np.arctan(params[name])), (-angle, angle)
    for name, (low, high) in spans.items():
        assert scipy.stats.kstest(values[name], scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4, name
    between = np.corrcoef(np.stack(list(values.values())))
    assert np.abs(between - np.eye(6)).max() < 5 / np.sqrt(4000)


def test_the_angle_is_uniform() -> None:
    angles = np.asarray(A.random_rotation(30).sample(KEY, (4000, 8, 8, 3))[0]["degrees"])
    assert scipy.stats.kstest(angles, scipy.stats.uniform(-30, 60).cdf).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_nothing_drawn_changes_nothing(dtype: Any) -> None:
    image = oracles.noise(7, 10, 5, dtype)
    aug = A.chain(A.random_rotation(0), A.random_affine(), A.elastic_deformation(0.0, 2.0))
    assert jnp.array_equal(aug(KEY, image), image)


# Elastic fields.


def noise_of(aug: Any, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(aug.sample(jax.random.key(seed), shape)[0]["noise"], np.float64)


@pytest.mark.as_in_use
@pytest.mark.parametrize(("border", "sigma"), [("edge", 4.0), ("reflect", 2.5), ("constant", 1.0)])
def test_an_elastic_deformation_is_scipys(border: str, sigma: float) -> None:
    image = oracles.smooth(20, 31, 2)
    aug = A.elastic_deformation(12.0, sigma, border=border, fill=(0.25, 1.0))
    dx, dy = oracles.elastic_field(noise_of(aug, image.shape), image.shape, 12.0, sigma)
    assert min(np.ptp(dx), np.ptp(dy)) > 1
    x, y = oracles.centers(20, 31)
    got = np.asarray(aug(KEY, image))
    wanted = oracles.bilinear(image, x + dx, y + dy, border, (0.25, 1.0))
    assert np.mean(np.abs(got - wanted) > 3e-5) < 0.01
    if border in oracles.SCIPY:
        for channel in range(2):
            found = scipy.ndimage.map_coordinates(
                np.float64(image[..., channel]), [y + dy - 0.5, x + dx - 0.5], order=1, mode=oracles.SCIPY[border]
            )
            np.testing.assert_allclose(got[..., channel], found, atol=3e-5)


@pytest.mark.parametrize("sigma", [1.5, 4.0, 5.0])
def test_an_elastic_field_is_smoothed_noise(sigma: float) -> None:
    """Root mean square alpha / (sigma sqrt(12 pi)), correlation exp(-d^2 / (4 sigma^2)); both parts apart."""
    shape = (200, 240, 1)
    noise = noise_of(A.elastic_deformation(1.0, sigma), shape, 1)
    assert abs(noise).max() <= 1 and abs(noise.var() - 1 / 3) < 0.01
    dx, dy = oracles.elastic_field(noise, shape, 100.0, sigma)
    # About (H W) / (4 pi sigma^2) independent pieces.
    pieces = 200 * 240 / (4 * np.pi * sigma**2)
    for field in (dx, dy):
        variance = (100 / (sigma * np.sqrt(12 * np.pi))) ** 2
        assert abs(np.mean(field**2) / variance - 1) < 5 * np.sqrt(2 / pieces)
        for lag in (1, round(sigma), round(2 * sigma)):
            for shifted, rest in ((field[lag:], field[:-lag]), (field[:, lag:], field[:, :-lag])):
                assert abs(np.mean(shifted * rest) / np.mean(field**2) - np.exp(-(lag**2) / (4 * sigma**2))) < (
                    5 / np.sqrt(pieces)
                )
    assert abs(np.mean(dx * dy)) / variance < 5 / np.sqrt(pieces)


# One resampling.


def at_once(image: np.ndarray, params: Any) -> np.ndarray:
    """What one look at the image gives: the maps are gone through from the last to the first."""
    crop, flip, turn, elastic = params[0]
    x, y = oracles.centers(18, 20)
    dx, dy = oracles.elastic_field(elastic["noise"], (18, 20), 8.0, 3.0)
    x, y = oracles.placed(oracles.affine((18, 20), degrees=float(turn["degrees"])), x + dx, y + dy)
    assert bool(flip["flip"])
    x = 20 - x
    return oracles.bilinear(image, x + int(crop["left"]), y + int(crop["top"]), "constant")


def test_a_chain_is_one_resampling() -> None:
    """What a crop cuts off a rotation brings back: with a resampling each it would be black."""
    image = oracles.smooth(30, 36, 2)
    aug = A.chain(
        A.random_crop((18, 20)), A.random_flip_left_right(1.0), A.random_rotation(30), A.elastic_deformation(8.0, 3.0)
    )
    key = jax.random.key(5)
    params = aug.sample(key, image.shape)
    got = np.asarray(aug(key, image))
    wanted = at_once(image, params)
    assert np.mean(np.abs(got - wanted) > 5e-5) < 0.01
    assert abs(float(params[0][2]["degrees"])) > 3
    split = image
    for one, each in zip(aug.arguments["augmentations"], params[0], strict=True):
        split = np.asarray(one.apply((each,), split))
    assert np.mean(np.abs(split - wanted) > 1e-2) > 0.02


def gathers(aug: Any, shape: tuple[int, ...] = (12, 12, 3), dtype: Any = jnp.uint8) -> int:
    program = jax.make_jaxpr(lambda params, image: aug.apply(params, image))(
        aug.sample(KEY, shape), jnp.zeros(shape, dtype)
    )
    return oracles.count(program.jaxpr, "gather")


def test_a_chain_looks_at_the_image_once() -> None:
    turn, more = A.random_rotation(10), A.random_affine(10)
    one = gathers(turn)
    # In the program of processors and in that of other platforms.
    assert one == 2
    assert gathers(A.chain(A.random_crop(10), A.random_flip_left_right(), turn, more)) == one
    assert gathers(A.chain(A.random_crop(10), A.chain(turn, A.chain(A.random_flip_up_down(), more)))) == one
    assert gathers(A.chain(turn, A.elastic_deformation(5.0, 2.0))) == one
    # A crop and a flip alone look nothing up: they are slices.
    assert gathers(A.chain(A.random_crop(10, 2), A.random_flip_left_right())) == 0


SLIDES = {
    "shear_x": (1, 0.3, 0, 0, 1, 0),
    "shear_y": (1, 0, 0, -0.2, 1, 0),
    "translate_x": (1, 0, -2.3, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, 5.6),
}
"""Maps that leave the rows, or the columns, where they are."""


@pytest.mark.parametrize("border", ["edge", "reflect", "constant"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", SLIDES)
def test_what_slides_along_an_axis_looks_at_two_pixels(name: str, dtype: Any, border: str) -> None:
    """Two look-ups instead of four, and the same pixels as those of the map in general."""
    fill, numbers = (0.2, 0.4, 1.0), SLIDES[name]
    step = operation(name, "bilinear", border_of(border, fill, 0))
    value = -numbers[2] - numbers[5] if "translate" in name else numbers[1] + numbers[3]
    image = oracles.photo(17, 24) if dtype == np.uint8 else oracles.noise(17, 24, 3, np.float32)

    def slid(image: Any) -> Any:
        return step(jnp.float32(value), jnp.zeros(2), {"image": Canvas.of(image)})["image"].image()

    x, y = oracles.placed(np.float64([*numbers, 0, 0, 1]).reshape(3, 3), *oracles.centers(17, 24))
    levels = 255 if dtype == np.uint8 else 1
    wanted = oracles.bilinear(np.asarray(image), x, y, border, np.float64(fill) * levels)
    # Whether a position is inside changes on a line.
    clear = np.min([np.abs(np.round(part) - part) for part in (x, y) if np.ptp(part % 1) > 0] or [np.ones(x.shape)], 0)
    difference = np.abs(np.asarray(jax.jit(slid)(jnp.asarray(image)), np.float64) - wanted)[clear > 1e-4]
    # 8 bits are rounded down.
    assert difference.max() < (1 + 1e-3 if dtype == np.uint8 else 1e-5)
    shapes = oracles.result_shapes(jax.make_jaxpr(slid)(jnp.asarray(image)).jaxpr, "gather")
    looked_up = sum(math.prod(shape) for shape in shapes) // 2  # in two programs, for processors and for others
    assert looked_up == 2 * 17 * 24 * (1 if dtype == np.uint8 else 3)


@pytest.mark.parametrize("border", ["edge", "reflect", "constant"])
def test_the_slope_at_whole_pixels_is_that_to_a_neighbour(border: str) -> None:
    """On the last column it is 0, and not that to the first pixel of the next row."""
    step = operation("translate_x", "bilinear", border_of(border, 0.0, 0))
    image = jnp.float32([[1, 2, 4], [100, 5, 6]])[..., None] / 100

    def moved(pixels: jax.Array) -> jax.Array:
        return step(pixels, jnp.zeros(2), {"image": Canvas.of(image)})["image"].image()[..., 0]

    slopes = jax.jacfwd(moved)(jnp.float32(0))
    np.testing.assert_allclose(slopes, np.float32([[-1, -2, 0], [95, -1, 0]]) / 100, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [{"border": "edge"}, {"interpolation": "nearest"}, {"fill": 0.5}, {"mask_fill": 3}, {"fill": (0.0, 0.0, 0.0)}],
)
def test_what_asks_for_other_borders_is_not_fused(other: dict[str, Any]) -> None:
    first, second = A.random_rotation(10), A.random_rotation(10, **other)
    image = jnp.asarray(oracles.photo(12, 12))
    both = A.chain(first, second)
    assert gathers(both) == gathers(first) + gathers(second)
    params = both.sample(KEY, image.shape)
    assert jnp.array_equal(both.apply(params, image), second.apply(params[1], first.apply(params[0], image)))


def test_a_smaller_size_is_smoothed_before_a_rotation() -> None:
    """Antialiasing needs every pixel: it is not lost in a chain."""
    image = np.uint8(np.indices((64, 64)).sum(0) % 2 * 255)[..., None]
    for first in (A.resize(16), A.random_resized_crop(16, (0.9, 1.0))):
        got = np.asarray(A.chain(first, A.random_rotation(20, border="reflect"))(KEY, image))
        assert got.min() > 100 and got.max() < 155


def test_nested_chains_are_one() -> None:
    a, b, c, d = A.random_crop(20), A.random_rotation(30), A.random_flip_left_right(), A.invert()
    image = jnp.asarray(oracles.photo(24, 24))
    wanted = A.chain(a, b, c, d)(KEY, image)
    for aug in (A.chain(A.chain(a, b), c, d), A.chain(a, A.chain(b, A.chain(c, d))), A.chain(A.chain(), a, b, c, d)):
        assert jnp.array_equal(aug(KEY, image), wanted)
    assert jnp.array_equal(A.chain()(KEY, image), image)
