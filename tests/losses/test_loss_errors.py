"""What does not fit is refused, by an error that begins with the name of the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

losses: Any = gx.losses
X = jnp.asarray(np.random.RandomState(0).standard_normal((6, 3)), jnp.float32)
Y = X[::-1]
LABELS = jnp.arange(6) // 2
NAN = float("nan")

Refused = tuple[type[Exception], str, Callable[[], Any]]


def refused(kind: type[Exception], name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=rf"^{re.escape(name)}: \S") as caught:
        call()
    assert type(caught.value) is kind


# Losses of two arrays, with the names of the arrays and of a number above 0 where there is one.
PAIRED: dict[str, tuple[Callable[..., Any], str, str, str | None]] = {
    "nt_xent": (lambda a, b, n=0.5, **options: losses.nt_xent(a, b, n, **options), "z1", "z2", "temperature"),
    "info_nce": (lambda a, b, n=0.5, **options: losses.info_nce(a, b, n, **options), "query", "keys", "temperature"),
    "clip_loss": (lambda a, b, n=2.0, **options: losses.clip_loss(a, b, n, **options), "image", "text", "logit_scale"),
    "siglip": (lambda a, b, n=2.0, **options: losses.siglip(a, b, n, -1.0, **options), "image", "text", "logit_scale"),
    "sup_con": (lambda a, b, n=0.5, **options: losses.sup_con(a, LABELS, n, **options), "z", "", "temperature"),
    "barlow_twins": (losses.barlow_twins, "z1", "z2", None),
    "vicreg": (losses.vicreg, "z1", "z2", None),
    "byol": (losses.byol, "prediction", "target", None),
}
TWO = [name for name in PAIRED if name != "sup_con"]
BAD_ARRAYS: dict[str, tuple[type[Exception], Any]] = {
    "integers": (TypeError, jnp.ones((6, 3), jnp.int32)),
    "booleans": (TypeError, jnp.ones((6, 3), bool)),
    "complex": (TypeError, jnp.ones((6, 3), jnp.complex64)),
    "list": (TypeError, [[1.0, 2.0, 3.0]] * 6),
    "none": (TypeError, None),
    "number": (TypeError, 1.0),
    "rank-1": (ValueError, jnp.ones(6)),
    "rank-3": (ValueError, jnp.ones((2, 3, 3))),
    "no-features": (ValueError, jnp.ones((6, 0))),
    "no-rows": (ValueError, jnp.ones((0, 3))),
}


@pytest.mark.parametrize("bad", BAD_ARRAYS)
@pytest.mark.parametrize("loss", PAIRED)
def test_arrays(loss: str, bad: str) -> None:
    f, first, second, _ = PAIRED[loss]
    kind, array = BAD_ARRAYS[bad]
    refused(kind, first, lambda: f(array, Y))
    if second:
        refused(kind, second, lambda: f(X, array))


@pytest.mark.parametrize("shape", [(5, 3), (6, 4), (1, 3), (6, 1)])
@pytest.mark.parametrize("loss", TWO)
def test_views_of_different_shape(loss: str, shape: tuple[int, int]) -> None:
    f, _, second, _ = PAIRED[loss]
    with pytest.raises(ValueError, match=rf"^{second}: ") as caught:
        f(X, jnp.ones(shape))
    assert (str(shape) in str(caught.value)) and ("(6, 3)" in str(caught.value) or shape[0] == 1)


@pytest.mark.parametrize("loss", ["barlow_twins", "vicreg"])
def test_a_batch_of_one(loss: str) -> None:
    f, first, _, _ = PAIRED[loss]
    refused(ValueError, first, lambda: f(X[:1], Y[:1]))


NUMBERED = [name for name in PAIRED if PAIRED[name][3]]
BAD_NUMBERS: dict[str, tuple[type[Exception], Any]] = {
    "zero": (ValueError, 0),
    "zero-float": (ValueError, 0.0),
    "negative": (ValueError, -1.0),
    "nan": (ValueError, NAN),
    "numpy-zero": (ValueError, np.float32(0)),
    "numpy-negative": (ValueError, np.array(-0.5)),
    "array-zero": (ValueError, jnp.float32(0)),
    "array-nan": (ValueError, jnp.float32(NAN)),
    "none": (TypeError, None),
    "text": (TypeError, "0.5"),
    "truth": (TypeError, True),
    "complex": (TypeError, 1j),
    "array-truth": (TypeError, jnp.array(True)),
    "vector": (ValueError, jnp.ones(1)),
    "matrix": (ValueError, np.ones((6, 6))),
}
BAD_BLOCKS: dict[str, tuple[type[Exception], Any]] = {
    "zero": (ValueError, 0),
    "negative": (ValueError, -8),
    "fraction": (TypeError, 8.0),
    "text": (TypeError, "8"),
    "truth": (TypeError, True),
    "array": (TypeError, jnp.int32(8)),
}


@pytest.mark.parametrize("loss", NUMBERED)
@pytest.mark.parametrize("bad", BAD_NUMBERS)
def test_numbers_above_zero(loss: str, bad: str) -> None:
    f, _, _, number = PAIRED[loss]
    kind, value = BAD_NUMBERS[bad]
    refused(kind, str(number), lambda: f(X, Y, value))


@pytest.mark.parametrize("loss", NUMBERED)
def test_a_traced_number_of_a_wrong_shape(loss: str) -> None:
    f, _, _, number = PAIRED[loss]
    refused(ValueError, str(number), lambda: jax.eval_shape(f, X, Y, jnp.ones(2)))


@pytest.mark.parametrize("loss", NUMBERED)
@pytest.mark.parametrize("bad", BAD_BLOCKS)
def test_block_size(loss: str, bad: str) -> None:
    kind, value = BAD_BLOCKS[bad]
    refused(kind, "block_size", lambda: PAIRED[loss][0](X, Y, block_size=value))


@pytest.mark.parametrize("loss", NUMBERED)
def test_precision(loss: str) -> None:
    for kind, value in ((ValueError, "exact"), (ValueError, "HIGHEST"), (TypeError, None), (TypeError, 2)):
        refused(kind, "precision", lambda value=value: PAIRED[loss][0](X, Y, precision=value))


@pytest.mark.parametrize("loss", ["nt_xent", "info_nce", "clip_loss", "sup_con", "byol"])
@pytest.mark.parametrize("value", ["average", "", None, "Mean", 0])
def test_reduction(loss: str, value: Any) -> None:
    refused(ValueError, "reduction", lambda: PAIRED[loss][0](X, Y, reduction=value))


OTHERS: dict[str, Refused] = {
    "labels-few": (ValueError, "labels", lambda: losses.sup_con(X, LABELS[:5])),
    "labels-many": (ValueError, "labels", lambda: losses.sup_con(X, jnp.arange(7))),
    "labels-one": (ValueError, "labels", lambda: losses.sup_con(X, jnp.int32(1))),
    "labels-rank": (ValueError, "labels", lambda: losses.sup_con(X, LABELS[:, None])),
    "labels-float": (TypeError, "labels", lambda: losses.sup_con(X, LABELS * 1.0)),
    "labels-bool": (TypeError, "labels", lambda: losses.sup_con(X, LABELS > 0)),
    "labels-list": (TypeError, "labels", lambda: losses.sup_con(X, [0, 0, 1, 1, 2, 2])),
    "labels-none": (TypeError, "labels", lambda: losses.sup_con(X, None)),
    "labels-text": (TypeError, "labels", lambda: losses.sup_con(X, np.array(list("aabbcc")))),
    **{
        f"ids-{name}": (ValueError, "ids", lambda f=f: f(X, Y, ids=LABELS[:5]))
        for name, (f, *_) in PAIRED.items()
        if name in ("nt_xent", "info_nce", "clip_loss", "siglip")
    },
    "ids-float": (TypeError, "ids", lambda: losses.nt_xent(X, Y, ids=LABELS * 1.0)),
    "ids-negatives": (ValueError, "ids", lambda: losses.info_nce(X, Y, negatives=X, ids=LABELS)),
    "negatives-features": (ValueError, "negatives", lambda: losses.info_nce(X, Y, negatives=jnp.ones((4, 2)))),
    "negatives-rank": (ValueError, "negatives", lambda: losses.info_nce(X, Y, negatives=jnp.ones(3))),
    "negatives-none": (ValueError, "negatives", lambda: losses.info_nce(X, Y, negatives=jnp.ones((0, 3)))),
    "negatives-integers": (TypeError, "negatives", lambda: losses.info_nce(X, Y, negatives=jnp.ones((4, 3), int))),
    "negatives-queue": (
        TypeError,
        "negatives",
        lambda: losses.info_nce(X, Y, negatives=losses.init_queue(jax.random.key(0), 4, 3)),
    ),
    "bias-nan": (ValueError, "logit_bias", lambda: losses.siglip(X, Y, 1.0, NAN)),
    "bias-text": (TypeError, "logit_bias", lambda: losses.siglip(X, Y, 1.0, "0")),
    "bias-none": (TypeError, "logit_bias", lambda: losses.siglip(X, Y, 1.0, None)),
    "bias-shape": (ValueError, "logit_bias", lambda: losses.siglip(X, Y, 1.0, jnp.zeros(6))),
    "off_diagonal-below": (ValueError, "off_diagonal", lambda: losses.barlow_twins(X, Y, off_diagonal=-1.0)),
    "off_diagonal-nan": (ValueError, "off_diagonal", lambda: losses.barlow_twins(X, Y, off_diagonal=NAN)),
    "off_diagonal-text": (TypeError, "off_diagonal", lambda: losses.barlow_twins(X, Y, off_diagonal="1")),
    "barlow-epsilon": (ValueError, "epsilon", lambda: losses.barlow_twins(X, Y, epsilon=-1e-5)),
    "invariance": (ValueError, "invariance", lambda: losses.vicreg(X, Y, invariance=-1.0)),
    "variance": (ValueError, "variance", lambda: losses.vicreg(X, Y, variance=-1.0)),
    "covariance": (ValueError, "covariance", lambda: losses.vicreg(X, Y, covariance=NAN)),
    "target_std": (ValueError, "target_std", lambda: losses.vicreg(X, Y, target_std=-1.0)),
    "vicreg-positions": (ValueError, "z2", lambda: losses.vicreg(X[:, None], jnp.stack([Y, Y], 1))),
    "vicreg-one-image": (ValueError, "z1", lambda: losses.vicreg(X[None], Y[None])),
    "vicreg-epsilon": (TypeError, "epsilon", lambda: losses.vicreg(X, Y, epsilon=None)),
    "byol-features": (ValueError, "target", lambda: losses.byol(X, X[:, :2])),
    "simsiam-z2": (ValueError, "z2", lambda: losses.simsiam(X, X, X, X[:4])),
    "simsiam-z1": (ValueError, "z1", lambda: losses.simsiam(X, X, X[:4], X)),
    "simsiam-p2": (ValueError, "p2", lambda: losses.simsiam(X, X[:4], X[:4], X)),
    "simsiam-p1": (TypeError, "p1", lambda: losses.simsiam(None, X, X, X)),
    "simsiam-reduction": (ValueError, "reduction", lambda: losses.simsiam(X, X, X, X, reduction="max")),
    "momentum-above": (ValueError, "momentum", lambda: losses.ema_update(X, Y, 1.01)),
    "momentum-below": (ValueError, "momentum", lambda: losses.ema_update(X, Y, -0.01)),
    "momentum-nan": (ValueError, "momentum", lambda: losses.ema_update(X, Y, NAN)),
    "momentum-text": (TypeError, "momentum", lambda: losses.ema_update(X, Y, "0.9")),
    "size-zero": (ValueError, "size", lambda: losses.init_queue(jax.random.key(0), 0, 3)),
    "size-fraction": (TypeError, "size", lambda: losses.init_queue(jax.random.key(0), 4.0, 3)),
    "features-zero": (ValueError, "features", lambda: losses.init_queue(jax.random.key(0), 4, 0)),
    "features-truth": (TypeError, "features", lambda: losses.init_queue(jax.random.key(0), 4, True)),
    "keys-many": (ValueError, "keys", lambda: losses.enqueue(losses.init_queue(jax.random.key(0), 4, 3), X)),
    "keys-features": (ValueError, "keys", lambda: losses.enqueue(losses.init_queue(jax.random.key(0), 8, 2), X)),
    "keys-integers": (
        TypeError,
        "keys",
        lambda: losses.enqueue(losses.init_queue(jax.random.key(0), 8, 3), jnp.ones((2, 3), int)),
    ),
    "keys-rank": (ValueError, "keys", lambda: losses.enqueue(losses.init_queue(jax.random.key(0), 8, 3), jnp.ones(3))),
}


@pytest.mark.parametrize("bad", OTHERS)
def test_refuses(bad: str) -> None:
    refused(*OTHERS[bad])


def test_a_batch_of_one_is_enough_where_nothing_has_to_be_told_apart() -> None:
    one, other = X[:1], Y[:1]
    assert jax.eval_shape(lambda: losses.info_nce(one, other, negatives=X)).shape == ()
    assert jax.eval_shape(lambda: losses.siglip(one, other, 1.0, 0.0)).shape == ()
    assert jax.eval_shape(lambda: losses.byol(one, other)).shape == ()


TREES: dict[str, tuple[Any, Any, str]] = {
    "missing": ({"a": {"w": X, "b": X}}, {"a": {"w": X}}, "a/b"),
    "additional": ({"a": {"w": X}}, {"a": {"w": X, "b": X}}, "a/b"),
    "renamed": ({"a": {"w": X}}, {"a": {"v": X}}, "a/w"),
    "shape": ({"a": {"w": X, "b": X}}, {"a": {"w": X, "b": X[:2]}}, "a/b"),
    "none": ({"a": X, "b": X}, {"a": X, "b": None}, "b"),
    "deeper": ({"a": X}, {"a": {"w": X}}, "a"),
}


@pytest.mark.parametrize("bad", TREES)
def test_trees_that_do_not_match(bad: str) -> None:
    """The error names the first path at which they do not."""
    target, online, path = TREES[bad]
    with pytest.raises(ValueError, match=rf"^online and target do not fit at '{path}'") as caught:
        losses.ema_update(target, online)
    assert type(caught.value) is ValueError


def test_errors_are_the_same_under_jit() -> None:
    refused(ValueError, "z2", lambda: jax.jit(losses.nt_xent)(X, X[:4]))
    refused(ValueError, "labels", lambda: jax.jit(losses.sup_con)(X, LABELS[:4]))
    refused(TypeError, "z1", lambda: jax.jit(losses.barlow_twins)(jnp.ones((4, 2), int), X))
    refused(ValueError, "temperature", lambda: jax.jit(lambda x, y: losses.nt_xent(x, y, -1.0))(X, Y))
