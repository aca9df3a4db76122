"""Masks, boxes, points and labels move with the image: they are where a marker painted into it is afterwards."""

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
HEIGHT, WIDTH = 40, 48
BATCH = 6
BOX = (20, 13, 29, 25)  # x1, y1, x2, y2
"""A bright box that stays in sight of all augmentations below."""
POINTS = np.float32([[20, 13], [29, 13], [24.5, 19], [29, 25]])

# What moves the image, and how far from the marker's place a box's side may lie, in pixels.
MOVES: dict[str, tuple[Any, float]] = {
    "crop": (A.random_crop((36, 44)), 0.01),
    "padded crop": (A.random_crop((40, 48), (6, 5)), 0.01),
    "middle": (A.center_crop((30, 37)), 0.01),
    "left to right": (A.random_flip_left_right(), 0.01),
    "up and down": (A.random_flip_up_down(), 0.01),
    "crops and flips": (
        A.chain(
            A.random_crop((36, 44)), A.random_flip_left_right(), A.random_flip_up_down(), A.random_crop((36, 44), 3)
        ),
        0.01,
    ),
    "larger": (A.resize((80, 144)), 1),
    "smaller": (A.resize((30, 24)), 1),
    "resized crop": (A.random_resized_crop((60, 60), (0.7, 1.0)), 1.5),
    "rotation": (A.random_rotation(40), 1),
    "affine": (A.random_affine(20, (0.1, 0.1), (0.8, 1.2), (10, 10)), 1),
    "elastic": (A.elastic_deformation(20.0, 5.0), 1.5),
    "all": (
        A.chain(
            A.random_crop((38, 46)), A.random_rotation(15), A.random_flip_left_right(), A.elastic_deformation(10.0, 5.0)
        ),
        1.5,
    ),
}
RIGID = [name for name, (_, far) in MOVES.items() if far == 0.01]


def painted(dtype: Any = np.float32) -> np.ndarray:
    """(H, W, 5): the box in one channel, and a blob of 5 x 5 pixels about each of three points and the box's middle."""
    image = np.zeros((HEIGHT, WIDTH, 5), np.float32)
    x1, y1, x2, y2 = BOX
    image[y1:y2, x1:x2, 0] = 1
    x, y = oracles.centers(HEIGHT, WIDTH)
    for channel, (px, py) in enumerate(POINTS, 1):
        image[..., channel] = np.clip(1.25 - np.hypot(x - px, y - py) / 4, 0, 1)
    return np.round(image * 255).astype(np.uint8) if dtype == np.uint8 else image


@functools.cache
def moved(name: str) -> dict[str, np.ndarray]:
    """A batch of the painted image with all its targets, each moved in its own way."""
    image = painted()
    inputs = {
        "image": image,
        "mask": image[..., 0] > 0.5,
        "boxes": np.float32([BOX, (0, 0, 0, 0), (22, 15, 23, 16)]),
        "keypoints": POINTS,
        "label": np.int32(7),
    }
    batch = {key: np.stack([value] * BATCH) for key, value in inputs.items()}
    got = MOVES[name][0](jax.random.key(1), batch)
    assert sorted(got) == sorted(batch)
    return {key: np.asarray(value) for key, value in got.items()}


@pytest.mark.parametrize("name", MOVES)
def test_a_mask_moves_with_the_image(name: str) -> None:
    """It is the bright half: what lies between pixels is seen at their rim alone."""
    got, (_, far) = moved(name), MOVES[name]
    bright, mask = got["image"][..., 0], got["mask"]
    assert mask.dtype == bool
    assert mask.shape == bright.shape
    assert mask.any((1, 2)).all()
    wrong = mask != (bright > 0.5)
    if far == 0.01:
        assert not wrong.any()
    # A shrunk image is smoothed, so its mask may be half a pixel off all around.
    rim = 4 * np.sqrt(mask.sum((1, 2)))
    assert np.all(wrong.sum((1, 2)) <= 0.55 * rim)


