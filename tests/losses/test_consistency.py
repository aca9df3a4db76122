"""The Jensen-Shannon divergence beside float64 NumPy: values, slopes, and predictions that all but agree."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradxform.losses.consistency import jensen_shannon

pytestmark = pytest.mark.long

N, K = 7, 5
RANDOM = np.random.RandomState(0)
LOGITS = [np.float32(2 * RANDOM.standard_normal((N, K))) for _ in range(4)]


def log_softmax(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.sum(np.exp(x), -1, keepdims=True))


def ratios(logits: Any) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities, and the logarithms of their ratios to the mean, 0 where a probability is 0."""
    log_p = np.stack([log_softmax(one) for one in logits])
    p = np.exp(log_p)
    with np.errstate(divide="ignore", invalid="ignore"):
        return p, np.where(p > 0, log_p - np.log(p.mean(0)), 0)


def divergences(logits: Any) -> np.ndarray:
    """Of each example: the mean of KL(p_i | M)."""
    p, d = ratios(logits)
    return np.sum(p * d, -1).mean(0)


def slopes(logits: Any) -> np.ndarray:
    """Of the sum of the divergences, with regard to all logits."""
    p, d = ratios(logits)
    return p * (d - np.sum(p * d, -1, keepdims=True)) / len(p)


def clamped(logits: Any) -> np.ndarray:
    """The formula of the authors' code, in float64."""
    p = np.exp(np.stack([log_softmax(one) for one in logits]))
    log_mixture = np.log(np.clip(p.mean(0), 1e-7, 1))
    return np.sum(p * (np.log(p) - log_mixture), -1).mean(0)


def close(got: Any, want: Any, tolerance: float = 2e-6) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.max(np.abs(want)))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_values(count: int) -> None:
    logits = LOGITS[:count]
    each = jensen_shannon(*logits, weight=1.0, reduction="none")
    assert each.dtype == jnp.float32
    close(each, divergences(logits))
    close(jensen_shannon(*logits), 12 * divergences(logits).mean())
    close(jensen_shannon(*logits, weight=3.0, reduction="sum"), 3 * divergences(logits).sum())


def test_the_authors_formula() -> None:
    """Where no class is as improbable as 1e-6, it is the same; beyond, the clamp takes something off."""
    logits = [LOGITS[i] for i in range(3)]
    assert min(np.exp(log_softmax(one)).min() for one in logits) > 1e-6
    np.testing.assert_allclose(jensen_shannon(*logits, weight=1.0, reduction="none"), clamped(logits), atol=1e-6)
    far = np.array([[0.0, -30.0], [0.0, -25.0]])
    assert abs(float(jensen_shannon(*jnp.asarray(far, jnp.float32)[:, None], weight=1.0)) - divergences(far)) < 1e-14


def test_the_oracles_slopes() -> None:
    """Finite differences of the oracle give its slopes."""
    x, h = np.stack(LOGITS[:3]).astype(np.float64), 1e-5
    want = slopes(x)
    for index in [(0, 0, 0), (1, 2, 3), (2, 6, 4)]:
        step = np.zeros_like(x)
        step[index] = h
        assert abs((divergences(x + step).sum() - divergences(x - step).sum()) / (2 * h) - want[index]) < 1e-9


@pytest.mark.parametrize("count", [2, 3, 4])
def test_gradients(count: int) -> None:
    logits = LOGITS[:count]
    weights = np.float32(RANDOM.standard_normal(N))
    got = jax.grad(lambda args: jnp.sum(weights * jensen_shannon(*args, weight=2.0, reduction="none")))(logits)
    close(got, 2 * weights[:, None] * slopes(logits))
    forward = jax.jvp(lambda *args: jensen_shannon(*args, weight=1.0), tuple(logits), tuple(LOGITS[-count:]))[1]
    close(forward, np.sum(slopes(logits) * np.stack(LOGITS[-count:])) / N)


def test_gradient_of_the_weight() -> None:
    slope = jax.grad(lambda weight: jensen_shannon(*LOGITS[:3], weight=weight))(12.0)
    close(slope, divergences(LOGITS[:3]).mean())


def test_second_derivatives() -> None:
    logits, step, h = tuple(LOGITS[:3]), tuple(LOGITS[1:]), 1e-5
    gradient = jax.grad(lambda args: jensen_shannon(*args, weight=1.0, reduction="sum"))
    x, v = np.stack(logits).astype(np.float64), np.stack(step).astype(np.float64)
    close(jax.jvp(gradient, (logits,), (step,))[1], (slopes(x + h * v) - slopes(x - h * v)) / (2 * h), 1e-5)


