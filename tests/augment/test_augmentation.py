"""Augmentations as values, as pairs (sample, apply), and over batches: each image by itself, whatever the strategy."""

from __future__ import annotations

import functools
import pathlib
import pickle
from typing import Any

import geometry_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx
from gradxform.augment.batching import images_at_a_time
from gradxform.augment.stage import Stage

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.key(11)
SIZE = 6
AUG = A.chain(
    A.random_crop((12, 12), 2, border="edge"),
    A.random_flip_left_right(),
    A.random_rotation(25),
    A.random_apply(A.invert()),
    A.one_of(A.chain(), A.solarize(0.5), A.random_brightness(0.5)),
)
"""Something of each kind: moves that are one resampling, a coin, a choice."""


def images(dtype: Any = jnp.uint8, size: int = SIZE) -> jax.Array:
    return jnp.stack([jnp.asarray(oracles.noise(12, 14, 3, dtype, i)) for i in range(size)])


@functools.cache
def result(dtype: Any = jnp.uint8, batching: str = "auto") -> np.ndarray:
    return np.asarray(AUG(KEY, images(dtype), batching=batching))


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# A value.


def make() -> Any:
    return A.chain(
        A.random_crop((24, 24), 2, border="edge"),
        A.random_rotation(15, interpolation="nearest"),
        A.random_apply(A.invert(), 0.25),
    )


def test_it_prints_as_the_call() -> None:
    assert repr(A.random_flip_left_right()) == "augment.random_flip_left_right(p=0.5)"
    assert repr(A.chain()) == "augment.chain()"
    shown = repr(make())
    for part in (
        "augment.chain(",
        "augment.random_crop(size=(24, 24), padding=2, border='edge'",
        "augment.random_rotation(max_degrees=15.0",
        "augment.random_apply(aug=augment.invert(), p=0.25)",
    ):
        assert part in shown
    assert eval(shown, {"augment": A}) == make()


def test_it_compares_hashes_pickles_and_has_a_config() -> None:
    aug = make()
    assert aug == make() and hash(aug) == hash(make())
    assert len({aug, make(), A.invert()}) == 2
    assert aug != A.chain(A.random_crop((24, 24), 2, border="edge"))
    assert A.random_rotation(15) != A.random_rotation(15, border="edge") != A.random_rotation(16, border="edge")
    assert pickle.loads(pickle.dumps(aug)) == aug
    assert gx.from_config(gx.to_config(aug)) == aug
    assert aug.arguments["augmentations"][1].replace(max_degrees=3) == A.random_rotation(3, interpolation="nearest")
    same(pickle.loads(pickle.dumps(AUG))(KEY, images()), AUG(KEY, images()))


def test_numbers_are_leaves_and_sizes_are_not() -> None:
    assert 15.0 in jax.tree.leaves(make()) and 0.25 in jax.tree.leaves(make())
    assert 24 not in jax.tree.leaves(make())
    doubled = jax.tree.map(lambda x: 2 * x, A.random_rotation(15, fill=(0.25, 0.5)))
    assert doubled == A.random_rotation(30, fill=(0.5, 1.0))


def test_arrays_as_numbers_are_traced_once() -> None:
    traces = 0

    def run(aug: Any, key: Any, x: Any) -> Any:
        nonlocal traces
        traces += 1
        return aug(key, x)

    compiled, x = jax.jit(run), images(jnp.float32)[0]
    augs = [
        A.chain(A.random_rotation(jnp.float32(d)), A.random_flip_left_right(jnp.float32(p)))
        for d, p in ((0, 0), (20, 1), (40, 0.5))
    ]
    got = [compiled(aug, jax.random.key(i), x) for i, aug in enumerate(augs)]
    assert traces == 1
    same(got[0], x)
    for i, (aug, one) in enumerate(zip(augs, got, strict=True)):
        plain = A.chain(
            A.random_rotation(float(aug.arguments["augmentations"][0].arguments["max_degrees"])),
            A.random_flip_left_right(float(aug.arguments["augmentations"][1].arguments["p"])),
        )
        np.testing.assert_allclose(one, plain(jax.random.key(i), x), atol=1e-5)


