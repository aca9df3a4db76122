"""The global norm and what the clips make of norms of 0, of inf and of NaN."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

INF, NAN = float("inf"), float("nan")


def true_norm(leaves: list[jax.Array]) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(np.asarray(x, np.complex128)) ** 2) for x in leaves)))


@pytest.mark.parametrize(
    ("dtype", "count", "value"),
    [
        ("bfloat16", 2000, 1.6),
        ("float16", 2000, 1.6),
        ("float16", 3, 3e4),
        ("float16", 50, 1e-4),
        ("float16", 1, 6e-8),
        ("bfloat16", 4, 1e-18),
        ("float32", 2000, 0.1),
    ],
    ids=[
        "2000-bf16-leaves",
        "2000-fp16-leaves",
        "fp16-near-its-limit",
        "fp16-1e-4",
        "fp16-subnormal",
        "bf16-tiny",
        "2000-f32-leaves",
    ],
)
def test_global_norm_of_many_or_extreme_leaves(dtype: str, count: int, value: float) -> None:
    random = np.random.RandomState(0)
    leaves = [jnp.asarray(value * random.uniform(0.5, 1.0, size=3), dtype) for _ in range(count)]
    norm = gx.global_norm(leaves)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(float(norm), true_norm(leaves), rtol=1e-6)


def test_global_norm_of_2000_leaves_of_one_element() -> None:
    # Summed in bfloat16 the squares stop at 1024: 32 instead of 71.6.
    leaves = {f"leaf{i}": jnp.full(1, 1.6, jnp.bfloat16) for i in range(2000)}
    np.testing.assert_allclose(float(gx.global_norm(leaves)), true_norm(list(leaves.values())), rtol=1e-3)
    np.testing.assert_allclose(float(gx.global_norm(leaves)), true_norm(list(leaves.values())), rtol=1e-6)


def test_global_norm_of_one_long_bf16_leaf() -> None:
    leaf = jnp.full(100_000, 0.7, jnp.bfloat16)
    np.testing.assert_allclose(float(gx.global_norm([leaf])), true_norm([leaf]), rtol=1e-5)


def test_global_norm_of_odd_trees() -> None:
    assert float(gx.global_norm({})) == 0
    assert float(gx.global_norm({"a": None, "b": jnp.zeros((0, 3))})) == 0
    np.testing.assert_allclose(gx.global_norm({"z": jnp.array([3 + 4j, 12j])}), 13.0, rtol=1e-6)
    with pytest.raises(TypeError, match="'a/steps'"):
        gx.global_norm({"a": {"steps": jnp.array(3)}})


def test_global_norm_is_float64_for_float64_leaves() -> None:
    with jax.enable_x64(True):
        norm = gx.global_norm([jnp.full(3, 1 / 3), jnp.ones(1, jnp.bfloat16)])
        assert norm.dtype == jnp.float64
        np.testing.assert_allclose(norm, np.sqrt(3 / 9 + 1), rtol=1e-15)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize(
    ("max_norm", "gradient", "wanted"),
    [
        (1.0, [0.0, 0.0], [0.0, 0.0]),
        (0.0, [0.0, 0.0], [0.0, 0.0]),
        (0.0, [3.0, -4.0], [0.0, 0.0]),
        (5.0, [3.0, -4.0], [3.0, -4.0]),
        (10.0, [3.0, -4.0], [3.0, -4.0]),
        (1.0, [3.0, -4.0], [0.6, -0.8]),
        (INF, [3.0, -4.0], [3.0, -4.0]),
        (1.0, [INF, 1.0], [NAN, NAN]),
        (1.0, [-INF, 0.0], [NAN, NAN]),
        (0.0, [INF, 1.0], [NAN, NAN]),
        (INF, [INF, 1.0], [NAN, NAN]),
        (1.0, [NAN, 1.0], [NAN, NAN]),
        (0.0, [NAN, 0.0], [NAN, NAN]),
        (INF, [NAN, 1.0], [NAN, NAN]),
        (1.0, [NAN, INF], [NAN, NAN]),
    ],
)
def test_clip_by_global_norm_of_every_kind_of_norm(
    max_norm: float, gradient: list[float], wanted: list[float], jit: bool
) -> None:
    tx, updates = gx.clip_by_global_norm(max_norm), {"a": jnp.array(gradient[:1]), "b": jnp.array(gradient[1])}
    update = lambda tx, g: tx.update(g, tx.init(g))[0]  # noqa: E731
    got = (jax.jit(update) if jit else update)(tx, updates)  # jitted, max_norm is traced
    np.testing.assert_allclose([float(got["a"][0]), float(got["b"])], wanted, rtol=1e-6)


def test_clip_by_global_norm_does_not_overflow_or_vanish_in_fp16() -> None:
    tx = gx.clip_by_global_norm(1.0)
    large = {"a": jnp.full(4, 6e4, jnp.float16), "b": jnp.full(5, -6e4, jnp.float16)}
    got, _ = tx.update(large, tx.init(large))
    np.testing.assert_allclose(np.asarray(got["a"], np.float64), 1 / 3, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(got["b"], np.float64), -1 / 3, rtol=1e-3)
    small = {"a": jnp.full(9, 1e-4, jnp.float16)}
    got, _ = tx.update(small, tx.init(small))
    np.testing.assert_array_equal(got["a"], small["a"])
    tight = gx.clip_by_global_norm(1e-4)
    got, _ = tight.update(small, tight.init(small))
    np.testing.assert_allclose(np.asarray(got["a"], np.float64), 1e-4 / 3, rtol=2e-3)


def test_clip_by_global_norm_then_adam_on_fp16_learns_from_small_gradients() -> None:
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adam(0.5))
    g = {"a": jnp.full(3, 1e-4, jnp.float16)}
    got, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(np.asarray(got["a"], np.float64), -0.5, rtol=1e-3)


@pytest.mark.parametrize("make", [gx.clip_by_global_norm, gx.clip, gx.clip_by_block_rms, gx.adaptive_grad_clip])
def test_derivatives_of_clips_are_finite_at_zero(make: Callable[..., gx.Transformation]) -> None:
    params = {"w": jnp.ones(3)}

    def total(limit: jax.Array, g: jax.Array) -> jax.Array:
        tx = make(limit)
        return jnp.sum(tx.update({"w": g}, tx.init(params), params)[0]["w"])

    for derivative in jax.grad(total, argnums=(0, 1))(jnp.array(0.5), jnp.zeros(3)):
        assert np.isfinite(derivative).all()


def test_block_rms_and_unit_norms_do_not_overflow_in_fp16() -> None:
    params = {"w": jnp.ones((4, 2), jnp.float16)}
    g = {"w": jnp.full((4, 2), 6e4, jnp.float16)}
    for tx, wanted in [(gx.clip_by_block_rms(2.0), 2.0), (gx.adaptive_grad_clip(0.5), 0.5)]:
        got, _ = tx.update(g, tx.init(params), params)
        np.testing.assert_allclose(np.asarray(got["w"], np.float64), wanted, rtol=1e-3)


def test_adaptive_grad_clip_needs_axes_for_many_dimensions() -> None:
    params = {"w": jnp.ones((2, 1, 2, 1, 2, 2))}
    with pytest.raises(ValueError, match="axis"):
        gx.adaptive_grad_clip(0.1).update(params, gx.adaptive_grad_clip(0.1).init(params), params)
    tx = gx.adaptive_grad_clip(0.1, axis=(0, 2))
    got, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(got["w"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("axis_name", [3, ("x", 0), {"x": "rows"}])
@pytest.mark.parametrize(
    "brick",
    [lambda axis: gx.clip_by_global_norm(1.0, axis_name=axis), lambda axis: gx.record_norms(axis_name=axis)],
    ids=["clip", "record"],
)
def test_an_axis_name_that_names_no_axis(brick: Callable[..., gx.Transformation], axis_name: object) -> None:
    with pytest.raises(TypeError, match="axis_name: expected the name of an axis, a tuple of them, or a dict"):
        brick(axis_name)


def test_record_norms_starts_from_shapes_alone() -> None:
    params = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    assert gx.record_norms().init(params).param_norm.dtype == jnp.float32
