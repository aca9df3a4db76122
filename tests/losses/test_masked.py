"""Masked losses: values and gradients against float64 formulas, and what must not leak into them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import eight_devices
from hypothesis import given, settings

from gradxform.losses import masked

SHAPE = (3, 5, 7)
BETA, SMOOTHING = 0.6, 0.15
PROGRAM = pathlib.Path(__file__).parent / "masked_sharded_program.py"
PLACES = [f"check_vma={check_vma}, gradients {where}" for check_vma in (True, False) for where in ("inside", "outside")]

Array = np.ndarray


# The losses in float64, with their gradients with regard to the predictions.


def regression(penalty: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Callable[..., tuple[Any, Array]]:
    def oracle(x: Any, y: Any, mask: Any) -> tuple[Any, Array]:
        x, y, mask = (np.asarray(a, np.float64) for a in (x, y, mask))
        total, width = mask.sum(), x.shape[-1]
        if total == 0:
            return 0.0, np.zeros_like(x)
        errors = penalty(x - y).sum(-1) / width
        return (errors * mask).sum() / total, slope(x - y) * mask[..., None] / (width * total)

    return oracle


def cross_entropy(smoothing: float) -> Callable[..., tuple[Any, Array]]:
    def oracle(logits: Any, labels: Any, mask: Any) -> tuple[Any, Array]:
        logits, mask = np.asarray(logits, np.float64), np.asarray(mask, np.float64)
        classes, total = logits.shape[-1], mask.sum()
        if total == 0:
            return 0.0, np.zeros_like(logits)
        log_p = logits - logits.max(-1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
        wanted = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
        errors = -(wanted * log_p).sum(-1)
        return (errors * mask).sum() / total, (np.exp(log_p) - wanted) * mask[..., None] / total

    return oracle


ORACLES = {
    "masked_mse": regression(np.square, lambda d: 2 * d),
    "masked_l1": regression(np.abs, np.sign),
    "masked_smooth_l1": regression(
        lambda d: np.where(np.abs(d) < BETA, d**2 / (2 * BETA), np.abs(d) - BETA / 2),
        lambda d: np.clip(d / BETA, -1, 1),
    ),
    "masked_cross_entropy": cross_entropy(0.0),
    "smoothed": cross_entropy(SMOOTHING),
}
LOSSES: dict[str, Callable[..., Any]] = {
    "masked_mse": masked.masked_mse,
    "masked_l1": masked.masked_l1,
    "masked_smooth_l1": lambda x, y, mask: masked.masked_smooth_l1(x, y, mask, beta=BETA),
    "masked_cross_entropy": masked.masked_cross_entropy,
    "smoothed": lambda x, y, mask: masked.masked_cross_entropy(x, y, mask, label_smoothing=SMOOTHING),
}
COMPILED = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}


def data(name: str, dtype: Any = np.float32, seed: int = 0) -> tuple[Any, Any, Any]:
    random = np.random.RandomState(seed)
    x, y = (jnp.asarray(random.standard_normal(SHAPE), dtype) for _ in range(2))
    if name in ("masked_cross_entropy", "smoothed"):
        y = jnp.asarray(random.randint(0, SHAPE[-1], SHAPE[:-1]), jnp.int32)
    return x, y, jnp.asarray(random.uniform(size=SHAPE[:-1]) < 0.5)


def assert_near(got: Any, want: Any, tolerance: float) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.max(np.abs(want), initial=1e-30))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-3), ("float16", 1e-3)])
def test_values_and_gradients(name: str, dtype: str, tolerance: float) -> None:
    x, y, mask = data(name, dtype)
    loss, gradient = COMPILED[name](x, y, mask)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == x.dtype
    wanted_loss, wanted_gradient = ORACLES[name](x, y, mask)
    assert_near(loss, wanted_loss, 1e-5)
    assert_near(gradient, wanted_gradient, tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_in_float64(name: str) -> None:
    with jax.enable_x64(True):
        x, y, mask = data(name, np.float64)
        loss, gradient = jax.value_and_grad(LOSSES[name])(x, y, mask)
        assert loss.dtype == gradient.dtype == jnp.float64
        for got, want in zip((loss, gradient), ORACLES[name](x, y, mask), strict=True):
            assert_near(got, want, 1e-12)


NUMBERS = hnp.arrays(np.float32, SHAPE, elements=st.floats(-100, 100, width=32))
WEIGHTS = hnp.arrays(np.float32, SHAPE[:-1], elements=st.sampled_from((0.0, 0.25, 1.0, 3.0)))


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(st.sampled_from(sorted(LOSSES)), NUMBERS, NUMBERS, WEIGHTS)
def test_any_numbers_and_weights(name: str, x: Array, y: Array, mask: Array) -> None:
    if name in ("masked_cross_entropy", "smoothed"):
        y = (np.abs(y[..., 0]) % SHAPE[-1]).astype(np.int32)
    loss, gradient = COMPILED[name](x, y, mask)
    wanted_loss, wanted_gradient = ORACLES[name](x, y, mask)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_masks_of_every_kind_agree(name: str) -> None:
    x, y, mask = data(name)
    want = LOSSES[name](x, y, mask)
    for dtype in ("int8", "float32"):
        assert LOSSES[name](x, y, mask.astype(dtype)) == want
    assert LOSSES[name](np.asarray(x), np.asarray(y), np.asarray(mask)) == want


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nothing_leaks_from_what_does_not_count(name: str, dtype: str) -> None:
    x, y, mask = data(name, dtype)
    want = COMPILED[name](x, y, mask)
    bad = jnp.asarray([np.nan, np.inf, -np.inf, jnp.finfo(dtype).max, jnp.finfo(dtype).min, 0, np.nan], dtype)
    x = jnp.where(mask[..., None], x, bad)
    y = jnp.where(mask, y, -100) if y.ndim == 2 else jnp.where(mask[..., None], y, -bad)
    got = COMPILED[name](x, y, mask)
    assert bool(got[0] == want[0])
    assert bool(jnp.all(got[1] == want[1]))
    assert bool(jnp.all(jnp.where(mask[..., None], 0, got[1]) == 0))


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_mask(name: str) -> None:
    x, y, mask = data(name)
    loss, gradient = COMPILED[name](jnp.full_like(x, jnp.nan), y, jnp.zeros_like(mask))
    assert loss == 0
    assert bool(jnp.all(gradient == 0))
    empty = jnp.zeros((0, *SHAPE[1:]))
    assert LOSSES[name](empty, empty if y.ndim == 3 else jnp.zeros((0, 5), jnp.int32), jnp.zeros((0, 5))) == 0


def test_what_counts_is_not_hidden() -> None:
    """A NaN that counts is seen, and so is a label out of range."""
    x, y, mask = data("masked_mse")
    assert jnp.isnan(masked.masked_mse(x.at[0, 0, 0].set(jnp.nan), y, jnp.ones_like(mask)))
    for label in (-1, SHAPE[-1], -100):
        labels = jnp.zeros(SHAPE[:-1], jnp.int32).at[1, 1].set(label)
        assert jnp.isnan(masked.masked_cross_entropy(x, labels, jnp.ones_like(mask)))
        assert jnp.isfinite(masked.masked_cross_entropy(x, labels, labels == 0))


def test_no_gradient_flows_into_the_mask() -> None:
    x, y, mask = data("masked_mse")
    gradient = jax.grad(masked.masked_mse, 2)(x, y, mask.astype(jnp.float32))
    assert bool(jnp.all(gradient == 0))


def test_many_positions_in_low_precision() -> None:
    """A sum in bfloat16 would stop at 256."""
    x = jnp.ones((5000, 2), jnp.bfloat16)
    assert masked.masked_mse(x, jnp.zeros_like(x), jnp.ones(5000, jnp.bfloat16)) == 1
    assert masked.masked_l1(100 * x, jnp.zeros_like(x), jnp.ones(5000, bool)) == 100
    huge = jnp.full((4, 2), 6e4, jnp.float16)
    want = (2 * np.float64(huge[0, 0])) ** 2
    np.testing.assert_allclose(masked.masked_mse(huge, -huge, jnp.ones(4)), want, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_beta(beta: float) -> None:
    x, y, mask = data("masked_smooth_l1")
    y = y.at[0].set(x[0])
    d = np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))
    errors = np.where(d < beta, d**2 / (2 * beta or 1), d - beta / 2).mean(-1)
    want = (errors * np.asarray(mask)).sum() / np.asarray(mask).sum()
    loss, gradients = jax.value_and_grad(lambda x, beta: masked.masked_smooth_l1(x, y, mask, beta=beta), (0, 1))(
        x, jnp.float32(beta)
    )
    assert_near(loss, want, 1e-5)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)
    assert bool(jnp.all(gradients[0][0] == 0))
    if beta == 0:
        assert_near(loss, masked.masked_l1(x, y, mask), 1e-6)


def test_label_smoothing_is_a_number_to_differentiate() -> None:
    x, y, mask = data("smoothed")
    at = lambda s: masked.masked_cross_entropy(x, y, mask, label_smoothing=s)  # noqa: E731
    value, slope = jax.value_and_grad(at)(jnp.float32(SMOOTHING))
    assert_near(value, at(SMOOTHING), 1e-6)
    # It is linear in it.
    assert_near(slope, at(1.0) - at(0.0), 1e-4)


def test_impossible_classes() -> None:
    """Logits of -inf that are not the label's leave loss and gradient finite."""
    logits = jnp.array([[1.0, -jnp.inf, 2.0]])
    loss, gradient = jax.value_and_grad(masked.masked_cross_entropy)(logits, jnp.array([2]), jnp.array([True]))
    assert_near(loss, np.log(1 + np.exp(-1)), 1e-6)
    assert_near(gradient, [[1 / (1 + np.e), 0, -1 / (1 + np.e)]], 1e-6)


