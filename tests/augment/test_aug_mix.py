"""AugMix: what is drawn, the mixture of chains against Pillow, options and errors."""

from __future__ import annotations

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


def drawn(aug: Any, count: int, shape: tuple[int, ...] = (32, 32, 3), seed: int = 0) -> Any:
    return jax.tree.map(np.asarray, aug.sample(jax.random.key(seed), (count, *shape)))


def levels(steps: Any) -> np.ndarray:
    """The levels of shears, which are proportional to them; NaN for others and for what is not done."""
    names = oracles.names_of("aug_mix_9", steps["op"])
    return np.where(np.isin(names, oracles.SHIFTS[:2]), np.abs(steps["value"]) / 0.03, np.nan)


def mixed(params: Any, image: np.ndarray, policy: str, interpolation: str, fill: float = 0.0) -> np.ndarray:
    """The mixture of an image's chains, each in Pillow, in float64."""
    total = (1 - np.float64(params["mixture"])) * image
    for i, weight in enumerate(params["weights"]):
        steps = {name: x[i] for name, x in params["steps"].items()}
        total += np.float64(params["mixture"]) * weight * oracles.chained(policy, interpolation, steps, image, fill)
    return total


# What is drawn.


def test_weights_are_dirichlet_and_the_mixture_beta() -> None:
    for alpha, width in ((1.0, 3), (0.5, 4)):
        params = drawn(augment.aug_mix(alpha=alpha, width=width), 8000)
        weights, mixture = params["weights"], params["mixture"]
        assert weights.shape == (8000, width)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
        for column in weights.T:
            assert stats.kstest(column, stats.beta(alpha, alpha * (width - 1)).cdf).pvalue > LIKELY
        # Two of them, too: the covariance of a Dirichlet distribution.
        want = -1 / width**2 / (alpha * width + 1)
        assert abs(np.cov(weights[:, 0], weights[:, 1])[0, 1] - want) < 0.1 * abs(want)
        assert stats.kstest(mixture, stats.beta(alpha, alpha).cdf).pvalue > LIKELY
        assert abs(np.corrcoef(mixture, weights[:, 0])[0, 1]) < 4.5 / np.sqrt(8000)
        assert abs(np.corrcoef(mixture[1:], mixture[:-1])[0, 1]) < 4.5 / np.sqrt(8000)


def test_chains_have_one_to_three_operations_uniformly() -> None:
    steps = drawn(augment.aug_mix(), 8000)["steps"]
    done = steps["op"] < 9
    assert done.shape == (8000, 3, 3)
    assert np.all(done[..., 0])
    assert np.all(done[..., 1] | ~done[..., 2])
    depth = done.sum(-1) - 1
    assert stats.chisquare(np.bincount(depth[:, 0] * 9 + depth[:, 1] * 3 + depth[:, 2], minlength=27)).pvalue > LIKELY
    for one in (1, 4):
        steps = drawn(augment.aug_mix(depth=one, width=2), 40)["steps"]
        assert steps["op"].shape == (40, 2, one)
        assert np.all(steps["op"] < 9)


def test_operations_are_uniform_and_independent() -> None:
    ops = drawn(augment.aug_mix(depth=2, width=2), 8000)["steps"]["op"]
    for a, b in ((ops[:, 0, 0], ops[:, 0, 1]), (ops[:, 0, 0], ops[:, 1, 0]), (ops[:-1, 0, 0], ops[1:, 0, 0])):
        assert stats.chisquare(np.bincount(a * 9 + b, minlength=81)).pvalue > LIKELY
    ops = drawn(augment.aug_mix(depth=2, all_ops=True), 4000)["steps"]["op"]
    assert stats.chisquare(np.bincount(ops.ravel(), minlength=13)).pvalue > LIKELY
    assert ops.max() == 12


