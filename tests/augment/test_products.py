"""What a TPU or a GPU runs in place of portable forms, called on a CPU: the same pixels."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from photometric_oracles import IMAGES, photograph, pillow

from gradxform.augment.geometry import resample
from gradxform.augment.geometry.borders import Border
from gradxform.augment.pixels import canvas, filters, histogram
from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.stage import canvas_of

pytestmark = pytest.mark.long

RNG = np.random.default_rng(0)
PICTURES = {
    **{shape: RNG.integers(0, 256, shape, np.uint8) for shape in ((1, 1, 1), (33, 129, 4))},
    (511, 333, 3): photograph("china.jpg", 511, 333),
    "dark": IMAGES["dark"],
    "one colour": IMAGES["one colour"],
    "two levels": IMAGES["two levels"],
}


def each(kernel: Any, image: np.ndarray) -> np.ndarray:
    """A kernel of a channel for all of an image, one after another as a batch."""
    planes = jnp.moveaxis(jnp.asarray(image), -1, 0)
    planes = planes.astype(jnp.int32) if image.dtype == np.uint8 else planes
    return np.moveaxis(np.asarray(jax.jit(jax.vmap(kernel))(planes)), 0, -1)


def by_pillow(name: str, image: np.ndarray) -> np.ndarray:
    return np.concatenate([pillow(name, image[..., i : i + 1]) for i in range(image.shape[2])], -1)


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", PICTURES, ids=str)
def test_levels_are_spread_as_pillow_does(name: Any) -> None:
    image = PICTURES[name]
    pixels = math.prod(image.shape[:2])
    equalized = functools.partial(histogram._equalized, pixels=pixels, by=histogram.PRODUCTS)
    np.testing.assert_array_equal(each(equalized, image), by_pillow("equalize", image))
    stretched = each(lambda plane: histogram._stretch(plane, *histogram._bounds(plane, None, folds=False)), image)
    np.testing.assert_array_equal(stretched, by_pillow("autocontrast", image))
    floats = np.float32(image / 255)
    by_elements = functools.partial(histogram._equalized, pixels=pixels, by=histogram.ELEMENTS)
    np.testing.assert_array_equal(each(equalized, floats), each(by_elements, floats))


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_a_gpu_takes_channels_as_they_are_and_gives_them_so(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "by_platform", lambda portable, *args, **forms: forms.get("gpu", portable)(*args))
    image = RNG.integers(0, 256, (7, 9, channels), np.uint8)
    taken = canvas_of({"image": jnp.asarray(image)})
    np.testing.assert_array_equal(jnp.stack(taken.planes(), -1), image)
    brighter = taken.with_planes([jnp.minimum(plane + i, 255) for i, plane in enumerate(taken.planes())])
    wanted = np.minimum(np.int32(image) + np.arange(channels), 255)
    for one in (brighter, brighter.with_words(brighter.words)):
        np.testing.assert_array_equal(one.image(), wanted)
    np.testing.assert_array_equal(jnp.moveaxis(brighter.stacked(), 0, -1), wanted)


def test_more_pixels_than_float32_counts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "EXACT", 100)
    levels = RNG.integers(0, 256, (29, 31))
    np.testing.assert_array_equal(
        histogram._counted_by_products(jnp.asarray(levels, jnp.int32)), np.bincount(levels.ravel(), minlength=256)
    )


@pytest.mark.parametrize("dtype", [np.uint8])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", None])
def test_windows_of_bytes_are_slices(mode: str | None, dtype: Any) -> None:
    for shape, (height, width), reach in (((9, 14, 3), (6, 14), (2, 3)), ((17, 12), (17, 9), (5, 0))):
        array = RNG.integers(0, 256, shape).astype(dtype)
        reach = reach if mode else (0, 0)
        method = resample.Method(
            "shift", "nearest", Border(mode, 0.5, 1) if mode else None, reach, (1.0, 1.0), (False, False), False
        )
        fill = jnp.asarray(77).astype(dtype)
        frame = [(one, one) for one in reach] + [(0, 0)] * (len(shape) - 2)
        framed = np.pad(
            array, frame, mode=mode or "edge", **({"constant_values": np.asarray(fill)} if mode == "constant" else {})
        )
        for top in {0, framed.shape[0] - height}:
            for left in {0, framed.shape[1] - width}:
                starts = [jnp.int32(top - reach[0]), jnp.int32(left - reach[1])]
                cut, picked = resample._windows(method, height, width)
                wanted = framed[top : top + height, left : left + width]
                rows, columns = (start + jnp.arange(size) for start, size in zip(starts, (height, width), strict=True))
                for way in (picked, cut):
                    np.testing.assert_array_equal(way(jnp.asarray(array), fill, rows, columns), wanted)


@pytest.mark.as_in_use
@pytest.mark.parametrize("size", [1, 2, 20])
def test_a_band_is_scipys_blur_of_each_pixel(size: int) -> None:
    for radius in (2, 40):
        for sigma in (0.5, 5.0):
            wanted = (
                np.eye(size)
                if size == 1
                else scipy.ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="mirror", radius=radius)
            )
            np.testing.assert_allclose(filters._band(size, radius, jnp.float32(sigma)), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 129, 4), (511, 333, 3)])
def test_a_blur_by_products_is_the_portable_one(shape: tuple[int, ...]) -> None:
    planes = [jnp.asarray(plane, jnp.int32) for plane in np.moveaxis(PICTURES[shape], -1, 0)]
    for sigma, radius in ((0.0, 3), (2.0, 11)):
        got = filters._convolved_by_products(radius, jnp.maximum(jnp.float32(sigma), 1e-3), jnp.stack(planes))
        wanted = jax.jit(filters._convolved_in_turn, static_argnums=0)(
            radius, jnp.maximum(jnp.float32(sigma), 1e-3), planes
        )
        # Sums in another order: 8-bit pixels differ where the Gaussian is nearer than this to the middle of two levels.
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4 if sigma else 0)


def test_channels_that_stay_apart_are_those_of_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for channels in (1, 3, 5):
        image = jnp.asarray(RNG.integers(0, 256, (11, 14, channels), np.uint8))
        read = canvas_of({"image": image})
        np.testing.assert_array_equal(read.stacked(), np.moveaxis(image, -1, 0))
        np.testing.assert_array_equal(Canvas.of(image).stacked(), np.moveaxis(image, -1, 0))
        wanted = np.asarray(filters.blurred(read, 2.0, 4).image())
        with monkeypatch.context() as patch:
            for module in (filters, canvas):
                patch.setattr(module, "by_platform", lambda portable, *args, tpu: tpu(*args))
            np.testing.assert_array_equal(filters.blurred(read, 2.0, 4).image(), wanted)


@pytest.mark.parametrize("axis", [0, 1])
def test_weighted_sums_by_products_are_the_portable_ones(axis: int) -> None:
    planes = np.moveaxis(RNG.integers(0, 256, (9, 31, 3)), -1, 0).astype(np.int32)
    planes[0] = 255
    image = Canvas.of(jnp.moveaxis(jnp.asarray(planes, jnp.uint8), 0, -1))
    for taps in (2, 11, resample.MOST_EXACT):
        index = RNG.integers(0, planes.shape[1 + axis], (taps, 17))
        # All on one pixel, and none; weights of both signs, whose sum is 1.
        index[:, 0] = 3
        weights = RNG.integers(-(2**18), 2**18, (taps, 17))
        weights[:, 1:] //= taps // 2
        weights[0] += 2**resample.FIXED - weights.sum(0)
        wanted = np.zeros((3, 17, 31) if axis == 0 else (3, 9, 17), np.int64)
        for t in range(taps):
            wanted += weights[t][:, None] * planes[:, index[t]] if axis == 0 else weights[t] * planes[:, :, index[t]]
        tables = [resample._along(jnp.asarray(one.T, jnp.int32), axis) for one in (index, weights)]
        got = resample._summed_in_bytes(axis, [jnp.asarray(plane) for plane in planes], *tables)
        np.testing.assert_array_equal(got, wanted.astype(np.int32))
        np.testing.assert_array_equal(got, resample._sums(image, axis, *tables))
