"""A user's own brick: right wherever transformations go, and refused by name when it is written wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradxform as gx

STEPS, DECAY = 6, 0.9
PARAMS = {"b": jnp.ones(3), "w": jnp.ones((2, 3))}
# Small integers: exact in every dtype, and some of them zero.
GRADS = {name: np.random.RandomState(3).randint(-2, 3, (STEPS, *p.shape)) for name, p in PARAMS.items()}


class MeanSignState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]
    mean: Any


@gx.transformation
def scale_by_mean_sign(decay: float = 0.9) -> gx.Leafwise:
    """README's brick, written without any helper."""

    def leaf(correct: Any, g: Any, p: Any, mean: Any) -> Any:
        mean = decay * mean + (1 - decay) * jnp.sign(g)
        return mean * correct, mean

    return gx.Leafwise(leaf, {"mean": gx.Slot()}, lambda count: 1 / (1 - decay**count), MeanSignState)


def oracle(decay: float = DECAY) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The updates of all steps and the last means, in float64."""
    updates, means = {}, {}
    for name, g in GRADS.items():
        mean, seen = np.zeros(g.shape[1:]), []
        for t in range(STEPS):
            mean = decay * mean + (1 - decay) * np.sign(g[t])
            seen.append(mean / (1 - decay ** (t + 1)))
        updates[name], means[name] = np.stack(seen), mean
    return updates, means


def grads_at(t: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {name: jnp.asarray(g[t], dtype) for name, g in GRADS.items()}


def run(tx: Any, params: Any = PARAMS, dtype: Any = jnp.float32, wrap: Callable[[Any], Any] = lambda f: f) -> Any:
    """The updates of all steps, stacked, and the last state."""
    state, update, seen = tx.init(params), wrap(tx.update), []
    for t in range(STEPS):
        updates, state = update(grads_at(t, dtype), state, params)
        seen.append(updates)
    return jax.tree.map(lambda *x: jnp.stack(x), *seen), state


def assert_near(got: Any, wanted: Any, rtol: float = 2e-6) -> None:
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(np.asarray(got[name], np.float64), x, rtol=rtol, atol=rtol / 10, err_msg=name)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_it_is_the_formula(wrap: Any) -> None:
    updates, state = run(scale_by_mean_sign(DECAY), wrap=wrap)
    wanted, means = oracle()
    assert_near(updates, wanted)
    assert_near(state.mean, means)
    assert isinstance(state, MeanSignState) and int(state.count) == STEPS


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_in_a_chain_with_clips(wrap: Any) -> None:
    tx = gx.chain(gx.clip(1.0), scale_by_mean_sign(DECAY), gx.clip_by_global_norm(0.5), gx.scale(-0.1))
    updates, state = run(tx, wrap=wrap)
    wanted, means = oracle()
    norms = np.sqrt(sum((u**2).sum(tuple(range(1, u.ndim))) for u in wanted.values()))
    factor = -0.1 * np.minimum(1, 0.5 / norms)
    assert (norms > 0.5).all()
    assert_near(updates, {name: u * factor.reshape(-1, *[1] * (u.ndim - 1)) for name, u in wanted.items()})
    assert_near(state[1].mean, means)


def test_under_a_mask_it_sees_and_keeps_nothing_of_the_rest() -> None:
    updates, state = run(gx.masked(scale_by_mean_sign(DECAY), gx.path_matches("w")))
    wanted, means = oracle()
    assert_near(updates, {"b": GRADS["b"], "w": wanted["w"]})
    assert isinstance(state.inner_state.mean["b"], optax.MaskedNode)
    assert_near({"w": state.inner_state.mean["w"]}, {"w": means["w"]})


def test_a_population_of_decays_in_one_call() -> None:
    decays = [0.5, 0.9, 0.99]
    population = jax.tree.map(lambda *x: jnp.stack(x), *[scale_by_mean_sign(jnp.float32(d)) for d in decays])
    updates, state = jax.jit(jax.vmap(run))(population)
    for i, decay in enumerate(decays):
        wanted, means = oracle(float(np.float32(decay)))
        assert_near({name: u[i] for name, u in updates.items()}, wanted, rtol=2e-5)
        assert_near({name: u[i] for name, u in state.mean.items()}, means, rtol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("traced", [False, True])
def test_a_narrow_decay_makes_no_narrow_accumulator(dtype: Any, traced: bool) -> None:
    decay = jnp.asarray(0.95, dtype)

    def of(decay: Any) -> Any:
        return run(scale_by_mean_sign(decay))

    updates, state = jax.jit(of)(decay) if traced else of(decay)
    wanted, means = oracle(float(decay))  # the number that the decay is, and no rounding after it
    assert_near(updates, wanted, rtol=1e-5)
    assert_near(state.mean, means, rtol=1e-5)
    assert {x.dtype for x in jax.tree.leaves((updates, state.mean))} == {jnp.dtype(jnp.float32)}


def test_bfloat16_params_are_rounded_once_at_the_end() -> None:
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    updates, state = run(scale_by_mean_sign(DECAY), narrow, jnp.bfloat16)
    exact, _ = run(scale_by_mean_sign(DECAY))
    for name, x in updates.items():
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, exact[name].astype(jnp.bfloat16))
    assert_near(state.mean, oracle()[1])


def test_a_slot_in_bfloat16_is_computed_in_float32() -> None:
    @gx.transformation
    def sum_of_gradients() -> gx.Leafwise:
        def leaf(now: Any, g: Any, p: Any, mean: Any) -> Any:
            assert mean.dtype == g.dtype == jnp.float32
            return mean + g, mean + g

        return gx.Leafwise(leaf, {"mean": gx.Slot(jnp.bfloat16, fill=1.0)}, state=MeanSignState)

    tx, ones = sum_of_gradients(), {"w": jnp.ones(1)}
    updates, state = tx.update({"w": jnp.full(1, 2.0**-10)}, tx.init(ones), ones)
    assert float(updates["w"][0]) == 1 + 2.0**-10  # not rounded on its way out
    assert state.mean["w"].dtype == jnp.bfloat16 and float(state.mean["w"][0]) == 1


def test_it_prints_and_goes_through_a_config() -> None:
    tx = gx.chain(gx.clip(1.0), scale_by_mean_sign(0.95))
    assert repr(tx) == "chain(clip(max_delta=1.0), test_bricks.scale_by_mean_sign(decay=0.95))"
    assert gx.from_config(gx.to_config(tx)) == tx


class Scalars(NamedTuple):
    count: jax.Array  # type: ignore[assignment]
    mean: Any
    total: jax.Array


@gx.transformation
def scale_by_wrong(leaf: Any, at: Any = None) -> gx.Leafwise:
    return gx.Leafwise(leaf, {"mean": gx.Slot()}, at, MeanSignState)


@gx.transformation
def scale_by_total(at: Any) -> gx.Leafwise:
    return gx.Leafwise(lambda now, g, p, mean: (g, mean), {"mean": gx.Slot()}, at, Scalars, scalars={"total": 1.0})


def key_like(g: Any) -> Any:
    return jax.random.split(jax.random.key(0), g.shape)


PAIR = "expected leaf to return (update, mean), got "
WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "a bare array": (lambda now, g, p, mean: g, PAIR + "an array"),
    "a stack": (lambda now, g, p, mean: jnp.stack([g, mean]), PAIR + "an array"),
    "one too many": (lambda now, g, p, mean: (g, mean, mean), PAIR + "3 of them"),
    "one too few": (lambda now, g, p, mean: (g,), PAIR + "1 of them"),
    "nothing": (lambda now, g, p, mean: None, PAIR + "None"),
    "a string": (lambda now, g, p, mean: "gm", PAIR + "a str"),
    "a dict": (lambda now, g, p, mean: {"update": g, "mean": mean}, PAIR + "a dict"),
    "a generator": (lambda now, g, p, mean: (x for x in (g, mean)), PAIR + "a generator"),
    "no update": (lambda now, g, p, mean: (None, mean), "expected leaf to return an array as update, got None"),
    "a string as update": (
        lambda now, g, p, mean: ("g", mean),
        "expected leaf to return an array as update, got a str",
    ),
    "a list as update": (lambda now, g, p, mean: ([g], mean), "expected leaf to return an array as update, got a list"),
    "nothing kept": (lambda now, g, p, mean: (g, None), "expected leaf to return an array as mean, got None"),
    "a slot of another shape": (
        lambda now, g, p, mean: (g, mean.mean()),
        "expected leaf to return mean of shape (3,), got shape ()",
    ),
    "a slot that would broadcast": (
        lambda now, g, p, mean: (g, mean[None]),
        "expected leaf to return mean of shape (3,), got shape (1, 3)",
    ),
    "an update of another shape": (
        lambda now, g, p, mean: (g[:2], mean),
        "expected leaf to return update of shape (3,), got shape (2,)",
    ),
    "an update that would broadcast": (
        lambda now, g, p, mean: (g.mean(), mean),
        "expected leaf to return update of shape (3,), got shape ()",
    ),
    "a number as update": (
        lambda now, g, p, mean: (0.0, mean),
        "expected leaf to return update of shape (3,), got shape ()",
    ),
    "a complex update": (
        lambda now, g, p, mean: (1j * g, mean),
        "expected leaf to return real numbers as update, got complex64",
    ),
    "a complex slot": (
        lambda now, g, p, mean: (g, 1j * mean),
        "expected leaf to return real numbers as mean, got complex64",
    ),
    "keys": (lambda now, g, p, mean: (key_like(g), mean), "expected leaf to return numbers as update, got key<fry>"),
    "too few arguments": (lambda now, g, p: (g,), "expected leaf to take (now, g, p, mean), got (now, g, p)"),
    "too many arguments": (
        lambda now, g, p, mean, nu: (g, mean),
        "expected leaf to take (now, g, p, mean), got (now, g, p, mean, nu)",
    ),
}


def refused(tx: Any, message: str, error: type[Exception] = TypeError) -> None:
    """Both on the first eager step and on the first trace."""
    state = tx.init(PARAMS)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(error, match="^" + re.escape(message) + r"(\n|$)"):
            update(grads_at(0), state, PARAMS)


@pytest.mark.parametrize("how", WRONG)
def test_a_leaf_that_is_wrong_is_refused_by_name(how: str) -> None:
    leaf, message = WRONG[how]
    refused(scale_by_wrong(leaf), f"test_bricks.scale_by_wrong: {message}")


def test_a_brick_deep_in_a_recipe_is_the_one_that_is_named() -> None:
    leaf, message = WRONG["one too few"]
    inner = gx.masked(gx.chain(scale_by_mean_sign(), scale_by_wrong(leaf)), "w")
    refused(gx.chain(gx.clip(1.0), inner, gx.scale(-1.0)), f"test_bricks.scale_by_wrong: {message}")


AT = "expected at to return (now, total), got "
WRONG_AT: dict[str, tuple[Callable[..., Any], str]] = {
    "a bare array": (lambda count, total: total, AT + "an array"),
    "nothing": (lambda count, total: None, AT + "None"),
    "one too many": (lambda count, total: (1, total, total), AT + "3 of them"),
    "a string": (lambda count, total: (1, "total"), "expected at to return an array as total, got a str"),
    "a scalar of another shape": (
        lambda count, total: (1, jnp.ones(2)),
        "expected at to return total of shape (), got shape (2,)",
    ),
    "a complex scalar": (
        lambda count, total: (1, 1j * total),
        "expected at to return real numbers as total, got complex64",
    ),
    "too few arguments": (lambda count: (1, count), "expected at to take (count, total), got (count)"),
}


@pytest.mark.parametrize("how", WRONG_AT)
def test_numbers_of_a_step_that_are_wrong_are_refused_by_name(how: str) -> None:
    at, message = WRONG_AT[how]
    refused(scale_by_total(at), f"test_bricks.scale_by_total: {message}")


def test_an_error_inside_the_leaf_is_the_users_own() -> None:
    @gx.transformation
    def scale_by_string() -> gx.Leafwise:
        return gx.Leafwise(lambda now, g, p: g + "1")

    with pytest.raises(TypeError, match="unsupported operand"):
        scale_by_string().update(grads_at(0), scale_by_string().init(PARAMS), PARAMS)


class Lacking(NamedTuple):
    count: jax.Array  # type: ignore[assignment]


class Beyond(NamedTuple):
    mean: Any
    nu: Any


class Defaulted(NamedTuple):
    mean: Any
    nu: Any = ()


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (Lacking, "'Lacking' with ['count']"),
        (Beyond, "'Beyond' with ['mean', 'nu']"),
        (dict, "'dict' with []"),
        (optax.EmptyState, "'EmptyState' with []"),
    ],
)
def test_a_state_that_does_not_hold_the_slots_is_refused_when_made(state: Any, found: str) -> None:
    @gx.transformation
    def with_state() -> gx.Leafwise:
        return gx.Leafwise(lambda now, g, p, mean: (g, mean), {"mean": gx.Slot()}, state=state)

    with pytest.raises(
        TypeError,
        match=re.escape(f"state: expected a NamedTuple with the fields ['mean'] and maybe 'count', got {found}"),
    ):
        with_state()


def test_a_field_with_a_default_needs_no_slot() -> None:
    assert gx.Leafwise(lambda now, g, p, mean: (g, mean), {"mean": gx.Slot()}, state=Defaulted).init(PARAMS).nu == ()


def test_params_of_integers_are_refused_by_path() -> None:
    tx, params = scale_by_mean_sign(), {"step": jnp.arange(2), "w": jnp.ones(2)}
    for init in (tx.init, jax.jit(tx.init), gx.chain(gx.clip(1.0), tx).init):
        with pytest.raises(
            TypeError,
            match=r"^params: expected a leaf of floating-point or complex numbers at 'step', "
            r"got int32",
        ):
            init(params)
    state = gx.masked(tx, gx.path_matches("w")).init(params)
    assert isinstance(state.inner_state.mean["step"], optax.MaskedNode)


def test_a_complex_leaf_stays_complex() -> None:
    tx, params = scale_by_wrong(lambda now, g, p, mean: (1j * g, mean + g)), {"w": jnp.ones(1, jnp.complex64)}
    updates, state = tx.update({"w": jnp.full(1, 2 + 1j)}, tx.init(params), params)
    assert complex(updates["w"][0]) == -1 + 2j
    assert complex(state.mean["w"][0]) == 2 + 1j


def test_at_sees_the_updates_as_wide_as_leaf_does() -> None:
    def at(updates: Any) -> Any:
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(updates))

    tx = gx.transformation(lambda: gx.Leafwise(lambda now, g, p: g / now, at=at, whole=True))()
    gradients = {"w": jnp.full(3, 300.0, jnp.float16), "b": jnp.zeros(1, jnp.bfloat16)}  # whose squares overflow
    updates, _ = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), 300 / 270_000, rtol=1e-3)