@pytest.mark.parametrize("name", MOVES)
def test_a_box_is_about_what_was_in_it(name: str) -> None:
    got, (_, far) = moved(name), MOVES[name]
    for image, boxes in zip(got["image"], got["boxes"], strict=True):
        rows, columns = np.nonzero(image[..., 0] > 0.5)
        # A box turned is about the corners, which a few pixels of the rim do not reach.
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0], seen, atol=far + (0.5 if far > 0.01 else 0))
        assert not boxes[1].any(), "padding stays"
        assert np.all(boxes[2, :2] > boxes[0, :2]) and np.all(boxes[2, 2:] < boxes[0, 2:])


@pytest.mark.parametrize("name", MOVES)
def test_a_point_is_where_its_blob_is(name: str) -> None:
    got = moved(name)
    assert got["keypoints"].dtype == np.float32
    height, width = got["image"].shape[1:3]
    x, y = oracles.centers(height, width)
    off = []
    for image, points in zip(got["image"], got["keypoints"], strict=True):
        for channel, (px, py) in enumerate(points, 1):
            blob = image[..., channel]
            if px < 8 or py < 8 or px > width - 8 or py > height - 8:
                continue  # a part of it is out of sight
            off.append(np.hypot((x * blob).sum() / blob.sum() - px, (y * blob).sum() / blob.sum() - py))
    assert len(off) >= 8
    # The mean of a blob that is bent, not its middle, is what is measured.
    assert max(off) < (0.01 if name in RIGID else 0.6 if "elastic" in str(MOVES[name][0]) else 0.15)


@pytest.mark.parametrize("name", MOVES)
def test_a_label_stays(name: str) -> None:
    label = moved(name)["label"]
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, 7)


# Points and boxes against the map's own inverse, in float64.


@pytest.mark.as_in_use
def test_points_and_boxes_of_an_affine_map_are_exact() -> None:
    """Points outside the image, too: they are not cut to it."""
    aug = A.random_affine(30, (0.2, 0.2), (0.7, 1.4), (15, 15))
    image = jnp.zeros((30, 50, 1), jnp.uint8)
    points = np.float32([[-20, 5], [0, 0], [50, 30], [90, -40], [12.25, 7.5]])
    box = np.float32([[10, 8, 35, 20]])
    params = aug.sample(jax.random.key(2), image.shape)
    got = aug.apply(params, {"image": image, "keypoints": points, "boxes": box})
    inverse = np.linalg.inv(oracles.affine(image.shape, **{name: float(x) for name, x in params[0].items()}))
    wanted = np.stack(oracles.placed(inverse, *np.float64(points).T), -1)
    np.testing.assert_allclose(got["keypoints"], wanted, rtol=1e-5, atol=1e-4)
    x, y = oracles.placed(inverse, np.float64([10, 35, 35, 10]), np.float64([8, 8, 20, 20]))
    wanted = [max(x.min(), 0), max(y.min(), 0), min(x.max(), 50), min(y.max(), 30)]
    np.testing.assert_allclose(got["boxes"][0], wanted, atol=1e-4)


@pytest.mark.parametrize(("alpha", "missed"), [(30.0, 0.0), (200.0, 0.02)], ids=["smooth", "folded"])
def test_points_of_an_elastic_field_come_from_where_they_were(alpha: float, missed: float) -> None:
    """Where several places show a point it comes to one of them; nearly all do where the field is folded badly."""
    image = jnp.zeros((60, 70, 1), jnp.uint8)
    points = np.float32(np.random.RandomState(0).uniform(10, 50, (100, 2)))
    params = A.elastic_deformation(alpha, 5.0).sample(jax.random.key(1), image.shape)

    def placed(alpha: Any) -> jax.Array:
        inputs = {"image": image, "keypoints": points}
        found: jax.Array = A.elastic_deformation(alpha, 5.0).apply(params, inputs)["keypoints"]
        return found

    found, slope = jax.jvp(placed, (alpha,), (1.0,))
    x, y = np.float64(found).T
    dx, dy = oracles.elastic_field(params[0]["noise"], image.shape, alpha, 5.0)
    assert (np.gradient(dx, axis=1).min() < -1) == (missed > 0)

    def off(x: Any, y: Any, scale: float) -> np.ndarray:
        back = [x + scale * oracles.field_at(dx, x, y), y + scale * oracles.field_at(dy, x, y)]
        return np.hypot(*(np.stack(back) - points.T))

    assert (off(x, y, 1.0) > 0.01).mean() <= missed
    if not missed:  # a stronger field, and points that moved on as the derivative says
        assert off(*(np.stack([x, y]) + 0.3 * np.float64(slope).T), (alpha + 0.3) / alpha).max() < 0.01


