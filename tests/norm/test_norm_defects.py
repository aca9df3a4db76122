"""Inputs at which normalization is known to go wrong elsewhere: each test has the input that shows it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import norm_oracles as oracles
import numpy as np
import pytest

import gradxform as gx
from gradxform.norm import BatchStats

NOISE = np.random.RandomState(0).standard_normal((8, 1024))


# ---- a variance as a difference of averages of squares ----


@pytest.mark.parametrize("offset", [100.0, 1e3, 3e3, 1e5])
def test_unit_noise_far_from_zero_is_normalized(offset: float) -> None:
    x = np.float32(NOISE + offset)
    wanted = oracles.layer_norm(x, x).y
    for masked in (None, np.ones((8, 1))):
        np.testing.assert_allclose(gx.norm.layer_norm(jnp.asarray(x), mask=masked), wanted, rtol=0, atol=1e-5)
    y, _ = gx.norm.batch_norm(jnp.asarray(x.T), gx.norm.init_batch_stats(8), use_running_average=False, epsilon=1e-6)
    np.testing.assert_allclose(y.T, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        gx.norm.group_norm(jnp.asarray(x), num_groups=1), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        gx.norm.instance_norm(jnp.asarray(x[..., None])), wanted[..., None], rtol=0, atol=1e-5)


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
    return jax.vmap(lambda x, mask: gx.norm.batch_norm(
        x, stats, use_running_average=False, mask=mask, axis_name="shards", **options), axis_name="shards")(x, mask)


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
