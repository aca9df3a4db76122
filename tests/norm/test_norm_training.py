"""Small models on digits train with these norms as well as with Flax's, from the same start."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from gradxform.norm import nnx as norms

pytestmark = pytest.mark.long

STEPS = 200
BATCH = 64
NAMES = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]

Norm = Callable[..., Any]


class Perceptron(nnx.Module):
    """Dense layers, each followed by a norm."""

    def __init__(self, norm: Norm, rngs: nnx.Rngs) -> None:
        self.dense = nnx.List([nnx.Linear(size, 64, rngs=rngs) for size in (64, 64)])
        self.norms = nnx.List([norm(64, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x.reshape(len(x), -1)
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = nnx.relu(norm(dense(x)))
        return self.head(x)


class Convolutional(nnx.Module):
    """Two convolutions, each followed by a norm."""

    def __init__(self, norm: Norm, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([nnx.Conv(size, 16, (3, 3), strides=2, rngs=rngs) for size in (1, 16)])
        self.norms = nnx.List([norm(16, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(2 * 2 * 16, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.reshape(len(x), -1))


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Train and test images and labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = np.float32(x[order].reshape(-1, 8, 8, 1) / 16), y[order]
    return x[:1347], y[:1347], x[1347:], y[1347:]


def batches(offset: float = 0.0) -> tuple[jax.Array, jax.Array]:
    x, y, _, _ = digits()
    random = np.random.RandomState(1)
    index = np.concatenate([random.permutation(len(x)) for _ in range(-(-STEPS * BATCH // len(x)))])
    index = index[: STEPS * BATCH].reshape(STEPS, BATCH)
    return jnp.asarray(x[index] + offset), jnp.asarray(y[index])


def trained(model: Any, offset: float = 0.0) -> Any:
    """``model`` after Adam on all batches, one ``scan`` of pure steps."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tx = optax.adam(6e-3)

    def loss(params: Any, rest: Any, x: Any, y: Any) -> Any:
        model = nnx.merge(graph, params, rest, copy=True)
        value = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
        return value, nnx.state(model, nnx.Not(nnx.Param))

    def step(carry: Any, batch: Any) -> Any:
        params, rest, state = carry
        gradients, rest = jax.grad(loss, has_aux=True)(params, rest, *batch)
        updates, state = tx.update(gradients, state)
        return (optax.apply_updates(params, updates), rest, state), None

    run = jax.jit(lambda carry, data: jax.lax.scan(step, carry, data)[0])
    params, rest, _ = run((params, rest, tx.init(params)), batches(offset))
    return nnx.merge(graph, params, rest)


def accuracy(model: Any, offset: float = 0.0) -> float:
    """On the test images, with running statistics where there are some."""
    _, _, x, y = digits()
    model.eval()
    return float(np.mean(np.argmax(model(x + offset), -1) == y))


def made_with(library: Any, name: str, **options: Any) -> Norm:
    options |= {"momentum": 0.9} if name.startswith("Batch") else {"num_groups": 4} if name == "GroupNorm" else {}
    return functools.partial(getattr(library, name), **options)


@functools.cache
def flax_accuracy(kind: type[Any], name: str) -> float:
    return accuracy(trained(kind(made_with(nnx, name), nnx.Rngs(0))))


# Statistics of a batch in a convolutional network, all others in a perceptron.
KINDS = [
    pytest.param(kind, name, marks=[] if (kind is Convolutional) == (name == "BatchNorm") else pytest.mark.exhaustive)
    for kind in (Perceptron, Convolutional)
    for name in NAMES
    if not (kind is Perceptron and name == "InstanceNorm")
]  # which has no positions to take statistics of there


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_model_trains_as_it_does_with_flax(kind: type[Any], name: str) -> None:
    model = kind(made_with(norms, name), nnx.Rngs(0))
    theirs = kind(made_with(nnx, name), nnx.Rngs(0))
    start, flax_start = (jax.tree.leaves(nnx.state(m)) for m in (model, theirs))
    assert all(np.array_equal(a, b) for a, b in zip(start, flax_start, strict=True))
    assert accuracy(model) < 0.4
    model.train()
    ours = accuracy(trained(model))
    assert ours > 0.95
    assert ours >= flax_accuracy(kind, name) - 0.01


@pytest.mark.parametrize("kind", [Perceptron, pytest.param(Convolutional, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "options",
    [
        {"bias_corrected": True},
        pytest.param({"update_every": 4}, marks=pytest.mark.exhaustive),
        pytest.param({"running_var": "unbiased"}, marks=pytest.mark.exhaustive),
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_running_statistics_evaluate_as_well(kind: type[Any], options: dict[str, Any]) -> None:
    model = trained(kind(made_with(norms, "BatchNorm", **options), nnx.Rngs(0)))
    assert accuracy(model) >= max(0.95, flax_accuracy(kind, "BatchNorm") - 0.01)


def test_batch_renorm_trains() -> None:
    model = trained(Convolutional(made_with(norms, "BatchRenorm"), nnx.Rngs(0)))
    assert accuracy(model) >= max(0.95, flax_accuracy(Convolutional, "BatchNorm") - 0.01)


def test_images_far_from_zero_train_as_those_near_it() -> None:
    """Brightness that a norm takes away does not matter, even where a mean of squares would lose the variance."""

    class Normalized(nnx.Module):
        def __init__(self, norm: Norm, rngs: nnx.Rngs) -> None:
            self.norm = norm(1, rngs=rngs)
            self.rest = Perceptron(norm, rngs)

        def __call__(self, x: Any) -> Any:
            return self.rest(self.norm(x))

    model = trained(Normalized(made_with(norms, "BatchNorm", bias_corrected=True), nnx.Rngs(0)), 1000.0)
    assert accuracy(model, 1000.0) > 0.95
