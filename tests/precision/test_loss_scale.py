"""Loss scales: what overflows changes nothing, powers of two change no bit, and float16 trains."""

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
from flax.training import dynamic_scale, train_state
from harness import same_bytes

import gradxform as gx

pytestmark = pytest.mark.as_in_use

X = gx.precision
PARAMS = {"kernel": jnp.cos(jnp.arange(12.0)).reshape(4, 3), "bias": jnp.array([0.5, -0.25, 0.0])}
GRADS = jax.tree.map(lambda p: 0.3 * p - 0.1, PARAMS)
STEPS = 250


def adamw() -> gx.Transformation:
    return gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.linear(0.1, 0.01, STEPS), weight_decay=0.1))


def bad_steps() -> np.ndarray:
    """100 of the steps, at random."""
    bad = np.zeros(STEPS, bool)
    bad[np.random.RandomState(3).permutation(STEPS)[:100]] = True
    return bad


@functools.cache
def trained(tx: gx.Transformation) -> Callable[..., Any]:
    """A run over gradients of the scaled loss: what it ends with, and what each step left bit for bit as it was."""

    @jax.jit
    def run(state: Any, bad: jax.Array, broken: jax.Array) -> Any:
        def step(carry: Any, given: Any) -> Any:
            (params, state), (t, spoil) = carry, given
            scale = X.loss_scale(state)
            grads = jax.tree.map(lambda g, p: (g * jnp.sin(t + 1) + 0.1 * p) * scale, GRADS, params)
            grads["kernel"] = grads["kernel"].at[1, 2].set(jnp.where(spoil, broken, grads["kernel"][1, 2]))
            updates, new = tx.update(grads, state, params)
            moved = gx.apply_updates(params, updates)
            same = functools.reduce(
                jnp.logical_and,
                [
                    jnp.array_equal(a, b)
                    for a, b in zip(
                        jax.tree.leaves((moved, new.inner_state)),
                        jax.tree.leaves((params, state.inner_state)),
                        strict=True,
                    )
                ],
            )
            return (moved, new), (same, new.scale)

        return jax.lax.scan(step, (PARAMS, state), (jnp.arange(bad.size), bad))

    return run


@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
def test_overflow_at_a_hundred_random_steps_keeps_params_and_state_bit_for_bit(broken: float) -> None:
    tx, bad = X.dynamic_loss_scale(adamw(), growth_interval=5), bad_steps()
    (_, state), (same, scales) = trained(tx)(tx.init(PARAMS), bad, broken)
    np.testing.assert_array_equal(same, bad)
    assert int(state.skipped_steps) == 100 and int(state.inner_state[1][-1].count) == STEPS - 100
    scale, good, expected = 2.0**15, 0, []
    for spoil in bad:
        good = 0 if spoil else good + 1
        scale = max(scale / 2, 1.0) if spoil else min(scale * 2, 2.0**24) if good == 5 else scale
        good %= 5
        expected.append(scale)
    np.testing.assert_array_equal(scales, expected)


def test_a_run_goes_on_as_if_nothing_had_overflowed() -> None:
    tx = X.static_loss_scale(adamw(), 2.0**15)
    update = jax.jit(tx.update)
    params, state, alone = PARAMS, tx.init(PARAMS), tx.init(PARAMS)
    for t in range(6):
        grads = jax.tree.map(lambda g, t=t: g * np.float32(np.sin(t + 1) * 2.0**15), GRADS)
        if t % 2:
            spoiled = grads | {"bias": grads["bias"].at[0].set(jnp.inf)}
            updates, state = update(spoiled, state, params)
            assert same_bytes(gx.apply_updates(params, updates), params)
        wanted, alone = update(grads, alone, params)
        updates, state = update(grads, state, params)
        assert same_bytes(updates, wanted) and same_bytes(state.inner_state, alone.inner_state)
        params = gx.apply_updates(params, updates)
    assert int(state.skipped_steps) == 3


