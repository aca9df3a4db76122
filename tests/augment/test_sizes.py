"""Images of several sizes in one padded batch: each comes out as it would by itself, with zeros beyond it."""

from __future__ import annotations

import functools
from typing import Any

import geometry_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(3)
ROOM = (24, 30)
SIZES = np.array([[24, 30], [17, 13], [2, 19]])
"""The whole array, a part of it, and less than a filter is wide."""
TURN = A.random_rotation(40, border="reflect", mask_fill=5)


@A.augmentation
def nudged() -> Any:
    """Whole pixels to the side, of a user's own making."""

    def draw(key: jax.Array, shape: Any) -> Any:
        return jax.random.randint(key, (2,), -4, 5)

    def place(by: Any, shape: Any) -> Any:
        return A.Affine(1.0, 0.0, by[0].astype(jnp.float32), 0.0, 1.0, by[1].astype(jnp.float32))

    return A.Resampling((A.Geometric(draw, place, "shift", border=A.Border("constant", 0.4, 6), reach=(4, 4)),))


STAGES: dict[str, Any] = {
    "padded crop": A.random_crop((20, 24), (9, 14), fill=(0.2, 0.4, 0.9), mask_fill=3),
    "mirrored crop": A.chain(A.random_flip_left_right(), A.random_crop((12, 20), (10, 9), border="reflect")),
    "middle": A.center_crop((2, 11)),
    "flips and a shift": A.chain(A.random_flip_left_right(0.6), nudged(), A.random_flip_up_down(0.6)),
    "resized crop": A.random_resized_crop((16, 20)),
    "rotation": TURN,
    "nearest": A.random_affine(20, (0.1, 0.2), (0.7, 1.3), (5, 5), interpolation="nearest", fill=0.5, mask_fill=4),
    "statistics": A.chain(A.autocontrast(), A.random_contrast(0.8), A.equalize(), A.invert()),
    "neighbours": A.chain(A.sharpness(1.7), A.gaussian_blur(2.0, 9), A.cutout(8), A.random_erasing(1.0)),
    "choice": A.one_of(A.random_flip_left_right(1.0), A.random_rotation(30, interpolation="nearest"), A.solarize(100)),
    "policy": A.rand_augment(2, 9),
    "fixed": A.chain(A.random_resized_crop(16), A.color_jitter(0.4, 0.4, 0.4), A.elastic_deformation(10.0, 3.0)),
}
QUICK = [
    ("padded crop", np.uint8),
    ("resized crop", np.uint8),
    ("flips and a shift", np.uint8),
    ("nearest", np.uint8),
    ("statistics", np.uint8),
    ("rotation", np.float32),
]
"""One of each mechanism; the others take minutes to compile."""
FLOATS = ["mirrored crop", "resized crop", "rotation", "statistics", "neighbours"]


@functools.cache
def alone(dtype: Any) -> list[dict[str, np.ndarray]]:
    found = []
    for i, (height, width) in enumerate(SIZES):
        image = oracles.photo(height, width) if dtype == np.uint8 else oracles.noise(height, width, 3, np.float32, i)
        image = np.asarray(image)
        found.append(
            {
                "image": image,
                "mask": np.int32(image[..., 0] > image.mean()) + 1,
                "boxes": np.float32([[1, 0, width / 2, height / 2], [width / 3, height / 3, width, height]]),
                "keypoints": np.float32([[2, 1, 0], [width - 1.5, height - 0.5, 2]]),
            }
        )
    return found


def padded(dtype: Any) -> dict[str, np.ndarray]:
    """Rubbish stands beyond the images."""
    batch = {
        name: np.stack(
            [
                np.pad(
                    one[name],
                    [
                        (0, ROOM[0] - one[name].shape[0]),
                        (0, ROOM[1] - one[name].shape[1]),
                        *[(0, 0)] * (one[name].ndim - 2),
                    ],
                    constant_values=77,
                )
                for one in alone(dtype)
            ]
        )
        for name in ("image", "mask")
    }
    return (
        batch
        | {name: np.stack([one[name] for one in alone(dtype)]) for name in ("boxes", "keypoints")}
        | {"size": SIZES, "image_id": np.arange(3)}
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in QUICK else pytest.mark.exhaustive)
        for dtype, names in ((np.uint8, STAGES), (np.float32, FLOATS))
        for name in names
    ],
)
def test_an_image_of_a_padded_batch_comes_out_as_by_itself(name: str, dtype: Any) -> None:
    aug, batch = STAGES[name], padded(dtype)
    got = jax.tree.map(np.asarray, aug(KEY, batch))
    assert sorted(got) == sorted(batch)
    fixed = aug.stage.out_shape((*ROOM, 3))[:2]
    for i, one in enumerate(alone(dtype)):
        wanted = jax.tree.map(np.asarray, aug(jax.random.fold_in(KEY, i), one))
        height, width = wanted["image"].shape[:2]
        assert got["size"][i].tolist() == [height, width] == (SIZES[i].tolist() if fixed == ROOM else list(fixed))
        found = got["image"][i]
        if dtype == np.uint8:
            np.testing.assert_array_equal(found[:height, :width], wanted["image"])
        else:
            np.testing.assert_allclose(found[:height, :width], wanted["image"], atol=2e-6)
        assert not found[height:].any() and not found[:, width:].any()
        np.testing.assert_array_equal(got["mask"][i, :height, :width], wanted["mask"])
        assert got["mask"][i].sum() == wanted["mask"].sum()
        np.testing.assert_allclose(got["boxes"][i], wanted["boxes"], atol=1e-5)
        np.testing.assert_allclose(got["keypoints"][i], wanted["keypoints"], atol=1e-5)


def test_one_image_and_one_program_for_all_sizes() -> None:
    traces = 0

    @jax.jit
    def turned(inputs: Any) -> Any:
        nonlocal traces
        traces += 1
        return TURN(KEY, inputs)

    batch = padded(np.uint8)
    for i, one in enumerate(alone(np.uint8)):
        height, width = SIZES[i]
        got = turned({"image": batch["image"][i], "size": jnp.asarray(SIZES[i])})
        np.testing.assert_array_equal(got["image"][:height, :width], TURN(KEY, one["image"]))
        np.testing.assert_array_equal(got["size"], SIZES[i])
    assert traces == 1


def test_parameters_of_true_sizes_are_kept_and_applied() -> None:
    aug, batch = A.random_affine(20, translate=(0.5, 0.5)), padded(np.uint8)
    params = aug.sample(KEY, batch["image"].shape, size=SIZES)
    np.testing.assert_array_equal(aug.apply(params, batch)["image"], aug(KEY, batch)["image"])
    assert np.all(np.abs(params[0]["down"]) <= SIZES[:, 0] / 2)


def test_resized_images_of_several_sizes_are_as_by_themselves_to_a_level() -> None:
    """The weights are known before the program runs where the size is, in float64."""
    aug, batch = A.resize((16, 20)), padded(np.uint8)
    got = np.int32(aug(KEY, batch)["image"])
    for one, found in zip(alone(np.uint8), got, strict=True):
        assert np.abs(found - np.int32(aug(KEY, one["image"]))).max() <= 1


def test_choices_of_several_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^image: expected all choices to give one shape"):
        A.random_apply(A.resize(ROOM))(KEY, {"image": padded(np.uint8)["image"], "size": SIZES})