def test_levels_are_uniform_and_signs_fair() -> None:
    for severity in (1.0, 10.0):
        steps = drawn(augment.aug_mix(severity, depth=2), 4000)["steps"]
        found = levels(steps)
        inner = found[~np.isnan(found)]
        assert inner.min() >= 0.1 - 1e-5
        assert stats.kstest(inner, stats.uniform(0.1, severity - 0.1).cdf).pvalue > LIKELY
        both = found.reshape(-1, 2)
        both = both[~np.isnan(both).any(1)]
        assert abs(np.corrcoef(both.T)[0, 1]) < 4.5 / np.sqrt(len(both))
        sign = np.sign(steps["value"])
        up = sign[~np.isnan(found)] > 0
        assert abs(up.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(up.size)
        pair = sign.reshape(-1, 2)[~np.isnan(found.reshape(-1, 2)).any(1)]
        assert abs(np.corrcoef(pair.T)[0, 1]) < 4.5 / np.sqrt(len(pair))
    # A level of a rotation is cut to whole degrees.
    turned = steps["value"][oracles.names_of("aug_mix_9", steps["op"]) == "rotate"]
    assert set(np.abs(turned)) == set(range(30))


# The mixture.


@pytest.mark.as_in_use
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"severity": 10.0, "width": 2, "depth": 3, "all_ops": True, "interpolation": "nearest", "fill": 0.5},
            marks=pytest.mark.exhaustive,
        ),
        {},
    ],
    ids=str,
)
def test_it_is_the_mixture_of_chains_in_pillow(options: dict[str, Any]) -> None:
    images = oracles.photographs(24, 32, 32)
    aug, key = augment.aug_mix(**options), jax.random.key(1)
    params = aug.sample(key, images.shape)
    got = np.asarray(aug.apply(params, images))
    assert got.dtype == np.uint8
    policy = "aug_mix" if options.get("all_ops") else "aug_mix_9"
    fill, interpolation = options.get("fill", 0.0), options.get("interpolation", "bilinear")
    for i, image in enumerate(images):
        one = oracles.of_image(params, i)
        apart = np.abs(got[i] - mixed(one, image, policy, interpolation, fill))
        names = set(oracles.names_of(policy, one["steps"]["op"]).ravel())
        if interpolation == "nearest":
            # A rotation may take other pixels where the source is between two.
            assert (apart > 0.501).mean() <= (0.003 if "rotate" in names else 0), names
        else:
            assert apart.mean() < 0.6, names
    assert np.mean([np.any(a != b) for a, b in zip(got, images, strict=True)]) > 0.9


def test_weights_of_nothing_and_of_everything() -> None:
    images = oracles.photographs(24, 32, 32)
    aug = augment.aug_mix(interpolation="nearest")
    params = aug.sample(jax.random.key(0), images.shape)
    none = params | {"mixture": jnp.zeros(24)}
    np.testing.assert_array_equal(aug.apply(none, images), images)
    second = params | {"mixture": jnp.ones(24), "weights": jnp.array([[0.0, 1.0, 0.0]] * 24)}
    got = np.asarray(aug.apply(second, images))
    for i, image in enumerate(images):
        one = oracles.of_image(second, i)
        want = oracles.chained("aug_mix_9", "nearest", {name: x[1] for name, x in one["steps"].items()}, image, 0.0)
        turned = "rotate" in oracles.names_of("aug_mix_9", one["steps"]["op"])
        assert (got[i] != want).mean() <= (0.003 if turned else 0)


@pytest.mark.as_in_use
@pytest.mark.exhaustive
def test_strategies_agree_and_images_are_independent() -> None:
    images, key = oracles.photographs(7, 12, 17), jax.random.key(5)
    aug = augment.aug_mix(5.0, width=2)
    want = np.asarray(aug(key, images, batching="map"))
    for batching in ("vmap", "auto"):
        np.testing.assert_array_equal(aug(key, images, batching=batching), want)
    others = np.where(np.arange(7)[:, None, None, None] == 2, images, 255 - images)
    np.testing.assert_array_equal(aug(key, others, batching="map")[2], want[2])
    floats = np.float32(images / 255)
    want = np.asarray(aug(key, floats, batching="map"))
    for batching in ("vmap",):
        np.testing.assert_allclose(aug(key, floats, batching=batching), want, rtol=0, atol=1e-6)


@pytest.mark.exhaustive
def test_other_dtypes_and_gray_images() -> None:
    images, aug = oracles.photographs(16, 20, 20), augment.aug_mix()
    params = aug.sample(jax.random.key(7), images.shape)
    want = np.asarray(aug.apply(params, images)).astype(np.float64)
    for dtype, most in ((jnp.bfloat16, 2.0),):
        got = aug.apply(params, jnp.asarray(images / 255, dtype))
        assert got.dtype == dtype
        assert got.min() >= 0
        assert got.max() <= 1
        assert np.abs(np.asarray(got, np.float64) * 255 - want).mean() <= most
    gray = images[..., :1]
    got = np.asarray(aug.apply(params, gray))
    np.testing.assert_array_equal(got, np.asarray(aug.apply(params, gray.repeat(3, -1)))[..., :1])


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 8, 8, 3)])
def test_masks_boxes_and_points_are_refused(shape: tuple[int, ...]) -> None:
    image, batch = np.zeros(shape, np.uint8), shape[:-3]
    for name, x in (
        ("mask", np.zeros(shape[:-1], np.int32)),
        ("boxes", np.zeros((*batch, 1, 4), np.float32)),
        ("keypoints", np.zeros((*batch, 1, 2), np.float32)),
    ):
        for batching in ("map", "vmap"):
            with pytest.raises(TypeError, match=rf"^{name}: "):
                augment.aug_mix()(jax.random.key(0), {"image": image, name: x}, batching=batching)
            with pytest.raises(TypeError, match=rf"^{name}: "):
                augment.chain(augment.aug_mix())(jax.random.key(0), {"image": image, name: x}, batching=batching)


