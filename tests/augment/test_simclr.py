"""SimCLR's views: the recipe's probabilities and ranges, and its steps one by one."""

from __future__ import annotations

import functools
import json
import pickle
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import policy_oracles as oracles
import pytest
from scipy import stats

import gradxform as gx

pytestmark = pytest.mark.long

augment = gx.augment
LIKELY = 1e-4
COUNT = 6000


@functools.cache
def drawn(strength: float = 1.0, side: int = 40) -> list[dict[str, np.ndarray]]:
    """What is drawn for each view, by name."""
    aug = augment.simclr_views(side, jnp.float32(strength))
    return [named(view) for view in aug.sample(jax.random.key(0), (COUNT, 60, 80, 3))]


def named(view: Any) -> dict[str, Any]:
    (crop, flip), (jittered, (_, jitter)), gray, *rest = view
    found = crop | flip | gray | {"jittered": jittered, "order": jitter["order"], "strengths": jitter["strengths"]}
    if rest:
        ((blurred, (_, blur)),) = rest
        found |= blur | {"blurred": blurred}
    return jax.tree.map(np.asarray, found)


def assert_share(hits: Any, share: float) -> None:
    hits = np.ravel(hits)
    assert abs(hits.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / hits.size), hits.mean()


def test_views_have_their_size_and_differ() -> None:
    images = oracles.photographs(24, 30, 42)
    one, other = augment.simclr_views(24)(jax.random.key(0), images)
    assert one.shape == other.shape == (24, 24, 24, 3)
    assert one.dtype == other.dtype == np.uint8
    assert all(np.any(np.asarray(a) != b) for a, b in zip(one, other, strict=True))
    for size, shape, given in ((20, (20, 20, 3), images[0]), ((20, 28), (24, 20, 28, 3), images)):
        views = jax.eval_shape(augment.simclr_views(size), jax.random.key(0), given)
        assert [(view.shape, view.dtype) for view in views] == [(shape, np.uint8)] * 2


def test_each_step_has_its_probability() -> None:
    for view in drawn():
        for name, share in (("flip", 0.5), ("jittered", 0.8), ("gray", 0.2), ("blurred", 0.5)):
            assert_share(view[name], share)
        coins = np.stack([view[name] for name in ("flip", "jittered", "gray", "blurred")]).astype(float)
        assert np.abs(np.corrcoef(coins) - np.eye(4)).max() < 4.5 / np.sqrt(COUNT)


def test_the_views_are_independent() -> None:
    first, second = drawn()
    for name in ("flip", "jittered", "gray", "blurred", "sigma", "height", "top"):
        a, b = first[name].astype(float), second[name].astype(float)
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(COUNT), name
        assert abs(np.corrcoef(a[1:], b[:-1])[0, 1]) < 4.5 / np.sqrt(COUNT), name
    for a, b in zip(first["strengths"], second["strengths"], strict=True):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(COUNT)


def test_crops_are_of_8_to_100_percent_and_near_square() -> None:
    for view in drawn():
        height, width = view["height"], view["width"]
        area, ratio = height * width / 4800, width / height
        assert 0.07 < area.min() < 0.1
        assert 0.95 < area.max() <= 1
        assert ratio.min() > 0.72
        assert ratio.max() < 1.4
        # The areas up to which all ratios fit are drawn uniformly.
        small = area[(area > 0.1) & (area < 0.4)]
        assert stats.kstest(small, stats.uniform(0.1, 0.3).cdf).statistic < 0.05
        logs = np.log(ratio[area < 0.4])
        assert stats.kstest(logs, stats.uniform(np.log(0.75), np.log(16 / 9)).cdf).statistic < 0.05
        assert np.all((view["top"] >= 0) & (view["top"] + height <= 60))
        assert np.all((view["left"] >= 0) & (view["left"] + width <= 80))


