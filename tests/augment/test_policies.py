"""RandAugment and TrivialAugment: operations against Pillow, numbers and distributions against the published codes."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import pickle
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import policy_oracles as oracles
import pytest
from photometric_oracles import photograph
from scipy import stats

import gradxform as gx
from gradxform.augment.policies.learned import AUTO_AUGMENT

pytestmark = pytest.mark.long

augment = gx.augment
RAND = ("torchvision", "timm", "google")
LIKELY = 1e-4
"""The least p-value; seeds are fixed, and so a test that passes stays so."""


def policy(name: str, num_ops: int = 2, magnitude: Any = 9.0, **options: Any) -> Any:
    return (
        augment.trivial_augment(**options)
        if name == "trivial"
        else augment.auto_augment("cifar10", **options)
        if name == "learned"
        else augment.rand_augment(num_ops, magnitude, name, **options)
    )


def drawn(aug: Any, count: int, shape: tuple[int, ...] = (32, 32, 3), seed: int = 0) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, aug.sample(jax.random.key(seed), (count, *shape)))


def assert_uniform(outcomes: Any, size: int) -> None:
    counts = np.bincount(np.ravel(outcomes), minlength=size)
    assert counts.size == size
    assert counts.sum() >= 5 * size
    assert stats.chisquare(counts).pvalue > LIKELY, counts


def assert_share(hits: Any, share: float) -> None:
    hits = np.ravel(hits)
    assert abs(hits.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / hits.size), hits.mean()


# The operations, and what a magnitude means.


def test_each_policy_has_its_operations() -> None:
    for name, preset in oracles.PRESETS.items():
        assert sorted(oracles.canonical(each.name) for each in preset.entries) == sorted(oracles.OPERATIONS[name])
    assert [len(oracles.OPERATIONS[name]) for name in (*RAND, "trivial")] == [14, 15, 16, 14]


@pytest.mark.parametrize("name", oracles.PRESETS)
def test_numbers_are_those_of_the_published_code(name: str) -> None:
    for height, width in [*oracles.SIZES, (331, 662)]:
        for m, op in itertools.product(oracles.MAGNITUDES[name], oracles.OPERATIONS[name]):
            want = oracles.published(name, op, m, height, width)
            for sign, number in zip((1.0, -1.0), want * 2 if len(want) == 1 else want, strict=False):
                got = oracles.number_of(name, op, m, sign, height, width)
                assert oracles.same_number(op, got, number), (op, m, sign, got, number, height, width)


@pytest.mark.parametrize("name", [*RAND, "trivial"])
def test_sampled_numbers_are_those_of_the_magnitude(name: str) -> None:
    height, width = 57, 91
    sample = jax.jit(lambda m: policy(name, 300, m).sample(jax.random.key(1), (height, width, 3)))
    if name == "trivial":
        params = drawn(policy(name), 6000, (height, width, 3))
    for m in (9,) if name == "trivial" else (0, 3, 9, 10):
        params = params if name == "trivial" else jax.tree.map(np.asarray, sample(jnp.float32(m)))
        for index, op in enumerate(oracles.canonical(each.name) for each in oracles.PRESETS[name].entries):
            found = params["value"][params["op"] == index]
            among = oracles.MAGNITUDES[name] if name == "trivial" else [m]
            allowed = {oracles.number_of(name, op, one, sign, height, width) for one in among for sign in (1.0, -1.0)}
            if op in oracles.BARE:
                assert found.size > 3, op
            elif name == "timm" and op in oracles.SHIFTS[:2] and m in (3, 9):
                # The magnitude has a spread; its middle is what was asked for.
                assert abs(np.median(np.abs(found)) / 0.03 - m) < 0.5
            elif name != "timm":
                assert np.allclose(sorted(set(np.abs(found))), sorted(set(map(abs, allowed))), 1e-6, 1e-7), op
                assert op == "cutout" or set(np.sign(found)) == set(np.sign(sorted(allowed))), op


def cases() -> list[tuple[str, str]]:
    return sorted(
        {
            (op, oracles.INTERPOLATION[name] if op in oracles.MOVES else "nearest")
            for name in oracles.PRESETS
            for op in oracles.OPERATIONS[name]
        }
    )


@pytest.mark.as_in_use
@pytest.mark.parametrize(("op", "interpolation"), cases())
def test_operations_are_pillows(op: str, interpolation: str) -> None:
    """At every magnitude of every policy, with both signs, for photographs of three sizes."""
    for i, (height, width) in enumerate(oracles.SIZES):
        image = photograph("china.jpg" if i % 2 else "flower.jpg", height, width)
        todo = {
            (
                oracles.number_of(name, op, m, sign, height, width),
                0.5 if name in oracles.GRAY_FILL else 0.0,
                oracles.PRESETS[name].entries[oracles.entry(name, op)].name,
            )
            for name in oracles.PRESETS
            if op in oracles.OPERATIONS[name]
            if op not in oracles.MOVES or oracles.INTERPOLATION[name] == interpolation
            for m in oracles.MAGNITUDES[name]
            for sign in (1.0, -1.0)
        }
        for n, (number, fill, name) in enumerate(sorted(todo) if op not in oracles.BARE else [(0.0, 0.0, op)]):
            place = (n * 0.37 % 1, n * 0.71 % 1)
            want = oracles.pillow(op, interpolation, image, number, place, fill).astype(int)
            apart = np.abs(oracles.ours(name, interpolation, image, number, place, fill) - want)
            if interpolation == "bilinear":
                # Where a source is on the rim to the last bit, one may find it inside and the other outside.
                rim = 1e-3 if op in oracles.SHIFTS[:2] else 0
                assert (apart > 1).mean() <= rim, (number, (height, width), (apart > 1).mean())
                assert op in oracles.SHIFTS[2:] or (apart > 0).mean() <= 0.04, (number, (apart > 0).mean())
            elif op == "rotate":
                assert (apart > 0).mean() <= 0.0005, (number, (height, width), (apart > 0).mean())
            else:
                assert apart.max() == 0, (number, (height, width), (apart > 0).mean())


@pytest.mark.as_in_use
@pytest.mark.parametrize("op", ["color", "contrast", "equalize", "sharpness", "rotate", "shear_y", "cutout"])
def test_operations_of_gray_images_are_pillows(op: str) -> None:
    image = np.asarray(photograph("china.jpg", 32, 32).mean(2, keepdims=True), np.uint8)
    for number in (0.3, 1.7, 7.0):
        want = oracles.pillow(op, "nearest", image, number, (0.3, 0.6), 0.5)
        apart = oracles.ours(op, "nearest", image, number, (0.3, 0.6), 0.5) != want
        assert apart.mean() <= (0.001 if op == "rotate" else 0)


@pytest.mark.parametrize("op", sorted({op for ops in oracles.OPERATIONS.values() for op in ops}))
def test_operations_of_floats_are_those_of_bytes(op: str) -> None:
    image = photograph("flower.jpg", 32, 32)
    for name, m in itertools.product(("timm", "trivial", "google"), (3, 9)):
        if op in oracles.OPERATIONS[name]:
            number = oracles.number_of(name, op, m, -1.0, 32, 32)
            for how in ("nearest", "bilinear") if op in oracles.MOVES else ("nearest",):
                want = oracles.ours(op, how, image, number).astype(np.float64)
                for dtype, most in ((jnp.float32, 0.8), (jnp.float16, 0.9), (jnp.bfloat16, 1.5)):
                    got = oracles.ours(op, how, np.asarray(jnp.asarray(image / 255, dtype)), number)
                    assert got.dtype == dtype
                    apart = np.abs(got.astype(np.float64) * 255 - want)
                    steps = op in ("posterize", "solarize", "solarize_add", "equalize") and dtype == jnp.bfloat16
                    assert apart.mean() <= (4 if steps else most), (number, dtype, apart.mean())
                    if (
                        dtype == jnp.float32
                        and how == "nearest"
                        and op
                        in (
                            "posterize",
                            "solarize",
                            "solarize_add",
                            "invert",
                            "identity",
                            "equalize",
                            "cutout",
                            "shear_x",
                        )
                    ):
                        assert apart.max() < 0.51, (number, apart.max())


# What is drawn.


@pytest.mark.parametrize("name", RAND)
def test_operations_are_uniform_with_replacement_and_independent(name: str) -> None:
    count = len(oracles.OPERATIONS[name])
    ops = drawn(policy(name, 3, probability=1.0), 8000)["op"]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert_uniform(ops[:, i] * count + ops[:, j], count**2)
    assert_uniform(ops[:-1, 0] * count + ops[1:, 0], count**2)
    assert_uniform(ops[:-1, 0] * count + ops[1:, 1], count**2)


@pytest.mark.parametrize("name", [*RAND, "trivial"])
def test_signs_are_fair_and_independent(name: str) -> None:
    params = drawn(policy(name), 20_000)
    names = oracles.names_of(name, params["op"])
    ups = []
    for i in range(names.shape[1]):
        up = params["value"][:, i] > np.isin(names[:, i], list(oracles.ENHANCE))
        for op in oracles.MOVES + (tuple(oracles.ENHANCE) if name != "google" else ()):
            # Of 31 magnitudes of TrivialAugment those that do nothing have no sign.
            some = (names[:, i] == op) & (params["value"][:, i] != (op in oracles.ENHANCE))
            assert_share(up[some], 0.5)
        ups.append(np.where(np.isin(names[:, i], oracles.MOVES), up, -1))
    pairs = [(ups[0][:-1], ups[0][1:])] + ([(ups[0], ups[1])] if len(ups) > 1 else [])
    for a, b in pairs:
        both = (a >= 0) & (b >= 0)
        assert both.sum() > 300
        if name != "trivial":
            assert_uniform(a[both] * 2 + b[both], 4)


def test_google_enhances_one_way() -> None:
    for m in (2.0, 9.0):
        params = drawn(policy("google", 4, m), 200)
        some = np.isin(oracles.names_of("google", params["op"]), list(oracles.ENHANCE))
        np.testing.assert_allclose(params["value"][some], 0.1 + 0.18 * m, 1e-6)


def test_timm_does_half_of_the_operations_with_a_spread_of_magnitudes() -> None:
    params = drawn(policy("timm"), 30_000)
    done = params["op"] < 15
    assert params["op"].max() == 15
    assert_uniform(done[:, 0] * 2 + done[:, 1], 4)
    assert_uniform(done[:-1, 0] * 2 + done[1:, 0], 4)
    assert_uniform(params["op"][done], 15)
    for probability in (0.0, 0.3, 1.0):
        assert_share(drawn(policy("timm", probability=jnp.float32(probability)), 4000)["op"] < 15, probability)
    assert_share(drawn(policy("google", probability=0.3), 4000)["op"] < 16, 0.3)
    assert np.all(drawn(policy("google"), 1000)["op"] < 16)


def test_timms_magnitudes_are_normal_and_clipped() -> None:
    params = drawn(policy("timm", 2, 9.0, probability=1.0), 60_000)
    names = oracles.names_of("timm", params["op"])
    m = np.where(names == "rotate", np.abs(params["value"]) / 3, np.nan)
    m = np.where(np.isin(names, oracles.SHIFTS[:2]), np.abs(params["value"]) / 0.03, m)
    found = m[~np.isnan(m)]
    assert found.max() <= 10 + 1e-5
    assert_share(found > 10 - 1e-4, stats.norm.sf(2))
    inner = found[found < 10 - 1e-4]
    assert stats.kstest(inner, lambda x: stats.norm.cdf(x, 9, 0.5) / stats.norm.cdf(2)).pvalue > LIKELY
    both = m[~np.isnan(m).any(1)]
    assert len(both) > 1000
    assert abs(np.corrcoef(both.T)[0, 1]) < 4.5 / np.sqrt(len(both))
    # At the other end too.
    params = drawn(policy("timm", 2, 0.25, probability=1.0), 4000)
    found = np.abs(params["value"][oracles.names_of("timm", params["op"]) == "rotate"]) / 3
    assert found.min() == 0
    assert_share(found == 0, stats.norm.cdf(-0.5))


def test_trivial_augment_draws_one_of_31_magnitudes() -> None:
    params = drawn(policy("trivial"), 30_000)
    assert params["op"].shape == (30_000, 1)
    names, value = oracles.names_of("trivial", params["op"])[:, 0], params["value"][:, 0]
    assert_uniform(params["op"], 14)
    scales = {"rotate": (0, 4.5), "shear_x": (0, 0.033), "shear_y": (0, 0.033)} | dict.fromkeys(
        oracles.ENHANCE, (1, 0.033)
    )
    for op, (start, step) in scales.items():
        bins = np.abs(value[names == op] - start) / step
        np.testing.assert_allclose(bins, np.round(bins), atol=1e-3)
        assert_uniform(np.round(bins).astype(int), 31)
    assert_uniform(np.round((255 - value[names == "solarize"]) / 8.5).astype(int), 31)
    bits = value[names == "posterize"]
    want = np.bincount([8 - round(m / 5) for m in range(31)], minlength=9) / 31
    assert stats.chisquare(np.bincount(bits.astype(int), minlength=9)[2:], want[2:] * bits.size).pvalue > LIKELY


def test_cutouts_are_anywhere() -> None:
    params = drawn(policy("google"), 4000)
    place = params["place"].reshape(-1, 4)
    for column in place.T:
        assert stats.kstest(column, "uniform").pvalue > LIKELY
    assert np.abs(np.corrcoef(place.T) - np.eye(4)).max() < 4.5 / np.sqrt(len(place))


def test_the_rows_of_auto_augment_are_torchvisions() -> None:
    """Digests of the tables in torchvision 0.29."""
    digests = {name: hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] for name, rows in AUTO_AUGMENT.items()}
    assert digests == {"imagenet": "581e655f519be787", "cifar10": "e912eac9c42f5856", "svhn": "0705aabfb297b42f"}


def test_auto_augment_draws_its_rows() -> None:
    """Each row as likely, each operation with its own probability and number."""
    rows, (height, width), count = AUTO_AUGMENT["svhn"], (57, 91), 40_000
    params = drawn(augment.auto_augment("svhn"), count, (height, width, 3))
    names = oracles.names_of("learned", params["op"])
    expected: collections.Counter[tuple[str, ...]] = collections.Counter()
    numbers: dict[str, set[float]] = collections.defaultdict(set)
    for row in rows:
        ops = [oracles.canonical(op) for op, _, _ in row]
        for done in itertools.product((False, True), repeat=2):
            share = np.prod([p if one else 1 - p for (_, p, _), one in zip(row, done, strict=True)])
            expected[tuple(op if one else "identity" for op, one in zip(ops, done, strict=True))] += share / len(rows)
        for op, (_, p, m) in zip(ops, row, strict=True):
            numbers[op] |= {oracles.number_of("learned", op, m, sign, height, width) for sign in (1.0, -1.0) if p > 0}
    found = collections.Counter(map(tuple, names))
    for key in expected | found:
        assert abs(found[key] / count - expected[key]) <= 5 * np.sqrt(expected[key] * (1 - expected[key]) / count), key
    for op in set(numbers) - set(oracles.BARE):
        assert np.allclose(sorted(set(params["value"][names == op].tolist())), sorted(numbers[op]), 1e-6), op


# Whole policies.


@pytest.mark.parametrize(
    ("name", "num_ops"),
    [
        ("torchvision", 2),
        pytest.param("timm", 4, marks=pytest.mark.exhaustive),
        pytest.param("google", 3, marks=pytest.mark.exhaustive),
        pytest.param("trivial", 1, marks=pytest.mark.exhaustive),
        ("learned", 2),
    ],
)
def test_a_policy_is_its_operations_one_by_one(name: str, num_ops: int) -> None:
    images = oracles.photographs(48, 32, 32)
    aug, fill = policy(name, num_ops, interpolation="nearest"), 0.5 if name in oracles.GRAY_FILL else 0.0
    key = jax.random.key(num_ops)
    params, got = aug.sample(key, images.shape), np.asarray(aug(key, images))
    np.testing.assert_array_equal(got, aug.apply(params, images))
    changed = 0
    for i, image in enumerate(images):
        steps = oracles.of_image(params, i)
        want = oracles.chained(name, "nearest", steps, image, fill)
        turned = "rotate" in oracles.names_of(name, steps["op"])
        assert (got[i] != want).mean() <= (0.005 if turned else 0), oracles.names_of(name, steps["op"])
        changed += not np.array_equal(want, image)
    assert changed > 24


@pytest.mark.as_in_use
@pytest.mark.exhaustive
def test_bilinear_policies_are_pillows_but_for_roundings() -> None:
    images = oracles.photographs(32, 57, 91)
    aug = policy("timm", 2)
    params = aug.sample(jax.random.key(3), images.shape)
    got = np.asarray(aug.apply(params, images)).astype(int)
    for i, image in enumerate(images):
        steps = oracles.of_image(params, i)
        want = oracles.chained("timm", "bilinear", steps, image, 0.5)
        assert np.abs(got[i] - want).mean() < 0.5, oracles.names_of("timm", steps["op"])


@pytest.mark.as_in_use
@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "dtype"), [("google", jnp.uint8), ("timm", jnp.float32)])
def test_strategies_agree(name: str, dtype: Any) -> None:
    images = oracles.photographs(23, 12, 17)
    images = jnp.asarray(images if dtype == jnp.uint8 else images / 255, dtype)
    aug, key = policy(name), jax.random.key(5)
    want = np.asarray(aug(key, images, batching="map"))
    assert want.dtype == dtype
    for batching in ("vmap", "auto"):
        got = np.asarray(aug(key, images, batching=batching))
        if dtype == jnp.uint8:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.exhaustive
def test_an_image_does_not_depend_on_its_batch() -> None:
    images, aug, key = oracles.photographs(6, 12, 17), policy("torchvision"), jax.random.key(0)
    want = np.asarray(aug(key, images, batching="map"))
    others = np.where(np.arange(6)[:, None, None, None] == 2, images, 255 - images)
    for batching in ("map", "vmap"):
        np.testing.assert_array_equal(aug(key, others, batching=batching)[2], want[2])
    np.testing.assert_array_equal(aug(key, images[:3], batching="map"), want[:3])
    assert len({x.tobytes() for x in np.asarray(aug(key, np.stack([images[0]] * 6)))}) > 3, "each image its own"


@pytest.mark.exhaustive
def test_masks_boxes_and_points_move_along() -> None:
    count, side = 128, 40
    images, rng = oracles.photographs(count, side, side), np.random.default_rng(0)
    for name in ("torchvision", "google", "timm"):
        aug = policy(name, 1, 3.0, probability=1.0, interpolation="nearest", fill=0.0)
        params = aug.sample(jax.random.key(2), images.shape)
        names = oracles.names_of(name, np.asarray(params["op"])[:, 0])
        # Its own mask moves as the image does.
        done = aug.apply(params, {"image": images, "mask": images})
        moved = np.isin(names, oracles.MOVES)
        assert moved.sum() > 30
        np.testing.assert_array_equal(np.asarray(done["image"])[moved], np.asarray(done["mask"])[moved])
        np.testing.assert_array_equal(np.asarray(done["mask"])[~moved], images[~moved])
        # A marker of 5 x 5 pixels, its box and its middle.
        top, left = rng.integers(8, side - 13, (2, count))
        mask = np.zeros((count, side, side), np.int32)
        for i in range(count):
            mask[i, top[i] : top[i] + 5, left[i] : left[i] + 5] = 7
        done = aug.apply(
            params,
            {
                "image": images,
                "mask": mask,
                "label": np.arange(count),
                "boxes": np.stack([left, top, left + 5, top + 5], -1)[:, None].astype(np.float32),
                "keypoints": np.stack([left + 2.5, top + 2.5], -1)[:, None].astype(np.float32),
            },
        )
        np.testing.assert_array_equal(done["label"], np.arange(count))
        shifts = []
        for i in range(count):
            rows, columns = np.nonzero(np.asarray(done["mask"][i]) == 7)
            x1, y1, x2, y2 = np.asarray(done["boxes"][i, 0])
            if rows.size == 0:
                continue
            around = [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]
            assert np.abs(np.subtract([x1, x2, y1, y2], around)).max() < 1.3
            if rows.size >= 23:
                x, y = np.asarray(done["keypoints"][i, 0])
                assert abs(x - columns.mean() - 0.5) < 0.75
                assert abs(y - rows.mean() - 0.5) < 0.75
                shifts.append(np.hypot(x - left[i] - 2.5, y - top[i] - 2.5))
        assert len(shifts) > 100
        assert np.max(shifts) > (0.9 if name == "torchvision" else 2)


@pytest.mark.parametrize("name", ["google"])
def test_other_dtypes_and_gray_images(name: str) -> None:
    images = oracles.photographs(24, 20, 20)
    aug, key = policy(name), jax.random.key(7)
    params = aug.sample(key, images.shape)
    want = np.asarray(aug.apply(params, images)).astype(np.float64)
    for dtype, most in ((jnp.float32, 1.0), (jnp.bfloat16, 3.0)):
        got = aug.apply(params, jnp.asarray(images / 255, dtype))
        assert got.dtype == dtype
        assert got.min() >= 0
        assert got.max() <= 1
        assert np.abs(np.asarray(got, np.float64) * 255 - want).mean() <= most, dtype
    gray = images[..., :1]
    got = np.asarray(aug.apply(params, gray))
    assert got.shape == gray.shape
    # A gray image is one whose channels are alike.
    np.testing.assert_array_equal(got, np.asarray(aug.apply(params, gray.repeat(3, -1)))[..., :1])


def test_a_frame_of_a_video_has_the_parameters_of_the_others() -> None:
    aug = policy("google", 2)
    frames = oracles.photographs(3, 16, 16)
    params = aug.sample(jax.random.key(1), frames.shape[1:])
    want = [aug.apply(params, frame) for frame in frames]
    np.testing.assert_array_equal(aug.apply(params, frames), np.stack(want))


@pytest.mark.exhaustive
def test_options_of_the_border() -> None:
    image = np.full((24, 24, 3), 255, np.uint8)
    key = jax.random.key(0)
    batch = np.stack([image] * 64)
    for name, options, colors in (
        ("torchvision", {"fill": 0.2}, {51}),
        ("trivial", {"border": "reflect"}, set()),
        ("timm", {"interpolation": "nearest"}, {128}),
    ):
        aug = policy(name, 1, 5.0, **options)
        params = aug.sample(key, batch.shape)
        moved = np.isin(oracles.names_of(name, np.asarray(params["op"])[:, 0]), oracles.MOVES)
        assert set(np.unique(np.asarray(aug.apply(params, batch))[moved])) == colors | {255}, (name, options)
    aug = policy("torchvision", 1, 5.0, mask_fill=9)
    params = aug.sample(key, batch.shape)
    mask = np.asarray(aug.apply(params, {"image": batch, "mask": np.zeros(batch.shape[:3], np.int32)})["mask"])
    assert set(np.unique(mask)) == {0, 9}


# As values and as programs.


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["timm"])
def test_a_program_serves_every_key_and_magnitude(name: str) -> None:
    traces = []

    @jax.jit
    def run(key: Any, magnitude: Any, images: Any) -> Any:
        traces.append(1)
        return policy(name, 2, magnitude)(key, images)

    images = oracles.photographs(4, 12, 12)
    magnitudes = (9.0,) if name == "trivial" else (0.0, 4.0, 9.0)
    for seed, magnitude in itertools.product(range(3), magnitudes):
        got = run(jax.random.key(seed), jnp.float32(magnitude), images)
        if seed == 2:
            np.testing.assert_array_equal(got, policy(name, 2, magnitude)(jax.random.key(seed), images))
    assert len(traces) == 1


def test_values() -> None:
    aug = augment.rand_augment(3, 12.0, "torchvision", probability=0.7, fill=(0.1, 0.2, 0.3))
    assert repr(aug).startswith("augment.rand_augment(num_ops=3, magnitude=12.0")
    assert eval(repr(aug), {"augment": augment}) == aug
    for one in (aug, augment.trivial_augment(border="edge"), augment.rand_augment(preset="timm")):
        assert pickle.loads(pickle.dumps(one)) == one
        assert gx.from_config(json.loads(json.dumps(gx.to_config(one)))) == one
        assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    assert aug != augment.rand_augment(3, 13.0, "torchvision", probability=0.7, fill=(0.1, 0.2, 0.3))
    assert augment.rand_augment() == augment.rand_augment(2, 9.0, "torchvision")
    assert 12.0 in jax.tree.leaves(aug)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_ops": 0}, ValueError, "num_ops"),
        ({"num_ops": 1.5}, TypeError, "num_ops"),
        ({"num_ops": True}, TypeError, "num_ops"),
        ({"magnitude": -0.1}, ValueError, "magnitude"),
        ({"magnitude": 30.5}, ValueError, "magnitude"),
        ({"magnitude": 10.5, "preset": "timm"}, ValueError, "magnitude"),
        ({"magnitude": -1.0, "preset": "google"}, ValueError, "magnitude"),
        ({"magnitude": "9"}, TypeError, "magnitude"),
        ({"magnitude": float("nan")}, ValueError, "magnitude"),
        ({"preset": "keras"}, ValueError, "preset"),
        ({"probability": 1.1}, ValueError, "probability"),
        ({"probability": -0.1}, ValueError, "probability"),
        ({"interpolation": "bicubic"}, ValueError, "interpolation"),
        ({"border": "wrap"}, ValueError, "border"),
        ({"fill": 128}, ValueError, "fill"),
        ({"mask_fill": 0.5}, TypeError, "mask_fill"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"^{words}: "):
        jax.block_until_ready(augment.rand_augment(**options)(jax.random.key(0), np.zeros((4, 4, 3), np.uint8)))
    rest = {name: x for name, x in options.items() if name not in ("num_ops", "magnitude", "preset", "probability")}
    if rest:
        with pytest.raises(error, match=rf"^{words}: "):
            augment.trivial_augment(**rest)(jax.random.key(0), np.zeros((4, 4, 3), np.uint8))


def test_the_ends_of_the_ranges_are_taken() -> None:
    for options in (
        {"magnitude": 30},
        {"magnitude": 10, "preset": "timm"},
        {"magnitude": 14.0, "preset": "google"},
        {"magnitude": 0},
        {"probability": 0},
        {"num_ops": 1},
    ):
        aug = augment.rand_augment(**options)
        params = jax.eval_shape(lambda key: aug.sample(key, (4, 4, 3)), jax.random.key(0))
        assert params["op"].shape == (options.get("num_ops", 2),)


def test_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^image: "):
        augment.rand_augment()(jax.random.key(0), np.zeros((4, 4, 2), np.uint8))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["google", "timm"])
def test_exports_for_every_platform(name: str) -> None:
    images, key = oracles.photographs(3, 8, 8), jax.random.PRNGKey(0)
    aug = policy(name)
    exported = jax.export.export(jax.jit(lambda key, images: aug(key, images)), platforms=["cpu", "cuda", "tpu"])(
        key, images
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_array_equal(jax.export.deserialize(exported.serialize()).call(key, images), aug(key, images))