def test_float32_training_is_the_same_at_every_scale() -> None:
    tx = X.static_loss_scale(adamw(), 1.0)
    run = trained(tx)
    ends = [
        run(X.static_loss_scale(adamw(), scale).init(PARAMS), np.zeros(STEPS, bool), 0.0)[0]
        for scale in (1.0, 2.0**15, 2.0**24)
    ]
    for params, state in ends[1:]:
        assert same_bytes(params, ends[0][0]) and same_bytes(state.inner_state, ends[0][1].inner_state)
    assert not same_bytes(ends[0][0], PARAMS)


def test_a_bad_micro_batch_is_not_counted() -> None:
    tx = X.dynamic_loss_scale(gx.accumulate(gx.adam(0.1), 3), 8.0)
    update, state, params = jax.jit(tx.update), tx.init(PARAMS), PARAMS
    wanted, alone = PARAMS, gx.accumulate(gx.adam(0.1), 3).init(PARAMS)
    plain = jax.jit(gx.accumulate(gx.adam(0.1), 3).update)
    for t in range(9):
        # The scale changes inside a window.
        scaled = jax.tree.map(lambda g, t=t: g * (t + 1) * X.loss_scale(state), GRADS)
        if t in (1, 2, 5):
            spoiled = scaled | {"bias": scaled["bias"].at[1].set(jnp.nan)}
            updates, after = update(spoiled, state, params)
            assert same_bytes(gx.apply_updates(params, updates), params)
            assert same_bytes(after.inner_state, state.inner_state)
            assert float(after.scale) == float(state.scale) / 2
            state = after
            scaled = jax.tree.map(lambda g, t=t: g * (t + 1) * X.loss_scale(state), GRADS)
        updates, state = update(scaled, state, params)
        params = gx.apply_updates(params, updates)
        u, alone = plain(jax.tree.map(lambda g, t=t: g * np.float32(t + 1), GRADS), alone, wanted)
        wanted = gx.apply_updates(wanted, u)
    assert same_bytes(params, wanted) and int(state.inner_state.count) == 3 and int(state.skipped_steps) == 3


def test_a_float16_net_that_fails_without_trains_with() -> None:
    random = np.random.RandomState(0)
    inputs = jnp.asarray(random.standard_normal((64, 8)), jnp.float32)
    params = {
        "in": jnp.asarray(random.standard_normal((8, 16)) / 3, jnp.float32),
        "out": jnp.asarray(random.standard_normal((16, 1)) / 4, jnp.float32),
    }
    targets = jnp.sin(inputs[:, :1])

    def loss(params: Any) -> jax.Array:
        half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
        out = jnp.tanh(inputs.astype(jnp.float16) @ half["in"]) @ half["out"]
        # As when a small loss is one of many: gradients of 1e-8, below the least number of float16.
        return 2e-7 * jnp.mean((out.astype(jnp.float32) - targets) ** 2)

    @functools.partial(jax.jit, static_argnums=0)
    def train(tx: Any, params: Any, state: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            value, grads = X.value_and_grad(loss, state)(params)
            updates, state = tx.update(grads, state, params)
            return (gx.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), None, 300)

    with_scale = X.dynamic_loss_scale(gx.adam(1e-2, eps=1e-15), 2.0**24, growth_interval=50)
    without = X.static_loss_scale(gx.adam(1e-2, eps=1e-15), 1.0)
    (_, state), values = train(with_scale, params, with_scale.init(params))
    (stuck, _), flat = train(without, params, without.init(params))
    np.testing.assert_array_equal(flat, flat[0])  # no gradient is left of it
    assert same_bytes(stuck, params)
    assert values[-1] < values[0] / 20
    assert int(state.skipped_steps) < 30


