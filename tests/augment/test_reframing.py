"""Frames, sides, bicubic sizes, random scales and SSD's crop: Pillow's pixels, NumPy's frames, torchvision's rules."""

from __future__ import annotations

from typing import Any

import geometry_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import gradxform as gx

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(0)
PHOTO = oracles.photo(57, 91, 1)


def pillow(image: np.ndarray, size: tuple[int, int], how: str = "bilinear") -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], getattr(Image.Resampling, how.upper())))


# Frames.


@pytest.mark.parametrize(
    ("padding", "widths"), [(3, ((3, 3), (3, 3))), ((1, 4), ((1, 1), (4, 4))), (((0, 70), (2, 5)), ((0, 70), (2, 5)))]
)
@pytest.mark.parametrize("border", oracles.MODES)
def test_a_frame_is_numpys(padding: Any, widths: Any, border: str) -> None:
    mask = np.arange(57 * 91).reshape(57, 91)
    got = A.pad(padding, border=border, fill=0.2, mask_fill=-1)(KEY, {"image": PHOTO, "mask": mask})
    constants: tuple[dict[str, Any], ...] = ({"constant_values": 51}, {"constant_values": -1})
    image, labels = constants if border == "constant" else ({}, {})
    np.testing.assert_array_equal(got["image"], np.pad(PHOTO, (*widths, (0, 0)), oracles.MODES[border], **image))
    np.testing.assert_array_equal(got["mask"], np.pad(mask, widths, oracles.MODES[border], **labels))


def test_a_frame_does_not_show_what_was_cut_off() -> None:
    """A rotation may bring it back; a frame is of what it is said to be."""
    got = np.asarray(A.chain(A.center_crop(20), A.random_flip_left_right(1.0), A.pad(4, fill=1.0))(KEY, PHOTO))
    wanted = np.pad(PHOTO[18:38, 35:55][:, ::-1], ((4, 4), (4, 4), (0, 0)), constant_values=255)
    np.testing.assert_array_equal(got, wanted)


def test_what_is_missing_is_padded() -> None:
    inputs = {"image": PHOTO, "boxes": np.float32([[1, 2, 30, 40]]), "keypoints": np.float32([[5, 6]])}
    got = A.pad_to((64, 80))(KEY, inputs)
    np.testing.assert_array_equal(got["image"], np.pad(PHOTO, ((3, 4), (0, 0), (0, 0))))
    np.testing.assert_array_equal(got["boxes"], [[1, 5, 30, 43]])
    np.testing.assert_array_equal(got["keypoints"], [[5, 9]])


def test_a_letterbox_is_the_resized_image_in_a_frame() -> None:
    got = A.letterbox((50, 60), fill=0.2)(KEY, {"image": PHOTO, "boxes": np.float32([[0, 0, 91, 57]])})
    wanted = np.pad(pillow(PHOTO, (38, 60)), ((6, 6), (0, 0), (0, 0)), constant_values=51)
    np.testing.assert_array_equal(got["image"], wanted)
    np.testing.assert_allclose(got["boxes"], [[0, 6, 60, 44]], rtol=1e-6)


# Sizes.

SIDES = [
    ((427, 640), {"shorter": 256}, (256, 383)),
    ((640, 427), {"shorter": 256}, (383, 256)),
    ((427, 640), {"shorter": 800, "longer": 1000}, (667, 1000)),
    ((427, 640), {"longer": 320}, (213, 320)),
    ((5, 640), {"longer": 32}, (1, 32)),
    ((300, 300), {"shorter": 7}, (7, 7)),
]


@pytest.mark.parametrize(("shape", "asked", "size"), SIDES)
def test_sides_are_torchvisions(shape: tuple[int, int], asked: dict[str, int], size: tuple[int, int]) -> None:
    """``int(size * long / short)``, then cut to the longer side."""
    assert A.resize(**asked).stage.out_shape((*shape, 3)) == (*size, 3)