def test_narrow_labels_and_many_classes() -> None:
    logits = jax.random.normal(jax.random.key(0), (4, 300))
    labels = jnp.array([0, 1, 100, 127])
    want = masked.masked_cross_entropy(logits, labels, jnp.ones(4))
    for dtype in ("int8", "uint8", "uint32"):
        assert masked.masked_cross_entropy(logits, labels.astype(dtype), jnp.ones(4)) == want


def test_second_derivatives_and_forward_mode() -> None:
    for name in LOSSES:
        x, y, mask = data(name)
        direction = jnp.cos(3 * x)
        _, forward = jax.jvp(lambda x: LOSSES[name](x, y, mask), (x,), (direction,))
        assert_near(forward, jnp.sum(direction * COMPILED[name](x, y, mask)[1]), 1e-4)
    x, y, mask = data("smoothed")
    curvature = jax.jvp(jax.grad(lambda x: LOSSES["smoothed"](x, y, mask)), (x,), (x,))[1]
    p = jax.nn.softmax(x)
    want = p * (x - jnp.sum(p * x, -1, keepdims=True)) * mask[..., None] / mask.sum()
    assert_near(curvature, want, 1e-4)


def test_the_gradient_of_a_cross_entropy_keeps_only_the_logits() -> None:
    x, y, mask = data("smoothed")
    _, back = jax.vjp(lambda x: LOSSES["smoothed"](x, y, mask), x.astype(jnp.bfloat16))
    kept = [leaf for leaf in jax.tree.leaves(back) if getattr(leaf, "shape", None) == SHAPE]
    assert [leaf.dtype for leaf in kept] in ([], [jnp.bfloat16])