def test_vmap_over_a_number() -> None:
    x = images(jnp.float32)[0]
    degrees = jnp.float32([0, 15, 30])
    got = jax.vmap(lambda d: A.random_rotation(d)(KEY, x))(degrees)
    same(got[0], x)
    for d, one in zip(degrees, got, strict=True):
        np.testing.assert_allclose(one, A.random_rotation(d)(KEY, x), atol=1e-5)


def test_a_gradient_reaches_the_image() -> None:
    aug, x = A.chain(A.random_rotation(30, border="edge"), A.random_flip_left_right()), images(jnp.float32)[0]
    weights = jnp.asarray(oracles.noise(12, 14, 3, jnp.float32, 9))
    loss = lambda x: jnp.sum(aug(KEY, x) * weights)  # noqa: E731
    gradient = jax.grad(loss)(x)
    # The map is linear in the image, and each pixel of the result has weights that sum to one.
    np.testing.assert_allclose(jnp.sum(gradient * x), loss(x), rtol=1e-4)
    np.testing.assert_allclose(jnp.sum(gradient), jnp.sum(weights), rtol=1e-4)


# Compiled once.


def test_one_program_for_every_key() -> None:
    traces = 0

    @A.augmentation
    def counted() -> Any:
        def kernel(params: Any, planes: Any) -> Any:
            nonlocal traces
            traces += 1
            return planes

        return A.Pixelwise(lambda key, shape: jax.random.uniform(key), kernel)

    x = images()
    A.chain(counted(), A.random_flip_left_right())(KEY, x)
    once = traces
    assert once > 0
    for seed in range(4):
        A.chain(counted(), A.random_flip_left_right())(jax.random.key(seed), x)
    assert traces == once
    A.chain(counted(), A.random_flip_left_right())(KEY, x[:2])
    assert traces > once


def test_under_jit_it_is_the_same() -> None:
    for dtype in (jnp.uint8, jnp.float32):
        same(jax.jit(lambda key, x: AUG(key, x))(KEY, images(dtype)), result(dtype))


# Keys.


@pytest.mark.parametrize("key", [jax.random.PRNGKey(11), np.asarray(jax.random.PRNGKey(11))], ids=["old", "numpy"])
def test_an_old_key_is_the_same_key(key: Any) -> None:
    same(AUG(key, images()), result())
    same(AUG.sample(key, images().shape), AUG.sample(KEY, images().shape))


def test_another_key_gives_something_else() -> None:
    assert np.all(np.any(np.asarray(AUG(jax.random.key(12), images())) != result(), (1, 2, 3)))


def column(tree: Any, count: int) -> np.ndarray:
    """(numbers, count): every scalar that was drawn for each of the images."""
    return np.stack([np.float64(x) for x in jax.tree.leaves(tree) if x.shape == (count,)])


def test_what_is_drawn_is_not_correlated() -> None:
    """Between stages, within an image, and between an image and the next."""
    count = 4000
    aug = A.chain(
        A.random_crop((8, 8)),
        A.random_flip_left_right(),
        A.random_rotation(10),
        A.random_brightness(0.5),
        A.random_flip_up_down(),
        A.random_apply(A.random_rotation(10), 0.5),
        A.random_rotation(10),
        A.one_of(A.random_rotation(10), A.random_brightness(0.5)),
        A.random_apply(A.random_brightness(0.5)),
    )
    drawn = column(aug.sample(KEY, (count, 24, 24, 3)), count)
    assert len(drawn) == 14
    between = np.corrcoef(np.concatenate([drawn[:, 1:], drawn[:, :-1]]))
    assert np.abs(between - np.eye(2 * len(drawn))).max() < 5.5 / np.sqrt(count)