@pytest.mark.as_in_use
@pytest.mark.parametrize("size", [(64, 99), (16, 20), (80, 7), (3, 91)])
def test_bicubic_is_pillows_to_the_bit(size: tuple[int, int]) -> None:
    """Black and white beside each other, so that sums leave the range on both sides."""
    noise = np.where(oracles.noise(57, 91, 3) > 127, np.uint8(255), np.uint8(0))
    run = jax.jit(lambda image: A.resize(size, interpolation="bicubic")(KEY, image))
    for image in (PHOTO, noise):
        np.testing.assert_array_equal(run(image), pillow(image, size, "bicubic"))


@pytest.mark.as_in_use
def test_a_bicubic_window_is_pillows_with_a_box() -> None:
    windows = np.array([[0, 0, 57, 91], [3, 7, 20, 30], [11, 2, 9, 8]])
    top, left, height, width = windows.T.astype(np.int32)
    params = ({"top": top, "left": left, "height": height, "width": width},)
    image = jnp.broadcast_to(PHOTO, (3, *PHOTO.shape))
    for (y, x, h, w), got in zip(
        windows, A.random_resized_crop(24, interpolation="bicubic").apply(params, image), strict=True
    ):
        wanted = np.asarray(Image.fromarray(PHOTO).resize((24, 24), Image.Resampling.BICUBIC, (x, y, x + w, y + h)))
        difference = np.abs(np.int32(got) - wanted)
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.02


# Random scales.


def test_scale_jitter_is_resize_then_crop_or_frame() -> None:
    aug = A.random_scale_jitter((40, 48), (0.3, 2.0), fill=0.2)
    keys = 6
    params = jax.tree.map(np.asarray, aug.sample(jax.random.key(1), (keys, *PHOTO.shape)))
    box = np.tile(np.float32([[20, 10, 60, 40]]), (keys, 1, 1))
    got = aug.apply(params, {"image": jnp.broadcast_to(PHOTO, (keys, *PHOTO.shape)), "boxes": box})
    sizes = set()
    for i in range(keys):
        h, w, top, left = (int(params[0][name][i]) for name in ("height", "width", "top", "left"))
        sizes.add(h > 40)
        shown = pillow(PHOTO, (h, w))[top : top + 40, left : left + 48]
        wanted = np.full((40, 48, 3), 51, np.uint8)
        wanted[: shown.shape[0], : shown.shape[1]] = shown
        difference = np.abs(np.int32(got["image"][i]) - wanted)
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.01
        corners = np.float64([20 * w / 91 - left, 10 * h / 57 - top, 60 * w / 91 - left, 40 * h / 57 - top])
        np.testing.assert_allclose(got["boxes"][i, 0], np.clip(corners, 0, [48, 40, 48, 40]), atol=1e-4)
    assert sizes == {False, True}


def test_what_scale_jitter_draws() -> None:
    """Of a factor of 1 the image just fits in; a smaller one has its corner at (0, 0), a larger one is cut anywhere."""
    got = {
        name: np.asarray(x)
        for name, x in A.random_scale_jitter(100, (0.5, 1.5)).sample(KEY, (4000, 200, 400, 3))[0].items()
    }
    assert scipy.stats.kstest(got["width"] + 0.5, scipy.stats.uniform(50, 100).cdf).pvalue > 1e-4
    assert np.abs(got["height"] - got["width"] / 2).max() <= 0.5
    assert not got["top"].any() and not got["left"][got["width"] <= 100].any()
    large = got["width"] > 110
    share = got["left"][large] / (got["width"][large] - 100)
    assert 0 <= share.min() < 0.05 and 0.9 < share.max() < 1