def test_the_scale_moves_between_its_bounds() -> None:
    tx = X.dynamic_loss_scale(gx.sgd(0.1), 4.0, growth_interval=2, min_scale=2.0, max_scale=16.0)
    state, seen = tx.init(PARAMS), []
    good, bad = PARAMS, jax.tree.map(lambda p: p * jnp.nan, PARAMS)
    for g in (good, good, good, good, good, good, good, bad, good, bad, bad, bad, good, good):
        _, state = tx.update(g, state)
        seen.append(float(state.scale))
    assert seen == [4, 8, 8, 16, 16, 16, 16, 8, 8, 4, 2, 2, 2, 4]


def test_flax_grows_to_what_is_no_power_of_two_and_ours_does_not() -> None:
    # Its scale once grew to infinity and stayed there; now it ends at the largest float32, and gradients are rounded.
    theirs = dynamic_scale.DynamicScale(growth_interval=1, scale=2.0**120)
    tx = X.dynamic_loss_scale(gx.sgd(0.1), 2.0**120, growth_interval=1, max_scale=2.0**126)
    state, loss = tx.init(jnp.zeros(2)), lambda x: jnp.sum(x) * 1e-30
    for _ in range(24):
        theirs, *_ = theirs.value_and_grad(loss)(jnp.zeros(2))
        _, grads = X.value_and_grad(loss, state)(jnp.zeros(2))
        _, state = tx.update(grads, state)
    assert float(state.scale) == 2.0**126
    assert float(theirs.scale) == np.finfo(np.float32).max


def test_a_loss_of_float16_has_a_scale_of_float32() -> None:
    # A scale kept in the dtype of the loss, as in jmp, is infinite from 2**16 on.
    tx = X.static_loss_scale(gx.sgd(0.1), 2.0**20)
    state = tx.init(jnp.ones(3, jnp.float16))
    assert bool(jnp.isinf(jnp.float32(2.0**20).astype(jnp.float16))) and X.loss_scale(state).dtype == jnp.float32
    value, grads = X.value_and_grad(lambda w: jnp.sum(w * jnp.float16(0.5)).astype(jnp.float32) * 2.0**-10, state)(
        jnp.ones(3, jnp.float16)
    )
    assert float(value) == 1.5 * 2.0**-10 and grads.dtype == jnp.float16
    np.testing.assert_array_equal(np.asarray(grads, np.float32), 512)


@pytest.mark.parametrize("has_aux", [False, True])
def test_value_and_grad_returns_the_true_value(has_aux: bool) -> None:
    state = X.static_loss_scale(gx.sgd(1.0), 64.0).init(2.0)
    loss = lambda w, x, *, power: ((w * x) ** power, "more") if has_aux else (w * x) ** power  # noqa: E731
    result, grad = X.value_and_grad(loss, state, has_aux)(2.0, 3.0, power=2)
    assert (result if has_aux else (result, "more")) == (36.0, "more")
    assert float(grad) == 64 * 36


OUTSIDE: dict[str, Callable[[gx.Transformation], gx.Transformation]] = {
    "chain": lambda tx: gx.chain(tx, gx.identity()),
    "named_chain": lambda tx: gx.named_chain(("tx", tx)),
    "optax": lambda tx: gx.chain(optax.chain(tx, optax.identity())),
    "masked": lambda tx: gx.masked(tx, lambda params: jax.tree.map(lambda _: True, params)),
    "partition": lambda tx: gx.partition({"all": tx}, lambda params: jax.tree.map(lambda _: "all", params)),
    "accumulate": lambda tx: gx.accumulate(tx, 1),
    "skip_nonfinite": lambda tx: gx.skip_nonfinite(tx, 9),
    "selective": lambda tx: gx.selective_transform(tx, freeze_mask=False),
}
INSIDE: dict[str, Callable[[], Any]] = {
    "chain": adamw,
    "optax": lambda: optax.adamw(0.1),
    "masked": lambda: gx.chain(gx.masked(gx.trace(0.9), {"kernel": True, "bias": False}), gx.scale(-0.1)),
    "partition": lambda: gx.partition({"a": gx.adam(0.1), "b": gx.sgd(0.1, 0.9)}, {"kernel": "a", "bias": "b"}),
    "accumulate": lambda: gx.accumulate(gx.adam(0.1), 1),
    "skip_nonfinite": lambda: gx.skip_nonfinite(gx.adam(0.1), 9),
    "recorded": lambda: gx.chain(gx.record_norms(), gx.lamb(0.1)),
    "factored": lambda: gx.adafactor(0.1, min_dim_size_to_factor=2),
}