def test_the_coin_says_nothing_about_the_angle() -> None:
    """A key used for both would turn to one side only."""
    count = 4000
    index, (_, (rotation,)) = A.random_apply(A.random_rotation(30), 0.5).sample(KEY, (count, 8, 8, 1))
    angles = np.asarray(rotation["degrees"])[np.asarray(index) == 1]
    assert abs(len(angles) - count / 2) < 5 * np.sqrt(count / 4)
    assert abs(np.mean(angles > 0) - 0.5) < 5 * np.sqrt(0.25 / len(angles))
    assert abs(np.mean(np.abs(angles) > 15) - 0.5) < 5 * np.sqrt(0.25 / len(angles))


def test_both_views_differ() -> None:
    views = A.two_views(A.random_rotation(10))
    first, second = (np.asarray(view[0]["degrees"]) for view in views.sample(KEY, (2000, 8, 8, 3)))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(2000)


@pytest.mark.parametrize("probabilities", [None, (1, 2, 1), (0, 0.25, 0.75), (3, 0, 0)])
def test_each_choice_has_its_probability(probabilities: Any) -> None:
    aug = A.one_of(A.invert(), A.chain(), A.random_flip_left_right(), probabilities=probabilities)
    count = 4000
    wanted = np.full(3, 1 / 3) if probabilities is None else np.float64(probabilities) / np.sum(probabilities)
    found = np.bincount(np.asarray(aug.sample(KEY, (count, 4, 4, 1))[0]), minlength=3) / count
    assert np.all(np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / count))


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_random_apply_changes_its_share(p: float) -> None:
    x = jnp.zeros((500, 2, 2, 1), jnp.uint8)
    got = np.asarray(A.random_apply(A.invert(), p)(KEY, x))
    share = np.mean(got[:, 0, 0, 0] == 255)
    assert set(np.unique(got)) <= {0, 255} and np.all(got == got[:, :1, :1])
    assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / 500)


# Sampled, kept, applied.


def test_a_call_is_sample_and_apply() -> None:
    for dtype in (jnp.uint8, jnp.float32):
        x = images(dtype)
        same(AUG.apply(AUG.sample(KEY, x.shape), x), result(dtype))
    x = images()[0]
    same(AUG.apply(AUG.sample(KEY, x.shape), x), AUG(KEY, x))


def test_the_frames_of_a_video_move_alike() -> None:
    frames = images()
    params = AUG.sample(KEY, frames.shape[1:])
    got = AUG.apply(params, frames)
    assert got.shape == (SIZE, 12, 12, 3)
    apply = jax.jit(lambda x: AUG.apply(params, x))
    for frame, one in zip(frames, got, strict=True):
        same(apply(frame), one)


def test_an_image_has_a_key_of_its_own() -> None:
    x = images()
    one = jax.jit(lambda i, image: AUG(jax.random.fold_in(KEY, i), image))
    for i in range(SIZE):
        same(one(i, x[i]), result()[i])


def test_an_image_does_not_depend_on_the_others() -> None:
    x = images()
    same(AUG(KEY, x.at[1:].set(7))[0], result()[0])
    same(AUG(KEY, x[:2]), result()[:2])
    same(AUG(KEY, x[:1]), result()[:1])


def test_equal_images_do_not_move_alike() -> None:
    got = np.asarray(AUG(KEY, jnp.broadcast_to(images()[0], (SIZE, 12, 14, 3))))
    assert len({one.tobytes() for one in got}) == SIZE


# Strategies.


