"""Inputs at which normalization is known to go wrong elsewhere: each test has the input that shows it."""

from __future__ import annotations

import functools
import re
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import norm_oracles as oracles
import numpy as np
import pytest
from hypothesis import example, given, settings

import gradxform as gx
from gradxform.norm import BatchStats, moments

pytestmark = pytest.mark.as_in_use

SETTINGS = settings(deadline=None, derandomize=True, database=None, print_blob=False, max_examples=30)
NOISE = np.random.RandomState(0).standard_normal((8, 1024))


# ---- a variance as a difference of averages of squares ----


# As a reduction over the last axis of (3, 64): kernels that take x and a mask in that shape.
ROWS: dict[str, Any] = {
    "layer": lambda x, mask: gx.norm.layer_norm(x, mask=mask if mask.ndim else None),
    "rms": lambda x, mask: gx.norm.rms_norm(x, mask=mask if mask.ndim else None),
    "batch": lambda x, mask: (
        gx.norm.batch_norm(
            x.T,
            gx.norm.init_batch_stats(3),
            use_running_average=False,
            epsilon=1e-6,
            mask=mask.T if mask.ndim else None,
        )[0].T
    ),
    "group": lambda x, mask: gx.norm.group_norm(
        x.reshape(3, 16, 4), num_groups=1, mask=mask.reshape(3, 16, 4) if mask.ndim else None
    ).reshape(3, 64),
    "instance": lambda x, mask: gx.norm.instance_norm(x[..., None], mask=mask[..., None] if mask.ndim else None)[
        ..., 0
    ],
}


@functools.cache
def passes(name: str, masked: bool) -> tuple[Any, Any]:
    """The forward pass alone, and with the gradient of x."""

    def norm(x: jax.Array, mask: jax.Array) -> jax.Array:
        return ROWS[name](x, mask if masked else np.True_)

    def both(x: jax.Array, mask: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: norm(x, mask), x)
        return y, pull(g)[0]

    return jax.jit(norm), jax.jit(both)


