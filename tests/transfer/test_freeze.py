"""What is frozen keeps every byte: params and running statistics, under decay, clipping and batch normalization."""

from __future__ import annotations

from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import gradxform as gx
from gradxform.transfer import freeze_modules, keep_frozen

X = np.float32(np.random.RandomState(0).standard_normal((8, 3)) + 2)
TX = gx.chain(gx.clip_by_global_norm(0.5), gx.adamw(0.1, weight_decay=0.3))
DTYPES = [jnp.float32, jnp.bfloat16]


class Part(nnx.Module):
    def __init__(self, norm: Any, dtype: Any, features: int, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(features, 4, param_dtype=dtype, rngs=rngs)
        self.norm = norm(4, momentum=0.5, param_dtype=dtype, use_running_average=False, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.drop(nnx.relu(self.norm(self.linear(x))))


class Model(nnx.Module):
    def __init__(self, norm: Any, dtype: Any) -> None:
        rngs = nnx.Rngs(0)
        self.backbone, self.head = Part(norm, dtype, 3, rngs), Part(norm, dtype, 4, rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.backbone(x))


def snapshot(model: Any, *kinds: Any) -> Any:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, kinds)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [gx.norm.nnx.BatchNorm, nnx.BatchNorm])
def test_a_frozen_part_of_an_nnx_model_keeps_every_byte(norm: Any, dtype: Any) -> None:
    model = Model(norm, dtype)
    model.train()
    trainable = freeze_modules(model, "^backbone/")
    if norm is gx.norm.nnx.BatchNorm:
        model.train()  # which does not thaw it
    optimizer = nnx.Optimizer(model, TX, wrt=trainable)
    before = snapshot(model, nnx.Param, nnx.BatchStat)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        loss = lambda model: jnp.mean(jnp.square(model(X) - 3.0)).astype(jnp.float32)  # noqa: E731
        optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, trainable))(model))

    for _ in range(4):
        step(model, optimizer)
    after = snapshot(model, nnx.Param, nnx.BatchStat)
    assert harness.same_bytes(after["backbone"], before["backbone"])
    for name in ("linear", "norm"):
        for leaf in after["head"][name]:
            assert not harness.same_bytes(after["head"][name][leaf], before["head"][name][leaf]), leaf
    # Nothing is kept for what is frozen: two moments of four params, and two counts.
    assert len(jax.tree.leaves(nnx.to_pure_dict(nnx.state(optimizer)))) == 2 * 4 + 2
    assert not model.backbone.drop.deterministic


def test_without_it_the_statistics_of_flax_would_move() -> None:
    """What the test above rests on: the statistics of this model do move in training, whatever the optimizer."""
    model = Model(nnx.BatchNorm, jnp.float32)
    before = snapshot(model, nnx.BatchStat)
    model(X)
    assert not harness.same_bytes(snapshot(model, nnx.BatchStat)["backbone"], before["backbone"])


class Net(nn.Module):
    norm: Any
    dtype: Any
    frozen: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name, features in (("backbone", 4), ("head", 2)):
            options = {"frozen": name == "backbone"} if self.norm is gx.norm.linen.BatchNorm else {}
            x = nn.Dense(features, param_dtype=self.dtype, name=f"{name}_dense")(x)
            x = self.norm(
                use_running_average=False, momentum=0.5, param_dtype=self.dtype, name=f"{name}_norm", **options
            )(x)
        return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [gx.norm.linen.BatchNorm, nn.BatchNorm])
def test_a_frozen_part_of_a_linen_model_keeps_every_byte(norm: Any, dtype: Any) -> None:
    net = Net(norm, dtype)
    variables = net.init(jax.random.key(0), X)
    tx = gx.selective_transform(TX, freeze_mask=gx.path_matches("^backbone"))
    params, stats, state = variables["params"], variables["batch_stats"], tx.init(variables["params"])

    @jax.jit
    def step(params: Any, stats: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            y, new = net.apply({"params": params, "batch_stats": stats}, X, mutable=["batch_stats"])
            return jnp.mean(jnp.square(y - 3.0)).astype(jnp.float32), new["batch_stats"]

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return gx.apply_updates(params, updates), keep_frozen(stats, new, "^backbone"), state

    start = params, stats
    for _ in range(4):
        params, stats, state = step(params, stats, state)
    for new, old in zip((params, stats), start, strict=True):
        for part in old:
            for leaf in old[part]:
                assert harness.same_bytes(new[part][leaf], old[part][leaf]) == part.startswith("backbone"), leaf


def test_a_frozen_gradient_does_not_count_in_the_clip() -> None:
    """A huge slope of the frozen part: with it in the norm the head would hardly move."""
    tx = gx.selective_transform(gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(1.0)), freeze_mask=gx.path_matches("body"))
    params = {"body": jnp.array([1.0]), "head": jnp.array([1.0])}
    updates, _ = tx.update({"body": jnp.array([1e6]), "head": jnp.array([4.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["head"], [-1.0])


@pytest.mark.parametrize("frozen", ["^a/", gx.path_matches("^a/"), {"a": True, "b": False}])
def test_keep_frozen_takes_any_mask(frozen: Any) -> None:
    old = {"a": {"mean": jnp.array([-0.0]), "var": jnp.array([jnp.nan])}, "b": {"mean": jnp.array([1.0])}}
    new = jax.tree.map(lambda x: x + 1, old)
    kept = keep_frozen(old, new, frozen)
    assert harness.same_bytes(kept["a"], old["a"])
    assert harness.same_bytes(kept["b"], new["b"])


def test_a_filter_is_a_value_that_jit_can_hold() -> None:
    model = Model(nnx.BatchNorm, jnp.float32)
    one, two = (freeze_modules(model, "^backbone/") for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == "Trainable(frozen='^backbone/')"
    assert not one(("head", "norm", "mean"), nnx.BatchStat(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: freeze_modules(model, 3), TypeError, "frozen: expected a regular expression, got 3"),
        (lambda model: freeze_modules(model, "("), ValueError, "frozen: expected a regular expression, got '\\('"),
        (
            lambda model: freeze_modules(model, "stem"),
            ValueError,
            "frozen: expected a regular expression that matches some param, got 'stem' for backbone/linear/bias",
        ),
        (lambda model: keep_frozen({"a": X}, {"b": X}, "a"), ValueError, "do not fit at 'a'"),
        (lambda model: keep_frozen({"a": X}, {"a": X[0]}, "a"), ValueError, "do not fit at 'a'"),
        (lambda model: keep_frozen({"a": X}, {"a": X}, {"a": 1}), TypeError, "frozen: expected a bool at 'a', got 1"),
    ],
)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Model(nnx.BatchNorm, jnp.float32))