@pytest.mark.exhaustive
def test_labels_stay() -> None:
    images = oracles.photographs(7, 12, 17)
    aug = augment.aug_mix(5.0, width=2)
    done = aug(jax.random.key(5), {"image": images, "label": np.arange(7)})
    np.testing.assert_array_equal(done["label"], np.arange(7))
    np.testing.assert_array_equal(done["image"], aug(jax.random.key(5), images))


# As values and as programs.


@pytest.mark.exhaustive
def test_a_program_serves_every_key_and_number() -> None:
    traces = []

    @jax.jit
    def run(key: Any, severity: Any, alpha: Any, images: Any) -> Any:
        traces.append(1)
        return augment.aug_mix(severity, width=2, alpha=alpha)(key, images)

    images = oracles.photographs(7, 12, 17)
    for seed, severity, alpha in ((0, 1.0, 1.0), (1, 3.0, 0.5), (2, 5.0, 1.0)):
        got = run(jax.random.key(seed), jnp.float32(severity), jnp.float32(alpha), images)
    assert len(traces) == 1
    apart = np.asarray(got, int) - np.asarray(augment.aug_mix(5.0, width=2)(jax.random.key(2), images), int)
    assert np.abs(apart).max() <= 1


def test_values() -> None:
    aug = augment.aug_mix(2.0, 4, depth=2, fill=(0.1, 0.2, 0.3))
    assert repr(aug).startswith("augment.aug_mix(severity=2.0, width=4, depth=2")
    assert eval(repr(aug), {"augment": augment}) == aug
    for one in (aug, augment.aug_mix()):
        assert pickle.loads(pickle.dumps(one)) == one
        assert gx.from_config(json.loads(json.dumps(gx.to_config(one)))) == one
    assert aug != augment.aug_mix(2.5, 4, depth=2, fill=(0.1, 0.2, 0.3))
    assert augment.aug_mix() == augment.aug_mix(3.0, 3, None, 1.0)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"severity": 0.05}, ValueError, "severity"),
        ({"severity": 10.5}, ValueError, "severity"),
        ({"severity": "3"}, TypeError, "severity"),
        ({"severity": float("nan")}, ValueError, "severity"),
        ({"width": 0}, ValueError, "width"),
        ({"width": 2.5}, TypeError, "width"),
        ({"depth": 0}, ValueError, "depth"),
        ({"depth": "3"}, TypeError, "depth"),
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"alpha": -1.0}, ValueError, "alpha"),
        ({"interpolation": "cubic"}, ValueError, "interpolation"),
        ({"fill": 1.5}, ValueError, "fill"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=rf"^{word}: "):
        augment.aug_mix(**options)(jax.random.key(0), np.zeros((4, 4, 3), np.uint8))


@pytest.mark.exhaustive
def test_exports_for_every_platform() -> None:
    images, key = oracles.photographs(3, 8, 8), jax.random.PRNGKey(0)
    aug = augment.aug_mix(width=2)
    exported = jax.export.export(jax.jit(lambda key, images: aug(key, images)), platforms=["cpu", "cuda", "tpu"])(
        key, images
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_array_equal(jax.export.deserialize(exported.serialize()).call(key, images), aug(key, images))


def test_the_slope_in_alpha_does_not_stop_at_1() -> None:
    """The means of what is drawn grow as the distributions say: E[m^2] is (a + 1) / (4 a + 2), its slope -1/18 at 1."""

    def square(alpha: Any) -> Any:
        draw = lambda key: augment.aug_mix(alpha=alpha).stage.sample(key, (8, 8, 3))["mixture"]  # noqa: E731
        return jnp.mean(jnp.square(jax.vmap(draw)(jax.random.split(jax.random.key(0), 8_000))))

    value, slope = jax.jit(jax.value_and_grad(square))(1.0)
    assert abs(value - 1 / 3) < 0.015
    assert abs(slope + 1 / 18) < 0.01


def test_a_variable_of_0_is_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exponential variables are 0 once in some millions of draws."""
    monkeypatch.setattr(jax.random, "exponential", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    params = augment.aug_mix(width=1).stage.sample(jax.random.key(0), (8, 8, 3))
    assert params["weights"] == 1 and params["mixture"] == 0.5