def test_vmap() -> None:
    x, y, mask = data("masked_mse")
    got = jax.vmap(masked.masked_mse)(x, y, mask)
    for i in range(SHAPE[0]):
        assert_near(got[i], masked.masked_mse(x[i], y[i], mask[i]), 1e-6)


X, Y, MASK = data("masked_mse")
LABELS = data("smoothed")[1]
BAD: dict[str, tuple[str, type[Exception], Callable[[], Any]]] = {
    "predictions": ("predictions", TypeError, lambda: masked.masked_mse(X.astype(jnp.int32), Y, MASK)),
    "a list": ("predictions", TypeError, lambda: masked.masked_mse([1.0], Y, MASK)),  # type: ignore[arg-type]
    "a scalar": ("predictions", ValueError, lambda: masked.masked_l1(X[0, 0, 0], Y, MASK)),
    "no features": ("predictions", ValueError, lambda: masked.masked_l1(X[..., :0], Y, MASK)),
    "targets": ("targets", ValueError, lambda: masked.masked_mse(X, Y[:, :, :1], MASK)),
    "integer targets": ("targets", TypeError, lambda: masked.masked_l1(X, Y.astype(jnp.int32), MASK)),
    "mask": ("mask", ValueError, lambda: masked.masked_mse(X, Y, MASK[:, :1])),
    "mask with features": ("mask", ValueError, lambda: masked.masked_smooth_l1(X, Y, jnp.ones(SHAPE))),
    "no mask": ("mask", TypeError, lambda: masked.masked_mse(X, Y, None)),  # type: ignore[arg-type]
    "complex mask": ("mask", TypeError, lambda: masked.masked_mse(X, Y, MASK.astype(jnp.complex64))),
    "beta": ("beta", ValueError, lambda: masked.masked_smooth_l1(X, Y, MASK, beta=-1.0)),
    "beta text": ("beta", TypeError, lambda: masked.masked_smooth_l1(X, Y, MASK, beta="1")),  # type: ignore[arg-type]
    "logits": ("logits", TypeError, lambda: masked.masked_cross_entropy(LABELS, LABELS, MASK)),
    "no classes": ("logits", ValueError, lambda: masked.masked_cross_entropy(X[..., :0], LABELS, MASK)),
    "labels": ("labels", ValueError, lambda: masked.masked_cross_entropy(X, LABELS[:2], MASK)),
    "soft labels": ("labels", TypeError, lambda: masked.masked_cross_entropy(X, Y, MASK)),
    "mask of labels": ("mask", ValueError, lambda: masked.masked_cross_entropy(X, LABELS, MASK[:2])),
    "label_smoothing": (
        "label_smoothing",
        ValueError,
        lambda: masked.masked_cross_entropy(X, LABELS, MASK, label_smoothing=1.5),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_name_the_argument(what: str) -> None:
    name, kind, call = BAD[what]
    with pytest.raises(kind, match=rf"^{name}: expected .*got ") as caught:
        call()
    assert type(caught.value) is kind


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with eight devices found."""
    return json.loads(eight_devices(tmp_path_factory, PROGRAM).splitlines()[-1])


@pytest.mark.parametrize(
    "check",
    [
        *PLACES,
        "nothing masked",
        "two axes",
        "vmap",
        "auto mesh",
        "explicit mesh",
        "masks and patches, auto mesh",
        "masks and patches, explicit mesh",
        "masks in shard_map",
    ],
)
def test_all_devices_together_are_as_one(found: dict[str, Any], check: str) -> None:
    assert found["devices"] == 8
    assert found["checks"][check] == []