@pytest.mark.parametrize("name", INSIDE)
def test_whatever_is_inside_keeps_its_state(name: str) -> None:
    inner, scale = INSIDE[name](), 32.0
    tx = X.dynamic_loss_scale(inner, scale)
    plain = jax.jit(lambda g, s, p: optax.with_extra_args_support(inner).update(g, s, p))
    update, scaled = jax.jit(tx.update), jax.tree.map(lambda g: g * scale, GRADS)
    wanted, alone = plain(GRADS, inner.init(PARAMS), PARAMS)
    updates, state = update(scaled, tx.init(PARAMS), PARAMS)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), (updates, state.inner_state), (wanted, alone)
    )
    updates, after = update(scaled | {"bias": scaled["bias"].at[2].set(-jnp.inf)}, state, PARAMS)
    assert same_bytes(gx.apply_updates(PARAMS, updates), PARAMS)
    if name == "skip_nonfinite":  # it counts too
        assert int(after.inner_state.skipped_steps) == 1
        assert same_bytes(after.inner_state.inner_state, state.inner_state.inner_state)
    else:
        assert same_bytes(after.inner_state, state.inner_state)
    assert float(X.loss_scale(after)) == 16


@pytest.mark.parametrize("name", OUTSIDE)
def test_it_is_found_and_works_at_any_depth(name: str) -> None:
    tx = OUTSIDE[name](X.dynamic_loss_scale(gx.sgd(0.5), 32.0))
    state = tx.init(PARAMS)
    updates, state = jax.jit(tx.update)(jax.tree.map(lambda g: 32 * g, GRADS), state, PARAMS)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.5 * g, rtol=1e-6), updates, GRADS)
    updates, state = jax.jit(tx.update)(GRADS | {"bias": GRADS["bias"] + jnp.inf}, state, PARAMS)
    assert float(X.loss_scale(state)) == float(gx.metrics(state)["loss_scale"]) == 16
    assert same_bytes(gx.apply_updates(PARAMS, updates), PARAMS)


def test_a_limit_of_skips_around_a_scale_that_goes_on_falling() -> None:
    tx = gx.skip_nonfinite(X.dynamic_loss_scale(gx.adam(0.1), 8.0), 2)
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    for left in (4.0, 2.0, 1.0):
        _, state = update(jax.tree.map(lambda g: g * jnp.inf, GRADS), state, PARAMS)
        assert float(X.loss_scale(state)) == left
    with pytest.raises(gx.NonfiniteError, match="3 steps in a row"):
        gx.check_finite(state)


def test_a_population_overflows_member_by_member() -> None:
    tx = X.dynamic_loss_scale(gx.adam(0.1), 8.0)
    params = jnp.ones((3, 2))
    grads = jnp.full((3, 2), 8.0).at[1, 0].set(jnp.inf)
    updates, state = jax.jit(jax.vmap(tx.update))(grads, jax.vmap(tx.init)(params), params)
    assert state.scale.tolist() == [8, 4, 8] and state.skipped_steps.tolist() == [0, 1, 0]
    assert state.inner_state[0].count.tolist() == [1, 0, 1]
    np.testing.assert_allclose(updates, [[-0.1] * 2, [0] * 2, [-0.1] * 2], rtol=1e-5)