@pytest.mark.as_in_use
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("batching", ["map", "vmap"])
def test_all_strategies_give_the_same(batching: str, dtype: Any) -> None:
    got, wanted = result(dtype, batching), result(dtype)
    assert got.dtype == wanted.dtype == dtype
    if dtype == jnp.uint8:
        np.testing.assert_array_equal(got, wanted)
    elif dtype == jnp.float32:
        # The sine of an angle may be rounded in another way, which moves a pixel by a millionth.
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    else:
        np.testing.assert_allclose(np.float32(got), np.float32(wanted), rtol=2**-7, atol=1e-6)


@pytest.mark.as_in_use
@pytest.mark.parametrize("batching", ["map", "vmap"])
def test_strategies_on_all_targets_and_uneven_batches(batching: str) -> None:
    aug = A.one_of(
        A.random_flip_left_right(1.0), A.invert(), A.chain(A.random_rotation(20), A.invert()), probabilities=(5, 1, 1)
    )
    for size in (1, 7):
        inputs = {
            "image": images(size=size),
            "mask": images(size=size)[..., 0] > 99,
            "boxes": jnp.tile(jnp.float32([1, 2, 5, 6]), (size, 2, 1)),
            "label": jnp.arange(size),
        }
        got, wanted = (aug(KEY, inputs, batching=way) for way in (batching, "auto"))
        same(
            {name: got[name] for name in ("image", "mask", "label")},
            {name: wanted[name] for name in ("image", "mask", "label")},
        )
        np.testing.assert_allclose(got["boxes"], wanted["boxes"], atol=1e-5)


@pytest.mark.parametrize(
    ("most", "size", "few"),
    [(5, 64, 4), (256, 256, 256), (8, 64, 8), (4, 2, 2), (5, 1, 1), (5, 61, 5), (6, 49, 6), (1, 7, 1)],
)
def test_chunks_leave_no_rest_where_that_can_be(most: int, size: int, few: int) -> None:
    assert images_at_a_time(most, size) == few


class Turned(Stage):
    """A branch that works on pixels (H, W, C) as they are."""

    def sample(self, key: jax.Array, shape: tuple[int, int, int]) -> Any:
        return jax.random.uniform(key) < 0.5

    def apply(self, params: Any, targets: Any) -> Any:
        return targets | {"image": jax.lax.cond(params, lambda x: x, lambda x: x[::-1], targets["image"])}


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_a_stage_may_work_on_pixels_as_they_are(dtype: Any) -> None:
    aug, batch = A.augmentation(lambda: Turned())(), images(dtype)
    kept = np.asarray(aug.sample(KEY, batch.shape))
    assert 0 < kept.sum() < SIZE
    same(aug(KEY, batch), jnp.where(kept[:, None, None, None], batch, batch[:, ::-1]))


def test_how_many_images_at_a_time_is_told_by_the_shape_that_a_stage_gets() -> None:
    """Small images become large ones ahead of the branches."""
    jitter = A.color_jitter(0.4, 0.4)
    assert jitter.stage.images((32, 32, 3), jnp.float32) == 512
    assert jitter.stage.images((32, 32, 3), jnp.uint8) == jitter.stage.images((224, 224, 3), jnp.float32) == 1
    assert A.chain(A.random_crop(224, 96), jitter).stage.images((32, 32, 3), jnp.float32) == 1
    assert A.chain(A.random_crop(32), jitter).stage.images((224, 224, 3), jnp.float32) == 512
    assert A.two_views(A.chain(A.random_crop(32), jitter)).stage.images((224, 224, 3), jnp.float32) == 512
    assert A.chain(A.random_crop(32), A.invert()).stage.images((224, 224, 3), jnp.float32) is None


def test_what_is_dear_to_do_in_vain() -> None:
    """On an accelerator only images that choose between dear branches go one by one."""
    cheap, dear = A.random_apply(A.invert()), A.random_apply(A.random_rotation(9))
    assert not cheap.stage.chooses and not A.color_jitter(0.4, 0.4).stage.chooses
    assert not A.random_rotation(9).stage.chooses and A.random_rotation(9).stage.dear
    assert dear.stage.chooses and A.chain(cheap, dear).stage.chooses and A.two_views(dear).stage.chooses
    assert A.rand_augment().stage.chooses and A.random_apply(A.rand_augment()).stage.chooses


