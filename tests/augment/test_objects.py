"""Crops about an object or a class, and objects pasted on other images: beside NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gradxform as gx

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(1)
H, W, B = 40, 60, 400
PLACES = np.broadcast_to(np.stack(np.indices((H, W)), -1).astype(np.uint8), (B, H, W, 2))
BOXES = np.float32([[0, 0, 0, 0], [5.5, 6, 9, 12], [30, 2, 58, 38], [50, 30, 60, 40]])
LABELS = np.array([3, 1, 2, 2])


def corners(image: Any) -> np.ndarray:
    """Row and column of the upper left pixel of each window."""
    return np.asarray(image)[:, 0, 0].astype(int)


def each(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, (B, *x.shape))


def test_a_window_holds_a_box() -> None:
    inputs = {"image": PLACES, "boxes": each(BOXES), "label": each(LABELS)}
    got = A.random_object_crop((16, 20), classes=(1, 2, 3))(KEY, inputs)
    top, left = corners(got["image"]).T
    assert top.min() >= 0 and top.max() <= H - 16 and left.min() >= 0 and left.max() <= W - 20
    small, corner = (
        (left <= b[0]) & (left + 20 >= b[2]) & (top <= b[1]) & (top + 16 >= b[3]) for b in (BOXES[1], BOXES[3])
    )
    inside = (left >= 30) & (left + 20 <= 58) & (top >= 2) & (top + 16 <= 38)  # the large one fills the window
    assert (small | corner | inside).all()
    assert scipy.stats.binomtest(int(small.sum()), B, 0.5).pvalue > 1e-3  # two classes, of one and of two boxes
    assert len(set(left[small])) == 6 and left[small].max() == 5  # it starts at 5.5, and 20 columns reach its end
    np.testing.assert_allclose(
        got["boxes"][:, 1], np.clip(BOXES[1] - np.stack([left, top] * 2, 1), 0, [20, 16, 20, 16]) * small[:, None]
    )


def test_a_window_holds_a_pixel_of_a_class() -> None:
    mask = np.zeros((H, W), np.int32)
    mask[:30, :30], mask[39, 59] = 1, 2
    inputs = {"image": PLACES, "mask": each(mask)}
    got = A.random_object_crop(8, "mask", classes=(2, 1, 5))(KEY, inputs)["mask"]
    rare, common = (np.asarray((got == one).any((1, 2))) for one in (2, 1))
    assert (rare | common).all()
    assert scipy.stats.binomtest(int(rare.sum()), B, 0.5).pvalue > 1e-3
    # A pixel by how many there are: with one in 901 the rare one is hardly ever seen.
    assert np.asarray((A.random_object_crop(8, "mask")(KEY, inputs)["mask"] == 2).any((1, 2))).sum() < 6


def test_padded_images_and_such_without_a_thing() -> None:
    """Zeros beyond the true size are no class; where nothing is there, the window is anywhere."""
    inputs = {"image": PLACES, "mask": np.zeros((B, H, W), np.int32), "size": np.tile([20, 30], (B, 1))}
    got = A.random_object_crop(8, "mask", classes=(4, 0))(KEY, inputs)
    top, left = corners(got["image"]).T
    assert (top.max(), left.max()) == (12, 22) and (top.min(), left.min()) == (0, 0)
    top, left = corners(A.random_object_crop(8)(KEY, {"image": PLACES, "boxes": np.zeros((B, 0, 4))})["image"]).T
    assert scipy.stats.chisquare(np.bincount(left, minlength=53)).pvalue > 1e-3 and len(np.bincount(left)) == 53


def test_objects_are_pasted_by_their_masks() -> None:
    rng, count, pasted_at_all = np.random.default_rng(0), 3, 0
    image = rng.integers(0, 256, (6, 12, 14, 3), np.uint8)
    boxes = np.zeros((6, count, 4), np.float32)
    mask = np.zeros((6, 12, 14, count), np.int32)
    for b in range(6):
        for n in range(2):  # the third is empty
            x, y = rng.integers(0, 8), rng.integers(0, 6)
            boxes[b, n] = x + 0.25, y, x + 5.5, y + 6
            mask[b, y : y + 6, x : x + 6, n] = n + 1
    inputs = {"image": image, "mask": mask, "boxes": boxes, "visibility": np.full((6, count), 0.5, np.float32)}
    inputs |= {"label": np.arange(18).reshape(6, 3), "image_id": np.arange(6)}
    aug = A.copy_paste(0.5)
    params = aug.sample(KEY, image.shape)
    got = jax.tree.map(np.asarray, aug.apply(params, inputs))
    assert got["mask"].shape == (6, 12, 14, 6) and got["label"].shape == (6, 6)
    for b, other in enumerate(np.asarray(params["partner"])):
        pasted = np.asarray(jax.random.uniform(jax.random.key(params["seed"][b]), (count,))) < 0.5
        pasted_at_all += int(pasted.sum())
        theirs = mask[other] * pasted
        covered = (theirs != 0).any(-1)
        mine = np.where(covered[..., None], 0, mask[b])
        np.testing.assert_array_equal(got["image"][b], np.where(covered[..., None], image[other], image[b]))
        np.testing.assert_array_equal(got["mask"][b], np.concatenate([mine, theirs], -1))
        np.testing.assert_array_equal(got["label"][b], [*inputs["label"][b], *inputs["label"][other]])
        for n in range(count):
            wanted, left = boxes[b, n], 1.0
            if (mine[..., n] != mask[b, ..., n]).any():
                rows, columns = np.nonzero(mine[..., n])
                left = len(rows) / 36
                wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
            np.testing.assert_array_equal(got["boxes"][b, n], wanted)
            np.testing.assert_allclose(got["visibility"][b, n], 0.5 * left)
            np.testing.assert_array_equal(got["boxes"][b, count + n], boxes[other, n] * pasted[n])
            assert got["visibility"][b, count + n] == 0.5 * pasted[n]
    assert 0 < pasted_at_all < 18
    assert (got["image_id"] == np.arange(6)).all()


@pytest.mark.parametrize(
    ("aug", "inputs", "error", "message"),
    [
        (A.random_object_crop(8), {}, ValueError, "^boxes: expected them beside the image"),
        (A.random_object_crop(8, "mask"), {}, ValueError, "^mask: expected one beside the image"),
        (A.random_object_crop(8, "mask"), {"mask": np.zeros((2, 9, 9))}, TypeError, "^mask: expected integers"),
        (
            A.random_object_crop(8, classes=(1,)),
            {"boxes": np.zeros((2, 1, 4))},
            ValueError,
            "^label: expected the class",
        ),
        (A.random_object_crop(10), {"boxes": np.zeros((2, 1, 4))}, ValueError, "^size: expected a window that fits"),
        (A.copy_paste(), {}, ValueError, "^mask: expected one for each object"),
        (A.copy_paste(), {"mask": np.zeros((2, 9, 9))}, ValueError, "^mask: expected one for each object"),
        (A.copy_paste(), {"mask": np.zeros((2, 9, 9, 3)), "keypoints": np.zeros((2, 1, 2))}, TypeError, "^keypoints"),
        (
            A.copy_paste(),
            {"mask": np.zeros((2, 9, 9, 3)), "label": np.zeros(2)},
            ValueError,
            "^label: expected one for",
        ),
    ],
)
def test_misfits(aug: Any, inputs: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        aug(KEY, {"image": jnp.zeros((2, 9, 9, 3))} | inputs)
