"""Turns that copy pixels, given and one-sided angles, perspective, smoothing before shrinking, strong fields."""

from __future__ import annotations

import itertools
from typing import Any

import geometry_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gradxform as gx
from gradxform.augment.geometry.perspective import perspective
from gradxform.augment.geometry.placement import composed, moved

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(0)
PHOTO = oracles.photo(57, 91, 1)
SQUARE = oracles.noise(8, 8, 3)


def symmetry(image: np.ndarray, swap: bool, right: bool, below: bool) -> np.ndarray:
    image = image[::-1] if below else image
    image = image[:, ::-1] if right else image
    return image.swapaxes(0, 1) if swap else image


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_every_symmetry_is_a_copy(dtype: Any) -> None:
    """With its mask, and points and boxes where their pixels are."""
    image = np.asarray(oracles.noise(8, 8, 3, dtype))
    points = np.tile(np.float32([[2.5, 1.5], [9, -1]]), (8, 1, 1))
    inputs = {
        "image": np.stack([image] * 8),
        "mask": np.stack([np.arange(64).reshape(8, 8)] * 8),
        "keypoints": points,
        "boxes": np.tile(np.float32([[2, 1, 3, 2]]), (8, 1, 1)),
    }
    got = A.random_d4().apply(({"symmetry": jnp.arange(8)},), inputs)
    for i, (swap, right, below) in enumerate(itertools.product((False, True), repeat=3)):
        np.testing.assert_array_equal(got["image"][i], symmetry(image, swap, right, below))
        mask = np.asarray(got["mask"][i])
        np.testing.assert_array_equal(mask, symmetry(inputs["mask"][0], swap, right, below))
        ((row, column),) = np.argwhere(mask == 10)
        np.testing.assert_array_equal(got["keypoints"][i, 0], [column + 0.5, row + 0.5])
        np.testing.assert_array_equal(got["boxes"][i, 0], [column, row, column + 1, row + 1])


def test_quarters_are_numpys() -> None:
    got = A.random_rot90().apply(({"quarters": jnp.arange(4)},), np.stack([SQUARE] * 4))
    for quarters in range(4):
        np.testing.assert_array_equal(got[quarters], np.rot90(SQUARE, quarters))
    np.testing.assert_array_equal(A.random_transpose(1.0)(KEY, SQUARE), SQUARE.swapaxes(0, 1))
    drawn = np.asarray(A.random_rot90().sample(KEY, (4000, 8, 8, 3))[0]["quarters"])
    assert abs(np.bincount(drawn, minlength=4) - 1000).max() < 150
    np.testing.assert_array_equal(np.unique(A.random_rot90(1.0).sample(KEY, (400, 8, 8, 3))[0]["quarters"]), [1, 2, 3])


@pytest.mark.parametrize("before", [A.random_crop(8, 1), A.random_resized_crop(8)])
def test_turns_join_what_is_around_them(before: Any) -> None:
    """A window, turned and mirrored, then cut: the same pixels as one after another."""
    around = (
        before,
        A.random_flip_left_right(1.0),
        A.random_rot90(1.0),
        A.random_flip_up_down(),
        A.random_d4(),
        A.random_crop((6, 4)),
    )
    aug, image = A.chain(*around), PHOTO[:12, :10]
    params = aug.sample(jax.random.key(3), image.shape)
    split = image
    for one, each in zip(around, params[0], strict=True):
        split = one.apply((each,), split)
    assert np.abs(np.int32(aug.apply(params, image)) - np.int32(split)).max() <= (before is not around[0] or 1)