@pytest.mark.parametrize("strength", [1.0, 0.5, 1.5])
def test_the_strength_scales_the_jitter(strength: float) -> None:
    for view in drawn(strength):
        *factors, hue = view["strengths"]
        low, high = max(0, 1 - 0.8 * strength), 1 + 0.8 * strength
        for factor in factors:
            assert stats.kstest(factor, stats.uniform(low, high - low).cdf).pvalue > LIKELY
        assert stats.kstest(hue, stats.uniform(-0.2 * strength, 0.4 * strength).cdf).pvalue > LIKELY
        orders = view["order"] @ np.array([64, 16, 4, 1])
        _, counts = np.unique(orders, return_counts=True)
        assert len(counts) == 24
        assert stats.chisquare(counts).pvalue > LIKELY


def test_sigmas_are_uniform_and_the_kernel_a_tenth_of_the_height() -> None:
    for view in drawn():
        assert stats.kstest(view["sigma"], stats.uniform(0.1, 1.9).cdf).pvalue > LIKELY
    for side, radius in ((60, 3), (59, 2), (39, 1), (20, 1), (19, 0)):
        aug = augment.simclr_views((side, 24), 0.0)
        view = jax.eval_shape(lambda key: aug.sample(key, (60, 60, 1)), jax.random.key(0))[0]
        assert len(view) == (4 if radius else 3)
    # The whole image, not flipped, not gray, blurred by much.
    image = np.zeros((60, 40, 1), np.float32)
    image[30, 20] = 1
    whole = {"top": jnp.int32(0), "left": jnp.int32(0), "height": jnp.int32(60), "width": jnp.int32(40)}
    aug = augment.simclr_views((60, 40), 0.0)
    jitter = aug.sample(jax.random.key(0), image.shape)[0][1]
    view = (
        (whole, {"flip": jnp.bool_(False)}),
        jitter,
        {"gray": jnp.bool_(False)},
        (jnp.int32(1), ((), {"sigma": jnp.float32(2.0)})),
    )
    got = np.asarray(aug.apply((view, view), image)[1])[..., 0]
    x = np.exp(-(np.arange(-3, 4) ** 2) / 8)
    want = np.zeros((60, 40))
    want[27:34, 17:24] = np.outer(x, x) / x.sum() ** 2
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_without_blur_and_without_jitter() -> None:
    for options in ({"blur": False}, {}):
        aug = augment.simclr_views(32, **options)
        view = jax.eval_shape(lambda key: aug.sample(key, (40, 40, 3)), jax.random.key(0))[0]
        assert len(view) == (3 if options else 4)
    # A strength of 0 leaves the colours of a crop of one colour, unless it is gray.
    images = np.full((64, 20, 20, 3), (200, 100, 0), np.uint8)
    one, _ = augment.simclr_views(10, strength=0.0)(jax.random.key(0), images)
    colors = {tuple(pixel) for pixel in np.asarray(one).reshape(-1, 3)}
    assert colors == {(200, 100, 0), (118, 118, 118)}


def test_the_steps_are_those_of_the_recipe_one_by_one() -> None:
    images = oracles.photographs(24, 30, 42)
    aug, key = augment.simclr_views(24), jax.random.key(3)
    params = aug.sample(key, images.shape)
    got = aug(key, images)
    crop = augment.chain(augment.random_resized_crop(24), augment.random_flip_left_right())
    jitter, gray = augment.color_jitter(0.8, 0.8, 0.8, 0.2), augment.random_grayscale(0.2)
    blur = augment.gaussian_blur((0.1, 2.0), kernel_size=3)
    for view, found in zip(params, got, strict=True):
        cut, (jittered, (_, strengths)), is_gray, (blurred, (_, sigma)) = view
        want = np.asarray(crop.apply((cut,), images))
        want = np.where(np.asarray(jittered)[:, None, None, None] == 1, jitter.apply(strengths, want), want)
        want = np.asarray(gray.apply(is_gray, want))
        want = np.where(np.asarray(blurred)[:, None, None, None] == 1, blur.apply(sigma, want), want)
        np.testing.assert_array_equal(found, want)