def test_64_bits() -> None:
    with jax.enable_x64(True):
        logits = [one.astype(np.float64) for one in LOGITS[:3]]
        for scale in (1.0, 1e-2, 1e-4):
            args = [logits[0], logits[0] + scale * logits[1], logits[0] + scale * logits[2]]
            got = jensen_shannon(*args, weight=1.0, reduction="none")
            assert got.dtype == jnp.float64
            # The oracle itself loses digits where predictions agree.
            np.testing.assert_allclose(got, divergences(args), rtol=1e-12, atol=3e-16)
            close(jax.grad(lambda x: jensen_shannon(*x, weight=1.0, reduction="sum"))(args), slopes(args), 1e-11)
        assert jensen_shannon(*LOGITS[:2], logits[2]).dtype == jnp.float64


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_predictions_that_agree(count: int) -> None:
    """Nothing is left, and nothing pulls."""
    for logits in (LOGITS[0], 1e4 * LOGITS[0], np.zeros((N, K), np.float32)):
        value, gradients = jax.value_and_grad(lambda args: jensen_shannon(*args))([logits] * count)
        assert value == 0
        assert all(np.all(np.asarray(one) == 0) for one in gradients)


@pytest.mark.parametrize("scale", [0.1, 1e-2, 1e-3])
def test_predictions_that_almost_agree(scale: float) -> None:
    """A plain sum of ``p log(p / M)`` in float32 would be noise at 1e-3, and negative as often as not."""
    exact = [LOGITS[0], np.float32(LOGITS[0] + scale * LOGITS[1]), np.float32(LOGITS[0] + scale * LOGITS[2])]
    np.testing.assert_allclose(
        jensen_shannon(*exact, weight=1.0, reduction="none"), divergences(exact), rtol=2e-6 / scale
    )
    close(jax.grad(lambda args: jensen_shannon(*args, weight=1.0, reduction="sum"))(exact), slopes(exact), 2e-6 / scale)


def test_both_ways_of_a_term_meet() -> None:
    """Around where the power series ends, at a ratio of exp(0.1)."""
    shift = np.linspace(0.07, 0.15, 500, dtype=np.float32)
    logits = [np.stack([shift, -shift], 1), np.stack([-shift, shift], 1)]
    _, d = ratios(logits)
    assert np.abs(d).min() < 0.1 < np.abs(d).max()
    np.testing.assert_allclose(jensen_shannon(*logits, weight=1.0, reduction="none"), divergences(logits), rtol=3e-5)


def test_extreme_logits() -> None:
    sure = 1e4 * (2 * np.eye(3, dtype=np.float32) - 1)
    got, gradients = jax.value_and_grad(lambda args: jensen_shannon(*args, weight=1.0))([row[None] for row in sure])
    close(got, np.log(3))
    assert np.all(np.isfinite(gradients))
    mixed = [np.float32([[1e4, -1e4, 0.0]]), np.float32([[0.0, 0.0, 0.0]]), np.float32([[-1e4, 1e4, 1e4]])]
    got, gradients = jax.value_and_grad(lambda args: jensen_shannon(*args, weight=1.0))(mixed)
    close(got, divergences(mixed)[0])
    close(gradients, slopes(mixed))
    huge = [np.float32([[3e38, -3e38]]), np.float32([[-3e38, 3e38]])]
    got, gradients = jax.value_and_grad(lambda args: jensen_shannon(*args, weight=1.0))(huge)
    close(got, np.log(2))
    assert np.all(np.isfinite(gradients))


def test_classes_that_are_ruled_out() -> None:
    """By all, they might as well not be there; by one, its probability is 0."""
    out = [np.concatenate([one, np.full((N, 1), -np.inf, np.float32)], 1) for one in LOGITS[:3]]
    value, gradients = jax.value_and_grad(lambda args: jensen_shannon(*args))(out)
    close(value, 12 * divergences(LOGITS[:3]).mean())
    close(np.stack(gradients)[..., :-1], 12 * slopes(LOGITS[:3]) / N)
    assert np.all(np.stack(gradients)[..., -1] == 0)
    one = [np.where(np.arange(K) == 2, -np.inf, LOGITS[0]), *LOGITS[1:3]]
    value, gradients = jax.value_and_grad(lambda args: jensen_shannon(*args))(one)
    close(value, 12 * divergences(one).mean())
    close(gradients, 12 * slopes(one) / N)