@st.composite
def far_from_zero(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit noise at an offset, with up to three outliers anywhere, and a mask."""
    random = np.random.RandomState(draw(st.integers(0, 10**6)))
    x = random.standard_normal((3, 64)) + draw(st.sampled_from([0, 1, -30, 1e3, -3e3, 1e5]))
    for place, power, sign in draw(
        st.lists(st.tuples(st.integers(0, 63), st.floats(1, 6), st.sampled_from([-1, 1])), max_size=3)
    ):
        x[:2, place] += sign * 10.0**power  # a row is without
    return np.float32(x), random.uniform(size=(3, 64)) < 0.8


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "mask"])
@pytest.mark.parametrize("name", ROWS)
@SETTINGS
@given(far_from_zero())
@example((np.float32(np.where(np.arange(64) == 0, 1e5, NOISE[:3, :64])), np.ones((3, 64), bool)))
def test_neither_an_offset_nor_an_outlier_costs_the_others_digits(
    name: str, masked: bool, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    x, mask = drawn
    mask = mask if masked else np.ones_like(mask)
    g = np.float32(NOISE[3:6, :64])
    wanted = (oracles.rms_norm if name == "rms" else oracles.layer_norm)(x, g, mask=mask)
    _, mean, var = oracles.moments(x, -1, mask)
    apart = np.abs(np.float64(x) - (0 if name == "rms" else mean))
    # What a few roundings of a difference from the mean, and of the mean of all of them, come to.
    both_apart = apart + np.where(mask, apart, 0).mean(-1, keepdims=True)
    size = 8 * np.finfo(np.float32).eps * both_apart / np.sqrt(var + 1e-6)
    forward, both = passes(name, masked)
    y, (trained, dx) = forward(x, mask), both(x, mask, g)
    for found in (y, trained):
        assert np.all((np.abs(np.float64(found) - wanted.y) <= size)[mask])
    np.testing.assert_allclose(dx, wanted.dx, rtol=0, atol=1e-5 * max(1, np.abs(wanted.dx).max()))


@pytest.mark.parametrize("outliers", [[], [(32, 1e6)], [(3, -1e5), (32, 1e4), (33, 1e4)]])
def test_statistics_in_one_pass(outliers: list[tuple[int, float]]) -> None:
    """Around the mean of a sample, which is row 32 of 64, far from 0 and with outliers in the sample and elsewhere."""
    x = np.random.RandomState(1).standard_normal((2, 64, 1024, 2)) + [3e3, -7]
    for row, size in outliers:
        x[0, row, 5] += size
    x = np.float32(x)
    over = moments.Reduction((0, 1, 2))
    assert moments._sample(over, jnp.asarray(x)).shape == (2, 2, 1024, 2)
    exact = oracles.moments(x, over.axes)
    high, low, var = jax.jit(functools.partial(moments._one_pass, over))(x, None, np.float32(x.size // 2))
    near = 1e-6 * np.sqrt(exact.var)
    assert np.all(np.abs((np.float64(high) + np.float64(low)) - exact.mean) <= near)
    np.testing.assert_allclose(var, exact.var, rtol=1e-5)


def test_a_variance_is_never_negative() -> None:
    """3000.3 with noise of 1e-3 is four numbers of float32: a difference of squares gives -0.3."""
    x = np.float32(3000.3 + 1e-3 * NOISE[:, :4].reshape(-1, 1))
    exact = x.var(dtype=np.float64)
    stats = gx.norm.init_batch_stats(1, bias_corrected=True)
    for _ in range(3):
        y, stats = gx.norm.batch_norm(jnp.asarray(x), stats, use_running_average=False)
        np.testing.assert_allclose(stats.var, exact, rtol=1e-5)
        np.testing.assert_allclose(stats.mean, x.mean(dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(y, oracles.batch_norm(x, x).y, rtol=0, atol=1e-5)


def test_a_fast_variance_does_not_depend_on_how_it_is_compiled() -> None:
    x = jnp.asarray(NOISE + 3e3, jnp.float32)
    norm = jax.value_and_grad(lambda x: jnp.sum(gx.norm.layer_norm(x) * NOISE))
    (y, dx), (compiled_y, compiled_dx) = norm(x), jax.jit(norm)(x)
    np.testing.assert_allclose(y, compiled_y, rtol=1e-5)
    np.testing.assert_allclose(dx, compiled_dx, rtol=0, atol=1e-5)


# ---- averages of averages over shards of unequal counts ----


def synced(x: jax.Array, mask: jax.Array, stats: BatchStats, **options: Any) -> tuple[jax.Array, BatchStats]:
    return jax.vmap(
        lambda x, mask: gx.norm.batch_norm(
            x, stats, use_running_average=False, mask=mask, axis_name="shards", **options
        ),
        axis_name="shards",
    )(x, mask)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_shards_of_unequal_counts_make_one_batch(offset: float) -> None:
    x = np.float32(NOISE[:, :12].reshape(4, 8, 3) + np.arange(4)[:, None, None] + offset)
    mask = np.arange(8)[:, None] < np.array([8, 1, 0, 3])[:, None, None]
    y, stats = synced(jnp.asarray(x), jnp.asarray(mask), gx.norm.init_batch_stats(3), momentum=0.0)
    wanted = oracles.feature_moments(x, -1, mask)
    for shard in range(4):
        np.testing.assert_allclose(stats.mean[shard], wanted.mean, rtol=1e-6)
        np.testing.assert_allclose(stats.var[shard], wanted.var, rtol=1e-5)
    assert not np.allclose(wanted.mean, np.mean([part.mean(0) for part in x], 0), rtol=1e-5)  # not what equals give
    wanted_y = oracles.batch_norm(x, x, mask=mask).y
    kept = np.broadcast_to(mask, x.shape)
    np.testing.assert_allclose(np.asarray(y)[kept], wanted_y[kept], rtol=0, atol=2e-5)


def test_gradients_of_unequal_shards_are_those_of_one_batch() -> None:
    x, g, scale, bias = (np.float32(a) for a in oracles.draws((4, 8, 3), (2,)))
    mask = np.arange(8)[:, None] < np.array([8, 1, 0, 3])[:, None, None]

    def loss(x: Any, scale: Any, bias: Any) -> Any:
        y, _ = synced(x, jnp.asarray(mask), gx.norm.init_batch_stats(3), scale=scale, bias=bias)
        return jnp.sum(y * g)

    wanted = oracles.batch_norm(x, g, scale, bias, mask=mask)
    for ours, theirs in zip(jax.grad(loss, (0, 1, 2))(x, scale, bias), wanted[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


def test_an_empty_shard_does_not_make_statistics_nan() -> None:
    x = jnp.asarray(NOISE[:4, :6].reshape(2, 4, 3), jnp.float32)
    stats = BatchStats(jnp.ones(3), jnp.full(3, 2.0))
    _, new = synced(x, jnp.array([[[True]], [[False]]]), stats, momentum=0.5)
    _, alone = gx.norm.batch_norm(x[0], stats, use_running_average=False, momentum=0.5)
    for shard in range(2):
        np.testing.assert_allclose(new.mean[shard], alone.mean, rtol=1e-6)
        np.testing.assert_allclose(new.var[shard], alone.var, rtol=1e-6)
    _, none = synced(x, jnp.zeros((2, 1, 1), bool), stats)
    assert np.array_equal(none.mean, np.ones((2, 3))) and np.array_equal(none.var, np.full((2, 3), 2.0))


# ---- running statistics ----


def test_evaluation_after_the_first_batch_knows_its_variance() -> None:
    """A second moment and a mean that are corrected differently give 103 for this variance of 4."""
    x = jnp.asarray(10 + 2 * NOISE[:, :32].reshape(-1, 1), jnp.float32)
    exact = np.asarray(x).var(dtype=np.float64)
    _, stats = gx.norm.batch_norm(x, gx.norm.init_batch_stats(1, bias_corrected=True), use_running_average=False)
    np.testing.assert_allclose(stats.var, exact, rtol=1e-5)
    trained, _ = gx.norm.batch_norm(x, stats, use_running_average=False)
    evaluated, _ = gx.norm.batch_norm(x, stats, use_running_average=True)
    np.testing.assert_allclose(evaluated, trained, rtol=0, atol=1e-5)


def test_running_statistics_of_bfloat16_inputs_keep_moving() -> None:
    """In bfloat16 a running mean near 100 cannot take steps of a hundredth of 1."""
    x = jnp.asarray(100 + np.sign(NOISE[:, :4]).reshape(-1, 1), jnp.bfloat16)
    stats = BatchStats(jnp.full(1, 101.0), jnp.ones(1))
    step = jax.jit(lambda x, stats: gx.norm.batch_norm(x, stats, use_running_average=False)[1])
    for _ in range(50):
        stats = step(x, stats)
    assert stats.mean.dtype == stats.var.dtype == "float32"
    mean = np.asarray(x, np.float64).mean()
    np.testing.assert_allclose(stats.mean, mean + 0.99**50 * (101 - mean), rtol=1e-6)


@pytest.mark.parametrize("kernel", [gx.norm.batch_norm, gx.norm.batch_renorm], ids=["batch_norm", "batch_renorm"])
def test_a_running_mean_is_not_rounded_before_it_is_subtracted(kernel: Any) -> None:
    """1001.5 and 1000.7 are one number in bfloat16."""
    stats = BatchStats(jnp.full(1, 1000.7), jnp.ones(1))
    y, _ = kernel(jnp.full((1, 1), 1001.5), stats, use_running_average=True, dtype=jnp.bfloat16)
    assert y.dtype == "bfloat16"
    np.testing.assert_allclose(np.float64(y), 0.8, rtol=4e-3)


# ---- a single value, which is its own mean ----


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, **_: gx.norm.layer_norm(x[..., :1], **_),
        lambda x, **_: gx.norm.instance_norm(x[:, :1], **_),
        lambda x, **_: gx.norm.group_norm(x[:, 0], num_groups=4, **_),
        lambda x, **_: gx.norm.batch_norm(x[0, :1], gx.norm.init_batch_stats(4), use_running_average=False, **_)[0],
        lambda x, **_: gx.norm.batch_renorm(x[0, :1], gx.norm.init_batch_stats(4), use_running_average=False, **_)[0],
        lambda x, **_: gx.norm.weight_standardize(x[0, :1]),
    ],
    ids=["layer", "instance", "group", "batch", "renorm", "weight"],
)
def test_statistics_of_one_value_are_refused_where_it_is_known_to_be_one(norm: Any, request: Any) -> None:
    x = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"^(x|kernel): expected more than one value .* got shape \("):
        norm(x)
    if request.node.callspec.id in ("layer", "batch"):
        assert not np.any(norm(x, mask=np.ones(1, bool)))
        assert not np.any(jax.vmap(lambda x: norm(x, axis_name="shards"), axis_name="shards")(x[None]))


def test_one_value_has_a_mean_square_and_is_evaluated() -> None:
    np.testing.assert_allclose(gx.norm.rms_norm(jnp.full((2, 1), -3.0)), -1, rtol=1e-5)
    y, _ = gx.norm.batch_norm(jnp.ones((1, 4)), gx.norm.init_batch_stats(4), use_running_average=True)
    np.testing.assert_allclose(y, 1, rtol=1e-5)


# ---- a mask that fits two ways ----


@pytest.mark.parametrize(
    "shape, mask, first, last",
    [
        ((3, 3, 3), (3, 3), "..., None", "None, ..."),
        ((4, 2, 4), (4,), "..., None, None", "None, None, ..."),
        ((5, 5), (5,), "..., None", "None, ..."),
        ((2, 3, 3), (1, 3), "..., None", "None, ..."),
    ],
)
def test_a_mask_of_fewer_dimensions_that_fits_the_first_axes_too_is_refused(
    shape: Any, mask: Any, first: str, last: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"write mask[{first}] for the first, mask[{last}] for the last")):
        gx.norm.layer_norm(jnp.ones(shape), mask=jnp.ones(mask, bool))


def test_a_mask_that_fits_one_way_or_means_the_same_both_ways_is_taken() -> None:
    for mask in ((4,), (3, 4), (1, 1), (), (2, 1, 1)):
        assert gx.norm.rms_norm(jnp.ones((2, 3, 4)), mask=jnp.ones(mask, bool)).shape == (2, 3, 4)