@pytest.mark.parametrize("degrees", [90, -90.0, 180, 450])
def test_a_given_angle_of_quarters_is_a_copy(degrees: float) -> None:
    image = PHOTO if degrees == 180 else SQUARE
    np.testing.assert_array_equal(A.rotate(degrees)(KEY, image), np.rot90(image, int(degrees // 90)))


def test_angles_given_and_one_sided() -> None:
    wanted = np.asarray(Image.fromarray(PHOTO).rotate(20, Image.Resampling.BILINEAR))
    assert np.mean(np.abs(np.int32(A.rotate(20)(KEY, PHOTO)) - wanted) > 0) <= 1e-3
    degrees = np.asarray(A.random_rotation((-5, 30)).sample(KEY, (2000, 8, 8, 3))[0]["degrees"])
    assert -5 <= degrees.min() < -4.8 and 29.8 < degrees.max() <= 30


def test_nothing_from_outside_and_hardly_less() -> None:
    """With white beyond the rim nothing white comes in, and a corner of the frame touches the rim of the image."""
    x, y = oracles.centers(40, 64)
    where = np.stack([x / 64, y / 40], -1).astype(np.float32)
    for degrees in (3.0, -25.0, 90.0, 140.0):
        got = np.asarray(A.rotate(degrees, crop_border=True, fill=1.0)(KEY, where)) * [64, 40]
        x, y = got[..., 0], got[..., 1]
        assert max(x.max() - 63.5, y.max() - 39.5) < 1e-3
        corners = np.float32([[0, 0], [64, 0], [64, 40], [0, 40]])
        shown = A.rotate(degrees, crop_border=True)(KEY, {"image": where, "keypoints": corners})["keypoints"]
        # The corners of the image are outside or on the rim.
        assert np.all(np.max(np.abs(np.asarray(shown) - [32, 20]) - [32, 20], 1) > -1e-3)


# Perspective.


def coefficients(shape: tuple[int, ...], inward: np.ndarray) -> np.ndarray:
    """Pillow's eight numbers, which take the moved corners to the corner pixels."""
    height, width = shape[:2]
    start = np.float64([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    end = start + inward * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    rows, wanted = [], []
    for (x, y), (u, v) in zip(end, start, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    return np.linalg.solve(np.array(rows), np.array(wanted))


@pytest.mark.as_in_use
def test_perspective_is_pillows() -> None:
    aug = A.random_perspective(0.6, 0.5, fill=0.2)
    params = aug.sample(jax.random.key(3), (6, *PHOTO.shape))
    inward = np.asarray(params[0]["inward"], np.float64)
    assert sorted(set((inward.sum((1, 2)) > 0).tolist())) == [False, True]
    points = np.float32([[5, 6], [50.5, 20.25], [80, 50]])
    got = aug.apply(params, {"image": np.stack([PHOTO] * 6), "keypoints": np.stack([points] * 6)})
    for i in range(6):
        numbers = coefficients(PHOTO.shape, inward[i])
        wanted = np.asarray(
            Image.fromarray(PHOTO).transform(
                PHOTO.shape[1::-1],
                Image.Transform.PERSPECTIVE,
                numbers.tolist(),
                Image.Resampling.BILINEAR,
                fillcolor=(51, 51, 51),
            )
        )
        assert np.mean(np.abs(np.int32(got["image"][i]) - wanted) > 0) <= 2e-3
        back = np.linalg.inv(np.append(numbers, 1).reshape(3, 3)) @ np.float64([*points.T, np.ones(3)])
        np.testing.assert_allclose(got["keypoints"][i], (back[:2] / back[2]).T, atol=2e-3)


def test_what_is_on_the_image_is_before_the_horizon() -> None:
    """In each of many draws the moved corners show the corners, also where the first pixel is behind the horizon."""
    height, width = 40, 60
    inward = np.asarray(A.random_perspective(0.65, 1.0).sample(KEY, (1000, height, width, 3))[0]["inward"])
    start = np.float32([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    end = start + inward * np.float32([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    shown = jax.vmap(lambda some, at: jnp.stack(perspective((height, width, 3), some)(at[:, 0], at[:, 1]), -1))
    np.testing.assert_allclose(shown(inward, end), np.broadcast_to(start, end.shape), atol=0.05)
    behind = [coefficients((height, width), one)[6:] @ at < -1 for one, at in zip(inward, end[:, 2], strict=True)]
    assert sum(behind) > 5


def test_the_corners_are_torchvisions() -> None:
    """Whole pixels from 0 to ``int(distortion_scale * half)``, each as likely; for a share of the images."""
    inward = np.asarray(A.random_perspective(0.5, 0.75).sample(KEY, (4000, 20, 41, 3))[0]["inward"])
    some = inward.any((1, 2))
    assert abs(some.mean() - 0.75) < 0.04
    for axis, most in ((0, 10), (1, 5)):
        counts = np.bincount(inward[some][..., axis].astype(int).ravel(), minlength=most + 1)
        assert len(counts) == most + 1 and abs(counts / counts.mean() - 1).max() < 0.15


def test_projective_maps_compose_with_affine_ones() -> None:
    """In every order as one matrix, there and back."""
    tilt = A.Projective(*map(jnp.float32, (1.1, 0.1, 3, -0.2, 0.9, 2, 0.002, -0.001, 1)))
    turn = A.Affine(*map(jnp.float32, (0.8, -0.6, 5, 0.6, 0.8, -2)))
    x, y = jnp.float32([3, 40, 25]), jnp.float32([7, 22, 11])
    for maps in ([turn, tilt], [tilt, turn], [turn, tilt, turn, tilt]):
        (one,) = composed(maps)
        wanted = np.stack([np.float64(x), np.float64(y), np.ones(3)])
        for each in reversed(maps):
            wanted = np.float64(jnp.stack([*each, 0, 0, 1][:9]).reshape(3, 3)) @ wanted
        np.testing.assert_allclose(np.stack(one(x, y)), wanted[:2] / wanted[2], rtol=2e-5)
        there = moved([one], jnp.stack(one(x, y), -1))
        np.testing.assert_allclose(there, np.stack([x, y], -1), rtol=1e-3)


# Smoothing.


def test_stripes_made_smaller_are_gray_and_others_as_they_were() -> None:
    stripes = np.uint8(np.indices((64, 64))[1] % 2 * 255)[..., None]
    plain, smooth = (
        A.random_affine(20, scale=(0.4, 1.5), shear=(5, 5), border="edge", antialias=one) for one in (False, True)
    )
    scales = np.float32([0.4, 0.7, 1.0, 1.5])
    params = jax.tree.map(np.asarray, plain.sample(jax.random.key(1), (4, *stripes.shape)))
    params[0]["scale"] = scales
    before, after = (np.float64(aug.apply(params, np.stack([stripes] * 4))) for aug in (plain, smooth))
    inner = np.s_[24:40, 24:40]
    assert before[0][inner].std() > 60 and after[0][inner].std() < 10
    assert after[1][inner].std() < 0.7 * before[1][inner].std()
    np.testing.assert_array_equal(before[2:], after[2:])


# Elastic fields where a whole step would lead away.


@pytest.mark.parametrize(("alpha", "sigma"), [(80.0, 5.0), (100.0, 5.0), (120.0, 6.0)])
def test_points_and_boxes_of_strong_fields(alpha: float, sigma: float) -> None:
    """Every point comes to where its pixel is, and boxes to those of their masks, but where those are folded."""
    height, width, count = 96, 128, 6
    x, y = oracles.centers(height, width)
    points = np.stack([x[24:72:8, 24:104:8].ravel(), y[24:72:8, 24:104:8].ravel()], -1).astype(np.float32)
    boxes = np.float32([[20, 20, 50, 60], [60, 24, 100, 40], [70, 50, 90, 74]])
    inside = [(x > x1) & (x < x2) & (y > y1) & (y < y2) for x1, y1, x2, y2 in boxes]
    aug = A.elastic_deformation(alpha, sigma, border="edge")
    params = aug.sample(jax.random.key(3), (count, height, width, 2))
    got = aug.apply(
        params,
        {
            "image": np.zeros((count, height, width, 1), np.uint8),
            "mask": np.stack([np.stack(inside, -1)] * count),
            "keypoints": np.stack([points] * count),
            "boxes": np.stack([boxes] * count),
        },
    )
    far, off = [], []
    for i in range(count):
        dx, dy = oracles.elastic_field(params[0]["noise"][i], (height, width), alpha, sigma)
        px, py = np.float64(got["keypoints"][i]).T
        back = np.stack([px + oracles.field_at(dx, px, py), py + oracles.field_at(dy, px, py)], -1)
        far.append(np.hypot(*(back - points).T))
        for j in range(3):
            rows, columns = np.nonzero(np.asarray(got["mask"][i, ..., j]))
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            off.append(np.abs(np.asarray(got["boxes"][i, j]) - seen))
    assert np.mean(np.stack(off) > 1.5) < 0.05 and np.median(off) < 0.5
    assert np.max(far) < 1 and np.mean(np.concatenate(far) > 0.1) < 5e-3