# What leaves the image.


def test_a_box_is_cut_and_one_out_of_sight_is_zeros() -> None:
    image = jnp.zeros((20, 30, 3), jnp.uint8)
    boxes = np.float32([[0, 0, 8, 8], [3, 4, 12, 20], [26, 1, 30, 20], [6, 5, 7, 6], [0, 0, 5, 20], [10, 6, 10, 9]])
    params = ({"top": jnp.array(5), "left": jnp.array(5)},)
    got = A.random_crop((10, 12)).apply(params, {"image": image, "boxes": boxes})["boxes"]
    np.testing.assert_array_equal(
        got, [[0, 0, 3, 3], [0, 0, 7, 10], [0, 0, 0, 0], [1, 0, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    padded = A.random_crop((24, 34), 2).apply(
        ({"top": jnp.array(-2), "left": jnp.array(-2)},), {"image": image, "boxes": boxes}
    )["boxes"]
    np.testing.assert_array_equal(padded[:5], boxes[:5] + 2)


def test_a_point_out_of_sight_stays_there() -> None:
    image = jnp.zeros((20, 30, 3), jnp.uint8)
    points = np.float32([[0, 0], [30, 20], [-4, 3]])
    params = ({"top": jnp.array(5), "left": jnp.array(7)},)
    got = A.random_crop((10, 12)).apply(params, {"image": image, "keypoints": points})["keypoints"]
    np.testing.assert_array_equal(got, points - [7, 5])
    flip = A.random_flip_left_right(1.0)(jax.random.key(0), {"image": image, "keypoints": points})["keypoints"]
    np.testing.assert_array_equal(flip, [[30, 0], [0, 20], [34, 3]])


def test_without_boxes_or_points_there_are_none() -> None:
    for count, size in ((2, 9), (5, 300)):  # all at once, and two at a time with a rest
        inputs = {
            "image": jnp.zeros((count, size, size, 1)),
            "boxes": jnp.zeros((count, 0, 4)),
            "keypoints": jnp.zeros((count, 0, 2)),
        }
        got = A.random_rotation(10)(jax.random.key(0), inputs)
        assert got["boxes"].shape == (count, 0, 4)
        assert got["keypoints"].shape == (count, 0, 2)


# Masks.


MASKS = [
    (jnp.bool_, (), 0),
    (jnp.int32, (), -1),
    (jnp.uint8, (2,), 255),
    (jnp.float32, (3,), 2),
    (jnp.bfloat16, (1,), 0),
]


@pytest.mark.parametrize(("dtype", "channels", "fill"), MASKS)
def test_a_mask_keeps_its_dtype_and_its_values(dtype: Any, channels: tuple[int, ...], fill: int) -> None:
    """Each comes from the nearest pixel, with a fill of its own, whatever the image does between pixels."""
    random = np.random.RandomState(0)
    mask = jnp.asarray(random.randint(0, 200, (14, 18, *channels)) % (2 if dtype == jnp.bool_ else 256), dtype)
    image = jnp.asarray(oracles.noise(14, 18, 3))
    aug = A.random_affine(mask_fill=fill, fill=0.5)
    params = (
        {
            "degrees": jnp.float32(33),
            "down": jnp.float32(1.2),
            "right": jnp.float32(2),
            "scale": jnp.float32(0.9),
            "shear_x": jnp.float32(0.1),
            "shear_y": jnp.float32(0),
        },
    )
    got = aug.apply(params, {"image": image, "mask": mask})["mask"]
    assert got.dtype == dtype
    assert got.shape == mask.shape
    matrix = oracles.affine((14, 18), **{name: float(x) for name, x in params[0].items()})
    x, y = oracles.placed(matrix, *oracles.centers(14, 18))
    clear = (np.abs(np.round(x) - x) > 4e-3) & (np.abs(np.round(y) - y) > 4e-3)
    wanted = oracles.nearest(np.asarray(mask), x, y, "constant", fill)
    np.testing.assert_array_equal(np.asarray(got)[clear], wanted[clear])
    assert np.mean(wanted == fill) > 0.02


@pytest.mark.parametrize("border", ["edge", "reflect", "constant"])
def test_a_mask_of_a_padded_crop(border: str) -> None:
    mask = np.random.RandomState(1).randint(0, 99, (6, 7)).astype(np.int32)
    aug = A.random_crop((10, 11), 2, border=border, mask_fill=-5)
    got = aug(jax.random.key(0), {"image": jnp.zeros((6, 7, 3)), "mask": mask})["mask"]
    np.testing.assert_array_equal(
        got, np.pad(mask, 2, oracles.MODES[border], **({"constant_values": -5} if border == "constant" else {}))
    )


def test_a_mask_of_another_size_has_the_nearest_pixels() -> None:
    mask = np.random.RandomState(1).randint(0, 2, (8, 12, 1)).astype(bool)
    got = A.resize((4, 24))(jax.random.key(0), {"image": jnp.zeros((8, 12, 3)), "mask": mask})["mask"]
    np.testing.assert_array_equal(got, mask[1::2].repeat(2, 1))


# Forms of boxes and points, and fields that are not known.


def test_boxes_on_the_rim_are_cut_compiled_or_not() -> None:
    """Half a pixel is what rounded numbers may be off by; more is refused where it can be seen."""
    image = np.zeros((20, 30, 3), np.uint8)
    boxes = np.float32([[-0.4, 2, 30.0003, 20.5], [4, 5, 3.9, 9]])
    wanted = np.float32([[0, 2, 30, 20], [4, 5, 4, 9]])
    inputs = {"image": image, "boxes": boxes}
    for call in (A.invert(), jax.jit(A.invert())):
        np.testing.assert_array_equal(call(jax.random.key(0), inputs)["boxes"], wanted)
    far = {"image": image, "boxes": boxes + np.float32([0, 0, 0.6, 0])}
    with pytest.raises(ValueError, match=r"^boxes: expected 0 <= x1 <= x2 <= 30 .* got \[-0.4"):
        A.invert()(jax.random.key(0), far)
    np.testing.assert_array_equal(jax.jit(A.invert())(jax.random.key(0), far)["boxes"][0], wanted[0])


# A box in an image 30 wide and 20 high, and in its mirror image.
LAYOUTS = {
    "xyxy": ([4, 5, 10, 9], [20, 5, 26, 9]),
    "yxyx": ([5, 4, 9, 10], [5, 20, 9, 26]),
    "xywh": ([4, 5, 6, 4], [20, 5, 6, 4]),
    "cxcywh": ([7, 7, 6, 4], [23, 7, 6, 4]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_formats_of_boxes(layout: str) -> None:
    """Before and after, in pixels and in shares of the image that it was and of the one that it becomes."""
    before, after = (np.float64(one) for one in LAYOUTS[layout])
    unit = np.float64([20, 30] * 2 if layout == "yxyx" else [30, 20] * 2)
    image, flip = np.zeros((20, 30, 3), np.uint8), A.random_flip_left_right(1.0)
    half = A.chain(flip, A.resize((10, 60)))
    got = flip(jax.random.key(0), {"image": image, "boxes": np.float32([before])}, boxes=layout)["boxes"]
    np.testing.assert_allclose(got, [after], rtol=1e-5)
    shares = {"image": image, "boxes": np.float32([before / unit])}
    got = half.apply(half.sample(jax.random.key(0), image.shape), shares, boxes=f"rel_{layout}")["boxes"]
    np.testing.assert_allclose(got, [after / unit], rtol=1e-5)


def test_boxes_in_shares_taken_for_pixels_are_warned_of() -> None:
    inputs = {"image": np.zeros((20, 30, 3), np.uint8), "boxes": np.float32([[0.1, 0.2, 0.5, 0.6]])}
    with pytest.warns(UserWarning, match="rel_xyxy"):
        A.invert()(jax.random.key(0), inputs)
    with pytest.raises(ValueError, match=r"^boxes: expected one of 'xyxy'"):
        A.invert()(jax.random.key(0), inputs, boxes="coco")


def test_what_is_probably_meant_otherwise_is_warned_of() -> None:
    """Channels that come first; one number for both sides of an image that is not square."""
    for shape in ((3, 8, 9), (2, 1, 16, 16)):
        with pytest.warns(UserWarning, match=r"^image: expected channels last"):
            A.chain()(jax.random.key(0), np.zeros(shape, np.uint8))
    A.chain()(jax.random.key(0), np.zeros((5, 1, 64, 8), np.float32))  # signals of eight channels
    image = np.zeros((2, 10, 12, 3), np.uint8)
    with pytest.warns(UserWarning, match=r"^size: expected height and width .* shorter=6 keeps it"):
        assert A.resize(6)(jax.random.key(0), image).shape == (2, 6, 6, 3)
    for aug, inputs in (
        (A.resize(6), image[:, :, :10]),
        (A.resize((6, 6)), image),
        (A.resize(shorter=6), image),
        (A.resize(6), {"image": image, "size": np.int32([[10, 10], [8, 8]])}),
    ):
        aug(jax.random.key(0), inputs)


def test_points_keep_their_other_columns_and_change_sides() -> None:
    """(persons, points, x, y and visibility); joints change places in mirror images alone."""
    points = np.float32(np.random.RandomState(0).uniform(1, 9, (2, 3, 5, 3)))
    inputs = {"image": np.zeros((2, 10, 12, 1), np.uint8), "keypoints": points}
    flip = A.random_flip_left_right(joints=((1, 2), (4, 3)))
    aug = A.chain(flip, A.random_crop((8, 8)), A.random_flip_up_down(1.0, joints=((0, 4),)))
    params = (
        (
            {"flip": jnp.array([True, False])},
            {"top": jnp.array([1, 2]), "left": jnp.array([3, 0])},
            {"flip": jnp.array([True, True])},
        ),
    )
    got = aug.apply(params, inputs)["keypoints"]
    wanted = points.copy()
    wanted[0, ..., 0] = 12 - points[0, ..., 0]
    wanted[0] = wanted[0][:, [0, 2, 1, 4, 3]]
    wanted[..., :2] -= np.float32([[3, 1], [0, 2]])[:, None, None]
    wanted[..., 1] = 8 - wanted[..., 1]
    np.testing.assert_allclose(got, wanted[:, :, [4, 1, 2, 3, 0]], atol=1e-5)
    with pytest.raises(ValueError, match=r"^joints: .* below 2"):
        flip(jax.random.key(0), inputs | {"keypoints": points[:, :, :2]})


def test_a_field_that_is_not_known_passes() -> None:
    """Whatever it is, through views and mixtures too."""
    inputs = {"file": ["a", "b"], "image": np.zeros((2, 8, 8, 3), np.uint8), "image_id": np.array([7, 9])}
    for aug in (A.invert(), A.chain(A.random_crop(4), A.random_flip_left_right())):
        got = aug(jax.random.key(0), inputs)
        assert list(got) == list(inputs)
        assert got["file"] is inputs["file"] and got["image_id"] is inputs["image_id"]
    assert all(view["file"] == ["a", "b"] for view in A.two_views(A.invert())(jax.random.key(0), inputs))
    mixed = A.mixup(num_classes=2)(jax.random.key(0), inputs | {"label": np.array([0, 1])})
    assert mixed["image_id"] is inputs["image_id"]
    assert jax.jit(lambda x: A.invert()(jax.random.key(0), x))({"image": inputs["image"], "id": 3})["id"] == 3


def test_how_much_of_a_box_is_left() -> None:
    """The shares of two crops multiply with what came in; those of too little, and narrow ones, go."""
    image, boxes = np.zeros((20, 20, 1), np.uint8), np.float32([[0, 0, 10, 10], [8, 8, 12, 12], [9, 4, 10.5, 12]])
    crops = (A.center_crop(16), A.center_crop((10, 8)))  # rows 5 to 15 and columns 6 to 14 of the image
    inputs = {"image": image, "boxes": boxes, "visibility": np.float32([0.5, 1, 0.25])}
    got = A.chain(crops[0], A.invert(), crops[1])(jax.random.key(0), inputs)
    np.testing.assert_allclose(got["visibility"], [0.5 * 4 * 5 / 100, 1, 0.25 * 7 / 8], rtol=1e-6)
    np.testing.assert_allclose(got["boxes"], [[0, 0, 4, 5], [2, 3, 6, 7], [3, 0, 4.5, 7]])
    for aug, kept in (
        (A.drop_slivers(0.0, 0.0), [1, 1, 1]),
        (A.drop_slivers(0.15, 0.0), [0, 1, 1]),
        (A.drop_slivers(0.0, 2.0), [1, 1, 0]),
        (A.drop_slivers(0.5), [0, 1, 0]),
    ):
        cut = A.chain(*crops, aug)(jax.random.key(0), inputs)
        np.testing.assert_array_equal(cut["boxes"], got["boxes"] * np.float32(kept)[:, None])
        np.testing.assert_allclose(cut["visibility"], got["visibility"] * np.float32(kept), rtol=1e-6)


# What has no place.


def test_what_changes_colours_leaves_the_rest() -> None:
    inputs = {
        "image": jnp.asarray(oracles.noise(8, 8, 3)),
        "mask": jnp.arange(64).reshape(8, 8),
        "boxes": jnp.asarray([[1.0, 2, 5, 6]]),
        "keypoints": jnp.asarray([[3.5, 9.0]]),
        "label": jnp.asarray(3),
    }
    got = A.invert()(jax.random.key(0), inputs)
    for name in ("mask", "boxes", "keypoints", "label"):
        assert jnp.array_equal(got[name], inputs[name])
    assert not jnp.array_equal(got["image"], inputs["image"])


@pytest.mark.parametrize(
    "wrap",
    [lambda aug: A.random_apply(aug, 0.5), lambda aug: A.one_of(aug, A.chain()), lambda aug: A.chain(A.invert(), aug)],
)
def test_targets_move_in_what_is_made_of_others(wrap: Any) -> None:
    aug = wrap(A.random_flip_left_right(1.0))
    image = np.zeros((8, 6, 10, 1), np.uint8)
    image[:, 2, 3] = 255
    inputs = {
        "image": image,
        "mask": image[..., 0] == 255,
        "keypoints": np.tile(np.float32([3.5, 2.5]), (8, 1, 1)),
        "boxes": np.tile(np.float32([3, 2, 4, 3]), (8, 1, 1)),
    }
    got = {name: np.asarray(x) for name, x in aug(jax.random.key(0), inputs).items()}
    places = set()
    for i in range(8):
        ((row, column),) = np.argwhere(got["mask"][i])
        places.add(int(column))
        np.testing.assert_array_equal(got["keypoints"][i], [[column + 0.5, row + 0.5]])
        np.testing.assert_array_equal(got["boxes"][i], [[column, row, column + 1, row + 1]])
        assert len(np.unique(got["image"][i])) == 2
        assert np.sum(got["image"][i] == got["image"][i, row, column]) == 1
    assert places in ({3, 6}, {6})


def test_both_views_have_their_targets() -> None:
    inputs = {
        "image": np.zeros((3, 8, 8, 1), np.uint8),
        "keypoints": np.full((3, 1, 2), 2.0, np.float32),
        "label": np.arange(3),
    }
    views = A.two_views(A.random_flip_left_right(0.0), A.random_flip_left_right(1.0))(jax.random.key(0), inputs)
    assert len(views) == 2
    for view, x in zip(views, (2, 6), strict=True):
        np.testing.assert_array_equal(view["keypoints"], np.tile(np.float32([x, 2]), (3, 1, 1)))
        np.testing.assert_array_equal(view["label"], np.arange(3))