def test_nan_stays() -> None:
    bad = LOGITS[0].copy()
    bad[2, 1] = np.nan
    got = np.asarray(jensen_shannon(bad, *LOGITS[1:3], reduction="none"))
    np.testing.assert_array_equal(np.isnan(got), np.arange(N) == 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes(dtype: str) -> None:
    """Of the rounded logits, all that follows is float32: sums over many classes too."""
    logits = [jnp.asarray(one, dtype) for one in RANDOM.standard_normal((3, 4, 3000))]
    value, gradients = jax.value_and_grad(lambda args: jensen_shannon(*args, weight=1.0))(logits)
    exact = [np.asarray(one, np.float64) for one in logits]
    assert value.dtype == jnp.float32
    close(value, divergences(exact).mean(), 1e-5)
    assert all(one.dtype == dtype for one in gradients)
    np.testing.assert_allclose(np.float64(gradients), slopes(exact) / 4, rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_other_axes(axis: int) -> None:
    logits = [np.float32(one) for one in RANDOM.standard_normal((3, 2, K, 3))]
    got = jensen_shannon(*logits, axis=axis, weight=1.0, reduction="none")
    close(got, divergences([np.moveaxis(one, axis, -1) for one in logits]))
    gradients = jax.grad(lambda args: jensen_shannon(*args, axis=axis, weight=1.0, reduction="sum"))(logits)
    close(
        np.moveaxis(np.stack(gradients), axis + (axis >= 0), -1), slopes([np.moveaxis(one, axis, -1) for one in logits])
    )


def test_a_single_example() -> None:
    got = jensen_shannon(*(one[0] for one in LOGITS[:3]))
    close(got, 12 * divergences([one[0] for one in LOGITS[:3]]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_over_a_named_axis(reduction: str) -> None:
    halves = [np.stack([one[:3], one[3:6]]) for one in LOGITS[:3]]
    want = 12 * getattr(divergences([one[:6] for one in LOGITS[:3]]), reduction)()
    got = jax.vmap(lambda *args: jensen_shannon(*args, reduction=reduction, axis_name="d"), axis_name="d")(*halves)
    close(got, [want] * 2)


@pytest.mark.parametrize("check_vma", [True, False])
def test_in_shard_map(check_vma: bool) -> None:
    """Also where predictions vary over devices and one of them does not."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    loss = jax.shard_map(
        lambda *args: jensen_shannon(*args, axis_name="d"),
        mesh=mesh,
        in_specs=(P("d"), P("d"), P()),
        out_specs=P(),
        check_vma=check_vma,
    )
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*LOGITS[:3])
    close(value, 12 * divergences(LOGITS[:3]).mean())
    close(gradients, 12 * slopes(LOGITS[:3]) / N)


def test_the_backward_pass_keeps_the_logits_alone() -> None:
    logits = [jnp.asarray(one, jnp.bfloat16) for one in RANDOM.standard_normal((3, 8, 1000))]
    _, back = jax.vjp(lambda *args: jensen_shannon(*args), *logits)
    kept = [x for x in jax.tree.leaves(back) if x.size >= 1000]
    assert len(kept) == 3 and all(x.dtype == jnp.bfloat16 for x in kept)


def test_under_jit_and_vmap() -> None:
    want = jensen_shannon(*LOGITS[:3], reduction="none")
    np.testing.assert_allclose(jax.jit(lambda *x: jensen_shannon(*x, reduction="none"))(*LOGITS[:3]), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jensen_shannon)(*LOGITS[:3]), want, rtol=1e-6)


def test_exports_for_every_platform() -> None:
    platforms = ("cpu", "cuda", "tpu")
    run = jax.jit(lambda *args: list(jax.grad(lambda args: jensen_shannon(*args))(args)))
    exported = jax.export.export(run, platforms=platforms)(*LOGITS[:3])
    assert exported.platforms == platforms
    close(jax.export.deserialize(exported.serialize()).call(*LOGITS[:3]), 12 * slopes(LOGITS[:3]) / N)


A, E = jnp.ones((3, 4)), jnp.ones((3, 0))
MISFITS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "none": (ValueError, "logits", lambda: jensen_shannon()),
    "one": (ValueError, "logits", lambda: jensen_shannon(A)),
    "integers": (TypeError, "logits[1]", lambda: jensen_shannon(A, A.astype(jnp.int32))),
    "complex": (TypeError, "logits[0]", lambda: jensen_shannon(A.astype(jnp.complex64), A)),
    "list": (TypeError, "logits[2]", lambda: jensen_shannon(A, A, [[1.0] * 4] * 3)),
    "shape": (ValueError, "logits[2]", lambda: jensen_shannon(A, A, A[:2])),
    "broadcasting": (ValueError, "logits[1]", lambda: jensen_shannon(A, A[:1])),
    "numbers": (ValueError, "logits", lambda: jensen_shannon(jnp.float32(1), jnp.float32(1))),
    "no classes": (ValueError, "logits", lambda: jensen_shannon(E, E)),
    "axis": (ValueError, "axis", lambda: jensen_shannon(A, A, axis=2)),
    "axis below": (ValueError, "axis", lambda: jensen_shannon(A, A, axis=-3)),
    "axis of text": (TypeError, "axis", lambda: jensen_shannon(A, A, axis="classes")),  # type: ignore[arg-type]
    "traced axis": (TypeError, "axis", lambda: jax.jit(lambda axis: jensen_shannon(A, A, axis=axis))(1)),
    "no examples": (ValueError, "logits", lambda: jensen_shannon(A[:0], A[:0])),
    "reduction": (ValueError, "reduction", lambda: jensen_shannon(A, A, reduction="batchmean")),
    "negative weight": (ValueError, "weight", lambda: jensen_shannon(A, A, weight=-1.0)),
    "weight of text": (TypeError, "weight", lambda: jensen_shannon(A, A, weight="12")),  # type: ignore[arg-type]
    "weights": (ValueError, "weight", lambda: jensen_shannon(A, A, weight=jnp.ones(3))),
}


@pytest.mark.parametrize("what", MISFITS)
def test_misfits(what: str) -> None:
    kind, argument, call = MISFITS[what]
    with pytest.raises(kind, match=rf"^{re.escape(argument)}: \S") as caught:
        call()
    assert type(caught.value) is kind