# Gradients, by image and by a hyperparameter, through what images choose.


@pytest.mark.parametrize("batching", ["auto", "map", "vmap"])
def test_gradients_of_a_batch_that_chooses(batching: str) -> None:
    """By each image as for it alone; by a number they add up; forwards as backwards."""
    x = images(jnp.float32, 4)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4, dtype=jnp.uint32))

    def made(key: Any, image: Any, amount: Any, **options: Any) -> Any:
        inner = A.one_of(A.invert(), A.random_brightness((amount, amount)))
        return A.chain(inner, A.random_apply(A.one_of(A.random_rotation(9), A.gaussian_blur(amount, 3))))(
            key, image, **options
        )

    def loss(image: Any, amount: Any) -> Any:
        return jnp.sum(made(KEY, image, amount, batching=batching) ** 2)

    by_image, by_amount = jax.jit(jax.grad(loss, (0, 1)))(x, jnp.float32(0.7))
    alone = jax.jit(jax.value_and_grad(lambda i, a, key: jnp.sum(made(key, i, a) ** 2), (0, 1)))
    wanted = [alone(one, jnp.float32(0.7), key)[1] for one, key in zip(x, keys, strict=True)]
    for one, (image, _) in zip(by_image, wanted, strict=True):
        np.testing.assert_allclose(one, image, atol=1e-5)
    np.testing.assert_allclose(by_amount, sum(amount for _, amount in wanted), rtol=1e-4)
    pushed = jax.jit(lambda x, a: jax.jvp(lambda a: loss(x, a), (a,), (jnp.float32(1),))[1])(x, jnp.float32(0.7))
    np.testing.assert_allclose(pushed, by_amount, rtol=1e-4)


# A key for each image.


def test_a_key_for_each_image_is_as_each_by_itself() -> None:
    keys = jax.random.split(KEY, SIZE)
    got = AUG(keys, images())
    same(got, jnp.stack([AUG(key, one) for key, one in zip(keys, images(), strict=True)]))
    same(got, AUG(jax.random.key_data(keys), images()))
    same(got, AUG.apply(AUG.sample(keys, images().shape), images()))
    with pytest.raises(ValueError, match=r"key: expected one key, or one for each image.*\(6,\).*\(5, 12, 14, 3\)"):
        AUG(keys, images()[:5])


# Views.


def test_every_augmentation_has_a_row_in_the_gallery() -> None:
    gallery = (pathlib.Path(__file__).parents[2] / "examples" / "augmentation_gallery.py").read_text()
    names = {name for name in A.__all__ if name.islower()} - {
        "augmentation",
        "normalize",
    }  # whose results are no pictures
    assert sorted(name for name in names if f"A.{name}(" not in gallery) == []


def test_views_of_several_sizes_and_what_comes_after_them() -> None:
    large, small = A.random_crop(10), A.random_crop(4)
    aug = A.chain(A.random_flip_left_right(), A.views(large, small, small), A.random_brightness(0.5))
    got = aug(KEY, images(jnp.float32))
    assert [view.shape for view in got] == [(SIZE, 10, 10, 3), (SIZE, 4, 4, 3), (SIZE, 4, 4, 3)]
    _, params = aug.sample(KEY, (12, 14, 3))
    strengths = [float(view[1]["strength"]) for view in params]
    assert len(set(strengths)) == 3  # each view draws its own
    with pytest.raises(ValueError, match="after several views"):
        A.chain(A.two_views(large), A.mixup(num_classes=2))
    with pytest.raises(ValueError, match="augmentations: expected at least one"):
        A.views()
    with pytest.raises(ValueError, match=r"augmentations\[0\]: .*gives several views"):
        A.views(A.two_views(large))
