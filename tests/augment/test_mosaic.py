"""Mosaics beside NumPy: each image where its corner belongs, and its boxes, points and mask with it."""

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
B, H, W = 5, 12, 16
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (B, H, W, 3), np.uint8)
LOW = RNG.uniform(0, 10, (B, 2, 2))
INPUTS = {
    "image": IMAGES,
    "mask": RNG.integers(1, 9, (B, H, W)).astype(np.int32),
    "boxes": np.concatenate([LOW, LOW + 2], -1).astype(np.float32),
    "keypoints": LOW.astype(np.float32),
    "label": np.arange(2 * B).reshape(B, 2),
}
KEY = jax.random.key(3)


def by_numpy(params: Any, size: tuple[int, int], fill: Any, mask_fill: int) -> dict[str, np.ndarray]:
    image = np.full((B, *size, 3), fill)
    mask = np.full((B, *size), mask_fill)
    boxes, points, labels = np.zeros((B, 8, 4)), np.zeros((B, 8, 2)), np.zeros((B, 8), int)
    for b in range(B):
        row, column = np.asarray(params["center"][b])
        for place, partner in enumerate(np.asarray(params["partner"][b])):
            top, left = row - H * (place < 2), column - W * (place % 2 == 0)
            for i in range(max(top, 0), min(top + H, size[0])):
                for j in range(max(left, 0), min(left + W, size[1])):
                    image[b, i, j] = IMAGES[partner, i - top, j - left]
                    mask[b, i, j] = INPUTS["mask"][partner, i - top, j - left]
            for n in range(2):
                points[b, 2 * place + n] = INPUTS["keypoints"][partner, n] + [left, top]
                labels[b, 2 * place + n] = INPUTS["label"][partner, n]
                x1, y1, x2, y2 = INPUTS["boxes"][partner, n] + [left, top, left, top]
                x1, x2, y1, y2 = *np.clip([x1, x2], 0, size[1]), *np.clip([y1, y2], 0, size[0])
                boxes[b, 2 * place + n] = (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else 0
    return {"image": image.astype(np.uint8), "mask": mask, "boxes": boxes, "keypoints": points, "label": labels}


@pytest.mark.parametrize("size", [pytest.param((H, W), marks=pytest.mark.exhaustive), (2 * H, 2 * W)])
def test_mosaics_are_numpys(size: tuple[int, int]) -> None:
    aug = A.mosaic(size, fill=0.4, mask_fill=255)
    params = aug.sample(KEY, IMAGES.shape)
    got, wanted = aug.apply(params, INPUTS), by_numpy(params, size, 102, 255)
    for name in ("image", "mask", "label"):
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
    for name in ("boxes", "keypoints"):
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-5, err_msg=name)
    assert ((got["boxes"] == 0).all(-1) == (wanted["boxes"] == 0).all(-1)).all()
    assert (wanted["image"] == 102).all(-1).any() == (size != (H, W))  # of the size of the images it is covered
    floats = aug.apply(params, (IMAGES / 255).astype(np.float32))
    np.testing.assert_allclose(floats, np.where(wanted["image"] == 102, 0.4, wanted["image"] / 255), atol=1e-3)


def test_what_a_mosaic_draws() -> None:
    keys = jax.random.split(KEY, 1000)
    params = jax.vmap(lambda key: A.mosaic((400, 1000)).sample(key, (4, 8, 8, 3)))(keys)
    partner, center = np.asarray(params["partner"]), np.asarray(params["center"])
    assert (np.sort(partner, 1) == np.arange(4)[:, None]).all()  # each image is in each of the places once
    assert (partner[..., 0] == np.arange(4)).all()
    for place in (1, 2, 3):
        assert scipy.stats.chisquare(np.bincount(partner[:, 0, place])).pvalue > 1e-3
    for axis, length in enumerate((400, 1000)):
        share = center[..., axis].ravel() / length
        assert share.min() >= 0.25 and share.max() <= 0.75
        assert scipy.stats.kstest(share, scipy.stats.uniform(0.25, 0.5).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(center[:, 0].T)[0, 1]) < 4 / np.sqrt(1000)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (IMAGES[0], r"^image: expected a batch"),
        ({"image": IMAGES, "label": np.arange(B)}, r"^label: expected one for each of 'boxes'"),
        (INPUTS | {"label": np.arange(B)}, r"^label: expected one for each of 'boxes'.*\(5,\)"),
    ],
)
def test_misfits(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        A.mosaic(8)(KEY, inputs)


@pytest.mark.exhaustive
def test_behind_and_before_others() -> None:
    """In a chain: crops of each image before, normalized behind."""
    aug = A.chain(A.center_crop(8), A.mosaic(12), A.normalize("half"))
    got = aug(KEY, jnp.asarray(IMAGES))
    assert got.shape == (B, 12, 12, 3) and got.dtype == jnp.float32 and got.min() < -0.9