def test_train_state_and_nnx_optimizer() -> None:
    tx = X.dynamic_loss_scale(gx.sgd(0.5), 8.0)
    trainer = train_state.TrainState.create(apply_fn=lambda: None, params=PARAMS, tx=tx)
    loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)) / 2  # noqa: E731
    value, grads = X.value_and_grad(loss, trainer)(trainer.params)
    assert value == loss(PARAMS)
    trainer = trainer.apply_gradients(grads=grads)
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, 0.5 * old, rtol=1e-6), trainer.params, PARAMS)

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = jnp.array(model.kernel[...])
    scaled = nnx.grad(lambda m: jnp.sum(m.kernel[...] ** 2) / 2 * X.loss_scale(optimizer))(model)
    optimizer.update(model, scaled)
    np.testing.assert_allclose(model.kernel[...], 0.5 * before, rtol=1e-6)
    optimizer.update(model, jax.tree.map(lambda g: g * jnp.nan, scaled))
    np.testing.assert_allclose(model.kernel[...], 0.5 * before, rtol=1e-6)
    assert float(X.loss_scale(optimizer)) == 4 and gx.metrics(optimizer)["skipped_steps"] == 1


D = functools.partial(X.dynamic_loss_scale, gx.sgd(0.1))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: X.static_loss_scale(gx.sgd(0.1), 0.0), ValueError, "scale: .*> 0"),
        (lambda: X.static_loss_scale(gx.sgd(0.1), -2.0), ValueError, "scale: .*> 0"),
        (lambda: X.static_loss_scale(gx.sgd(0.1), float("nan")), ValueError, "scale: .*nan"),
        (lambda: X.static_loss_scale(gx.sgd(0.1), float("inf")), ValueError, "scale: .*inf"),
        (lambda: X.static_loss_scale(gx.sgd(0.1), 1000.0), ValueError, "scale: expected a power of two, by which only"),
        (lambda: X.static_loss_scale(gx.sgd(0.1), jnp.float32(3)), ValueError, "scale: expected a power of two"),
        (lambda: X.static_loss_scale("sgd", 2.0), TypeError, "tx"),
        (lambda: D(3.0), ValueError, "initial: expected a power of two"),
        (lambda: D(2.0**25), ValueError, "initial: .*<= 16777216"),
        (lambda: D(0.5), ValueError, "initial: .*>= 1"),
        (lambda: D(growth_factor=1.0), ValueError, "growth_factor: .*> 1"),
        (lambda: D(growth_factor=3.0), ValueError, "growth_factor: expected a power of two"),
        (lambda: D(backoff_factor=1.0), ValueError, "backoff_factor: .*< 1"),
        (lambda: D(growth_interval=0), ValueError, "growth_interval"),
        (lambda: D(min_scale=0.0), ValueError, "min_scale"),
        (lambda: D(max_scale=2.0**127), ValueError, "max_scale"),
        (lambda: D(axis_name=3), TypeError, "axis_name"),
        (lambda: D().replace(tx=D()).init(PARAMS), ValueError, "dynamic_loss_scale: .*one inside"),
        (
            lambda: X.static_loss_scale(gx.chain(optax.chain(D())), 2.0).init(PARAMS),
            ValueError,
            "static_loss_scale: .*one inside",
        ),
        (lambda: X.loss_scale(gx.chain(D(), D()).init(PARAMS)), ValueError, "with 2"),
        (lambda: X.value_and_grad(jnp.sum, gx.adam(0.1).init(PARAMS)), ValueError, "with 0; wrap"),
    ],
)
def test_bad_input(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_integers_and_none_pass() -> None:
    params = {"w": jnp.ones(2), "n": jnp.arange(2), "x": None}
    inner = gx.chain(
        gx.freeze({"w": False, "n": True, "x": None}), gx.masked(gx.scale(0.5), {"w": True, "n": False, "x": None})
    )
    tx = X.static_loss_scale(inner, 4.0)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], 0.125)
    np.testing.assert_array_equal(updates["n"], 0)