@pytest.mark.exhaustive
def test_it_is_two_views_of_the_chain_of_its_steps() -> None:
    images, key = oracles.photographs(24, 30, 42), jax.random.key(3)
    steps = augment.chain(
        augment.random_resized_crop(24),
        augment.random_flip_left_right(),
        augment.random_apply(augment.color_jitter(0.8, 0.8, 0.8, 0.2), p=0.8),
        augment.random_grayscale(p=0.2),
        augment.random_apply(augment.gaussian_blur((0.1, 2.0), kernel_size=3), p=0.5),
    )
    for one, other in zip(augment.simclr_views(24)(key, images), augment.two_views(steps)(key, images), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.as_in_use
@pytest.mark.exhaustive
def test_strategies_agree_and_dtypes_stay() -> None:
    images, key = oracles.photographs(24, 30, 42), jax.random.key(3)
    aug = augment.simclr_views(24)
    want = aug(key, images, batching="map")
    for batching in ("auto", "vmap"):
        for a, b in zip(aug(key, images, batching=batching), want, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(aug(key, images[:5], batching="map")[1], np.asarray(want[1])[:5])
    for dtype in (jnp.bfloat16,):
        got = aug(key, jnp.asarray(images / 255, dtype))
        for a, b in zip(got, want, strict=True):
            assert a.dtype == dtype
            assert a.min() >= 0
            assert a.max() <= 1
            # Hues of 8 bits are coarse.
            assert np.abs(np.asarray(a, np.float64) * 255 - b).mean() < 3


@pytest.mark.exhaustive
def test_a_program_serves_every_key_and_strength() -> None:
    traces = []

    @jax.jit
    def run(key: Any, strength: Any, images: Any) -> Any:
        traces.append(1)
        return augment.simclr_views(16, strength, blur=False)(key, images)

    images = oracles.photographs(4, 20, 20)
    results = [
        run(jax.random.key(seed), jnp.float32(strength), images) for seed, strength in ((0, 1.0), (0, 0.5), (1, 1.0))
    ]
    assert len(traces) == 1
    assert len({np.asarray(one).tobytes() for one, _ in results}) == 3


def test_values() -> None:
    aug = augment.simclr_views((32, 24), 0.5, blur=False)
    assert repr(aug).startswith("augment.simclr_views(size=(32, 24), strength=0.5")
    assert eval(repr(aug), {"augment": augment}) == aug
    assert pickle.loads(pickle.dumps(aug)) == aug
    assert gx.from_config(json.loads(json.dumps(gx.to_config(aug)))) == aug
    assert aug != augment.simclr_views((32, 24), 0.5)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"size": 0}, ValueError, "size"),
        ({"size": 2.5}, TypeError, "size"),
        ({"size": (3, 4, 5)}, TypeError, "size"),
        ({"strength": -0.1}, ValueError, "strength"),
        ({"strength": 2.6}, ValueError, "strength"),
        ({"strength": "1"}, TypeError, "strength"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=rf"^{word}: "):
        augment.simclr_views(**{"size": 8} | options)(jax.random.key(0), np.zeros((8, 8, 3), np.uint8))


@pytest.mark.exhaustive
def test_exports_for_every_platform() -> None:
    images, key = oracles.photographs(3, 8, 8), jax.random.PRNGKey(0)
    aug = augment.simclr_views((20, 8))
    exported = jax.export.export(jax.jit(lambda key, images: aug(key, images)), platforms=["cpu", "cuda", "tpu"])(
        key, images
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for a, b in zip(jax.export.deserialize(exported.serialize()).call(key, images), aug(key, images), strict=True):
        np.testing.assert_array_equal(a, b)


def test_its_blur_is_lowered_for_a_tpu_where_images_are_on_a_mesh() -> None:
    """Arrays of constants in a branch that is vmapped are refused by JAX there."""
    mesh = jax.sharding.AbstractMesh((4,), ("chips",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("chips"))
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), np.uint8, sharding=spread)
    blur = augment.random_apply(augment.gaussian_blur((0.1, 2.0), 3), p=0.5)
    traced = jax.jit(lambda images: blur(jax.random.key(0), images)).trace(images)
    assert "all_gather" not in traced.lower(lowering_platforms=("tpu",)).as_text()