def test_zoom_out_is_the_smaller_image_on_a_canvas() -> None:
    aug = A.random_zoom_out((1.5, 3.0), 0.6, fill=0.2)
    params = jax.tree.map(np.asarray, aug.sample(jax.random.key(1), (6, *PHOTO.shape)))
    mask = np.ones((6, *PHOTO.shape[:2]), np.int32)
    got = aug.apply(params, {"image": jnp.broadcast_to(PHOTO, (6, *PHOTO.shape)), "mask": mask})
    for i in range(6):
        h, w, top, left = (int(params[0][name][i]) for name in ("height", "width", "top", "left"))
        wanted = np.full(PHOTO.shape, 51, np.uint8)
        wanted[top : top + h, left : left + w] = pillow(PHOTO, (h, w))
        difference = np.abs(np.int32(got["image"][i]) - wanted)
        assert difference.max() <= 1 and np.mean(difference > 0) < (0.01 if h < 57 else 1e-9)
        assert got["mask"][i].sum() == h * w == got["mask"][i, top : top + h, left : left + w].sum()
    assert 0 < np.sum(params[0]["height"] == 57) < 6


# SSD's crop.


def overlap(window: np.ndarray, box: np.ndarray) -> float:
    sides = np.minimum(window[2:], box[2:]) - np.maximum(window[:2], box[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    return both / float(np.prod(window[2:] - window[:2]) + np.prod(box[2:] - box[:2]) - both)


def test_a_crop_keeps_enough_of_a_box() -> None:
    """The first window that does, by torchvision's rules in float64; boxes by their middles."""
    aug = A.random_iou_crop((30, 20))
    boxes = np.float32([[10, 8, 50, 40], [60, 20, 90, 50], [0, 0, 0, 0], [2, 2, 8, 8]])
    keys = 24
    params = aug.sample(jax.random.key(2), (keys, *PHOTO.shape))
    image = np.stack([np.indices((57, 91))[0] / 57, np.indices((57, 91))[1] / 91], -1).astype(np.float32)
    got = aug.apply(params, {"image": np.tile(image, (keys, 1, 1, 1)), "boxes": np.tile(boxes, (keys, 1, 1))})
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    whole = 0
    for i in range(keys):
        windows, least = np.float64(params[0]["windows"][i]), float(params[0]["overlap"][i])
        chosen = np.float64([0, 0, 91, 57])
        for window in windows if least < 1 else ():
            w, h = window[2:] - window[:2]
            held = [j for j in (0, 1, 3) if np.all(middles[j] > window[:2]) and np.all(middles[j] < window[2:])]
            if 0.5 <= w / h <= 2 and max((overlap(window, np.float64(boxes[j])) for j in held), default=-1) >= least:
                chosen = window
                break
        whole += chosen[2] - chosen[0] == 91
        size, start = (chosen[2:] - chosen[:2]) / [20, 30], chosen[:2]
        for j in range(4):
            inside = j != 2 and np.all(middles[j] > start) and np.all(middles[j] < chosen[2:])
            wanted = np.clip((np.float64(boxes[j]) - np.tile(start, 2)) / np.tile(size, 2), 0, [20, 30, 20, 30])
            np.testing.assert_allclose(got["boxes"][i, j], wanted if inside else np.zeros(4), atol=1e-3)
        # The middle of the picture says where it came from.
        found = np.asarray(got["image"][i, 14:16, 9:11]).mean((0, 1)) * [57, 91] + 0.5
        np.testing.assert_allclose(found[::-1], (chosen[:2] + chosen[2:]) / 2, atol=0.05)
    assert 0 < whole < keys


@pytest.mark.parametrize(
    "steps",
    [(A.pad_to(24), A.resize(12)), (A.resize((12, 12)), A.random_crop(12, padding=2))],
    ids=["padded and resized", "resized and padded"],
)
def test_a_border_stays_where_it_was_put(steps: Any) -> None:
    """In a chain as one after the other: white does not darken at a rim that has no frame."""
    image, key = jnp.ones((16, 24, 1)), jax.random.key(3)
    params = A.chain(*steps).sample(key, image.shape)
    alone, shape = image, image.shape
    for step in steps:
        alone = (
            step(jax.random.key(0), alone)
            if not jax.tree.leaves(step.sample(key, shape))
            else step.apply((jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, dict))[-1],), alone)
        )
        shape = alone.shape
    np.testing.assert_allclose(A.chain(*steps).apply(params, image), alone, atol=1e-6)
