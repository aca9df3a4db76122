"""What augmentations refuse, by the name of the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

A = gx.augment
KEY = jax.random.key(0)
NAN = float("nan")
IMAGE = np.zeros((8, 10, 3), np.float32)
BATCH = np.zeros((4, 8, 10, 3), np.uint8)
FLIP = A.random_flip_left_right()
INVERT = A.invert()


def refused(error: type[Exception], name: str, call: Callable[[], Any]) -> str:
    with pytest.raises(error, match=f"^{re.escape(name)}: ") as caught:
        call()
    return str(caught.value)


# Images.

IMAGES: dict[str, tuple[type[Exception], Any]] = {
    "rank 2": (ValueError, np.zeros((4, 4), np.uint8)),
    "rank 5": (ValueError, np.zeros((1, 2, 4, 4, 3), np.uint8)),
    "no rows": (ValueError, np.zeros((0, 4, 3), np.uint8)),
    "no images": (ValueError, np.zeros((0, 4, 4, 3), np.uint8)),
    "no channels": (ValueError, np.zeros((4, 4, 0), np.float32)),
    "int32": (TypeError, np.zeros((4, 4, 3), np.int32)),
    "float64": (TypeError, np.zeros((4, 4, 3))),
    "bool": (TypeError, np.zeros((4, 4, 3), bool)),
    "a list": (TypeError, [[[0.5]]]),
    "a number": (TypeError, 0.5),
    "nothing": (TypeError, None),
}
RANGES: dict[str, Any] = {
    "above 1": np.full((4, 4, 3), 1.0001, np.float32),
    "8 bits": np.full((4, 4, 3), 255, np.float32),
    "below 0": np.full((4, 4, 3), -0.01, np.float32),
    "nan": np.float32([[[0], [NAN]]]),
    "infinite": jnp.full((4, 4, 3), np.inf, jnp.bfloat16),
}


@pytest.mark.parametrize("what", IMAGES)
def test_what_is_no_image_is_refused(what: str) -> None:
    error, image = IMAGES[what]
    refused(error, "image", lambda: FLIP(KEY, image))
    refused(error, "image", lambda: FLIP(KEY, {"image": image}))
    refused(error, "image", lambda: FLIP.apply(FLIP.sample(KEY, (4, 4, 3)), image))


@pytest.mark.parametrize("what", RANGES)
def test_colours_are_of_floats_from_0_to_1_and_moves_of_any(what: str) -> None:
    image = RANGES[what]
    for aug in (INVERT, A.chain(FLIP, A.random_apply(INVERT))):
        refused(ValueError, "image", lambda aug=aug: aug(KEY, image))
        refused(ValueError, "image", lambda aug=aug: aug.apply(aug.sample(KEY, (4, 4, 3)), {"image": image}))
    np.testing.assert_array_equal(A.random_flip_left_right(1.0)(KEY, image), image[:, ::-1])


def test_the_last_bits_of_floats_are_no_reason_to_refuse() -> None:
    for image in (np.full((4, 4, 3), 1.000001, np.float32), jnp.full((4, 4, 3), 1 + 2.0**-7, jnp.bfloat16)):
        INVERT(KEY, image)
    assert "1.00010002]" in refused(ValueError, "image", lambda: INVERT(KEY, RANGES["above 1"]))


def test_dtypes_are_refused_under_jit_too() -> None:
    refused(TypeError, "image", lambda: jax.jit(lambda x: FLIP(KEY, x))(np.zeros((4, 4, 3), np.int32)))


@pytest.mark.parametrize("shape", [(4, 4), (1, 2, 4, 4, 3), (0, 4, 3), (4, -1, 3), 4, None, ("a", 2, 3)])
def test_a_bad_shape_is_refused(shape: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^shape: "):
        FLIP.sample(KEY, shape)


# Targets.

BOX = np.float32([[[1, 2, 3, 4]]] * 4)
TARGETS: dict[str, tuple[type[Exception], str, Any]] = {
    "a mask of another size": (ValueError, "mask", np.zeros((4, 8, 9))),
    "one mask": (ValueError, "mask", np.zeros((8, 10))),
    "a mask of rank 5": (ValueError, "mask", np.zeros((4, 8, 10, 1, 1))),
    "no mask": (TypeError, "mask", None),
    "boxes of three": (ValueError, "boxes", BOX[..., :3]),
    "boxes without a batch": (ValueError, "boxes", BOX[0]),
    "boxes of one image": (ValueError, "boxes", BOX[:1]),
    "a box to the right": (ValueError, "boxes", BOX + [0, 0, 8, 0]),
    "a box below": (ValueError, "boxes", BOX + [0, 0, 0, 5]),
    "a box to the left": (ValueError, "boxes", BOX - [2, 0, 0, 0]),
    "a box the wrong way round": (ValueError, "boxes", BOX[..., [2, 1, 0, 3]]),
    "nan": (ValueError, "boxes", BOX * NAN),
    "a list of boxes": (TypeError, "boxes", BOX.tolist()),
    "points of one number": (ValueError, "keypoints", BOX[..., :1]),
    "points of one image": (ValueError, "keypoints", BOX[0, :, :2]),
    "text": (TypeError, "keypoints", "here"),
    "visibility without boxes": (ValueError, "visibility", np.ones((4, 1))),
    "sizes of floats": (TypeError, "size", np.ones((4, 2), np.float32)),
    "a size for all": (ValueError, "size", np.array([8, 10])),
    "a size of 0": (ValueError, "size", np.array([[8, 10]] * 3 + [[0, 10]])),
    "a size beyond the array": (ValueError, "size", np.array([[8, 10]] * 3 + [[8, 11]])),
    "too few labels": (ValueError, "label", np.zeros(3)),
    "one label": (ValueError, "label", 3),
    "labels of text": (TypeError, "label", "cat"),
}


@pytest.mark.parametrize("what", TARGETS)
def test_a_bad_target_is_refused(what: str) -> None:
    error, name, value = TARGETS[what]
    refused(error, name, lambda: FLIP(KEY, {"image": BATCH, name: value}))


def test_the_first_bad_box_is_shown() -> None:
    boxes = np.float32([[1, 2, 3, 4], [1, 2, 11, 4]])
    assert "[1.0, 2.0, 11.0, 4.0]" in refused(ValueError, "boxes", lambda: FLIP(KEY, {"image": IMAGE, "boxes": boxes}))


def test_parameters_of_another_size_are_refused() -> None:
    """Both sizes are named; where what is drawn does not depend on the size, it is for any."""
    for aug in (
        A.random_crop(4),
        A.chain(FLIP, A.invert(), A.random_crop(4)),
        A.cutout(3),
        A.random_resized_crop(4),
        A.random_affine(translate=(0.1, 0.1)),
        A.elastic_deformation(),
        A.rand_augment(),
    ):
        for image in (IMAGE, BATCH):
            message = refused(
                ValueError,
                "params",
                lambda aug=aug, image=image: jax.jit(lambda params: aug.apply(params, image))(
                    aug.sample(KEY, (9, 9, 3))
                ),
            )
            assert "(8, 10)" in message and "(9, 9)" in message
    for aug in (FLIP, A.chain(FLIP, A.color_jitter(0.4, 0.4, 0.4, 0.1)), A.random_rotation(10)):
        np.testing.assert_array_equal(aug.apply(aug.sample(KEY, (9, 9, 3)), IMAGE), aug(KEY, IMAGE))
    mixing, batch = A.cutmix(num_classes=3), {"image": BATCH, "label": np.arange(4) % 3}
    refused(ValueError, "params", lambda: mixing.apply(mixing.sample(KEY, (4, 9, 9, 3)), batch))


def test_stages_that_need_images_of_one_size() -> None:
    inputs = {"image": BATCH, "size": np.array([[8, 10], [7, 9], [8, 8], [6, 6]])}
    assert "crop or resize" in refused(ValueError, "size", lambda: A.elastic_deformation()(KEY, inputs))
    for mixing in (A.mixup(num_classes=3), A.chain(FLIP, A.cutmix(num_classes=3))):
        refused(ValueError, "size", lambda mixing=mixing: mixing(KEY, inputs | {"label": np.arange(4) % 3}))
    refused(ValueError, "size", lambda: A.random_crop(7)(KEY, inputs))
    refused(ValueError, "boxes", lambda: FLIP(KEY, inputs | {"boxes": np.float32([[[1, 2, 9, 4]]] * 4)}))


def test_names_of_inputs() -> None:
    assert "'masks'" in refused(ValueError, "inputs", lambda: FLIP(KEY, {"image": IMAGE, "masks": IMAGE}))
    assert "'image'" in refused(ValueError, "inputs", lambda: FLIP(KEY, {"mask": IMAGE}))
    refused(ValueError, "inputs", lambda: FLIP(KEY, {}))


# Keys, parameters, strategies.

KEYS: dict[str, Any] = {
    "an int": 0,
    "none": None,
    "keys": jax.random.split(KEY, 2),
    "floats": np.zeros(2, np.float32),
    "a matrix": np.zeros((2, 2), np.uint32),
    "three words": np.zeros(3, np.uint32),
}


@pytest.mark.parametrize("what", KEYS)
def test_what_is_no_key_is_refused(what: str) -> None:
    # Two keys, typed or not, are right for two images.
    error = ValueError if np.ndim(KEYS[what]) == 2 or what == "keys" else TypeError
    refused(error, "key", lambda: FLIP(KEYS[what], IMAGE))
    refused(error, "key", lambda: FLIP.sample(KEYS[what], IMAGE.shape))


@pytest.mark.parametrize("image", [IMAGE, BATCH], ids=["one", "batch"])
def test_what_sample_did_not_give_is_refused(image: Any) -> None:
    turn = A.random_rotation(10)
    for params in (
        None,
        (),
        {"degrees": jnp.zeros(())},
        ({"angle": jnp.zeros(())},),
        A.invert().sample(KEY, image.shape),
        turn.sample(KEY, (3, 8, 10, 3)),
        ({"degrees": jnp.zeros((4, 2))},),
    ):
        refused(ValueError, "params", lambda params=params: turn.apply(params, image))


@pytest.mark.parametrize("batching", ["scan", None, 3])
def test_an_unknown_strategy_is_refused(batching: Any) -> None:
    refused(ValueError, "batching", lambda: FLIP(KEY, BATCH, batching=batching))
    refused(ValueError, "batching", lambda: FLIP.apply(FLIP.sample(KEY, BATCH.shape), BATCH, batching=batching))


# Hyperparameters.

FACTORIES: dict[str, list[tuple[str, Callable[[Any], Any], list[Any], list[Any]]]] = {
    # argument, factory, values that are out of range, values of a wrong type
    "random_crop": [
        ("size", A.random_crop, [0, (4, -1)], [1.5, (1, 2, 3), "4", None, True]),
        ("padding", lambda x: A.random_crop(4, x), [-1, (0, -2)], [0.5, (1,), None]),
        ("border", lambda x: A.random_crop(4, 1, border=x), ["wrap", 3], []),
        ("fill", lambda x: A.random_crop(4, 1, fill=x), [-0.1, 255, NAN, (0.5, 2.0)], ["black", 1j]),
        ("mask_fill", lambda x: A.random_crop(4, 1, mask_fill=x), [], [0.5, "0", True]),
    ],
    "center_crop": [("size", A.center_crop, [0, (4, -1)], [1.5, "4"])],
    "resize": [
        ("size", A.resize, [0, (4, -1)], [1.5, "4"]),
        ("interpolation", lambda x: A.resize(4, interpolation=x), ["cubic"], []),
        ("antialias", lambda x: A.resize(4, antialias=x), [], ["yes", 0.5]),
    ],
    "random_resized_crop": [
        ("size", A.random_resized_crop, [0], [2.5]),
        (
            "scale",
            lambda x: A.random_resized_crop(4, x),
            [(0.5, 0.1), (0, 1), (0.5, 1.5), (NAN, 1)],
            [0.5, (1,), (0, 1, 1)],
        ),
        ("ratio", lambda x: A.random_resized_crop(4, ratio=x), [(2, 1), (0, 1), (1, NAN)], [1.0, "wide"]),
        ("interpolation", lambda x: A.random_resized_crop(4, interpolation=x), ["area"], []),
    ],
    "random_flip_left_right": [
        ("p", A.random_flip_left_right, [-0.1, 1.1, NAN], ["half", None, 1j, True]),
        (
            "joints",
            lambda x: A.random_flip_left_right(joints=x),
            [((1, -2),), ((1, 2), (2, 3))],
            [3, (1, 2), ((1, 2, 3),), ((0.5, 1),)],
        ),
    ],
    "random_flip_up_down": [("p", A.random_flip_up_down, [-0.1, 1.1, NAN], ["half", None])],
    "random_rotation": [
        ("max_degrees", A.random_rotation, [-1, NAN], ["much", None, (0, 1, 2)]),
        ("interpolation", lambda x: A.random_rotation(5, interpolation=x), ["cubic"], []),
        ("border", lambda x: A.random_rotation(5, border=x), ["wrap"], []),
        ("fill", lambda x: A.random_rotation(5, fill=x), [2, NAN], ["red"]),
    ],
    "random_affine": [
        ("max_degrees", A.random_affine, [-1, NAN], ["much"]),
        ("translate", lambda x: A.random_affine(translate=x), [(-0.1, 0), (0, 1.5), (NAN, 0)], [0.1, (1,)]),
        ("scale", lambda x: A.random_affine(scale=x), [(2, 1), (0, 1), (1, NAN)], [1.0]),
        ("shear", lambda x: A.random_affine(shear=x), [(-1, 0), (0, 90), (NAN, 0)], [10, (1, 2, 3)]),
    ],
    "elastic_deformation": [
        ("alpha", A.elastic_deformation, [-1, NAN], ["much"]),
        ("sigma", lambda x: A.elastic_deformation(1, x), [0, -1, NAN], ["wide", None]),
    ],
    "random_apply": [
        ("p", lambda x: A.random_apply(FLIP, x), [-0.1, 1.1, NAN], ["half", None]),
        ("aug", A.random_apply, [], [None, lambda x: x, gx.sgd(0.1)]),
    ],
    "one_of": [
        (
            "probabilities",
            lambda x: A.one_of(FLIP, FLIP, probabilities=x),
            [(1,), (1, -1), (0, 0), (NAN, 1), (1, 1, 1)],
            [(1, "much")],
        ),
        ("augmentations[1]", lambda x: A.one_of(FLIP, x), [], [None, "flip"]),
    ],
    "chain": [("augmentations[1]", lambda x: A.chain(FLIP, x), [], [None, lambda x: x, gx.sgd(0.1), [FLIP]])],
    "two_views": [
        ("first", A.two_views, [], [None, "flip"]),
        ("second", lambda x: A.two_views(FLIP, x), [], ["flip", 3]),
    ],
}


@pytest.mark.parametrize("name", FACTORIES)
def test_bad_hyperparameters_are_refused(name: str) -> None:
    for argument, make, out_of_range, wrong in FACTORIES[name]:
        for value in out_of_range:
            refused(ValueError, argument, lambda: make(value))
        for value in wrong:
            refused(TypeError, argument, lambda: make(value))


def test_every_keyword_is_one() -> None:
    with pytest.raises(TypeError):
        A.random_rotation(15, degrees=3)
    refused(ValueError, "augmentations", lambda: A.one_of())


# What fits no image.


@pytest.mark.parametrize(
    "aug",
    [
        A.random_crop((9, 10)),
        A.random_crop((8, 15), (0, 2)),
        A.center_crop((8, 11)),
        A.chain(A.random_crop(4), A.random_crop(5)),
    ],
)
def test_a_window_larger_than_the_image_is_refused(aug: Any) -> None:
    for image in (IMAGE, BATCH):
        refused(ValueError, "size", lambda: aug(KEY, image))
        refused(ValueError, "size", lambda: aug.sample(KEY, image.shape))


@pytest.mark.parametrize(
    "aug", [A.random_rot90(), A.random_transpose(0.0), A.random_d4(), A.chain(A.random_d4(), A.random_crop(4))]
)
def test_what_is_not_square_is_not_turned(aug: Any) -> None:
    refused(ValueError, "image", lambda: aug(KEY, BATCH))


def test_sizes_are_refused_where_they_have_to_be_known() -> None:
    """Whatever they are, square or not."""
    for size in ([8, 8], [8, 6]):
        inputs = {"image": IMAGE, "size": np.array(size)}
        for aug in (A.random_rot90(), A.chain(FLIP, A.pad(2)), A.letterbox(8)):
            assert "have to be known" in refused(ValueError, "size", lambda: aug(KEY, inputs))


def test_without_boxes_there_is_no_crop_by_them() -> None:
    refused(ValueError, "boxes", lambda: A.random_iou_crop(4)(KEY, BATCH))


def test_bicubic_is_along_the_axes() -> None:
    for make in (A.rotate, A.random_affine, A.random_perspective):
        refused(ValueError, "interpolation", lambda make=make: make(0.5, interpolation="bicubic"))
    refused(ValueError, "interpolation", lambda: A.Geometric(lambda *_: (), lambda *_: None, interpolation="bicubic"))
    refused(ValueError, "size", lambda: A.resize())
    refused(ValueError, "size", lambda: A.resize(4, shorter=4))


@pytest.mark.parametrize("fill", [(0.5,), (0.5, 0.5), (0, 0, 0, 0)])
def test_a_colour_needs_a_number_for_each_channel(fill: Any) -> None:
    refused(ValueError, "fill", lambda: A.random_rotation(5, fill=fill)(KEY, IMAGE))


def test_choices_of_several_shapes_are_refused() -> None:
    refused(ValueError, "image", lambda: A.one_of(A.random_crop(4), A.random_crop(5))(KEY, BATCH))
    refused(ValueError, "image", lambda: A.random_apply(A.random_crop(4))(KEY, BATCH))


VIEWS = [A.two_views(FLIP), A.chain(A.two_views(FLIP)), A.chain(A.invert(), A.chain(A.two_views(FLIP)))]


@pytest.mark.parametrize("views", VIEWS)
def test_views_are_of_no_use_inside_others(views: Any) -> None:
    refused(ValueError, "aug", lambda: A.random_apply(views))
    refused(ValueError, "augmentations[1]", lambda: A.one_of(FLIP, views))
    refused(ValueError, "first", lambda: A.two_views(views))
    refused(ValueError, "augmentations", lambda: A.chain(views, views))


def test_mixing_inside_a_choice_is_refused() -> None:
    for mixing in (A.mixup(), A.chain(FLIP, A.cutmix())):
        refused(ValueError, "aug", lambda: A.random_apply(mixing))
        refused(ValueError, "augmentations[0]", lambda: A.one_of(mixing))
        refused(ValueError, "first", lambda: A.two_views(mixing))
