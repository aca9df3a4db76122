"""stochastic_rounding: bfloat16 params that move as float32 would on average, where plain ones do not move at all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import same_bytes

import gradxform as gx

P = gx.precision
N, STEPS = 2**19, 16
ULP = 2.0**-8
"""Between two bfloat16 below 1."""


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    """Params of 0.75 after each of 16 steps by 0.1 of the distance to the next bfloat16, in such distances."""
    tx = P.stochastic_rounding(gx.sgd(1.0))

    @jax.jit
    def run() -> Any:
        params = {"w": jnp.full(N, 0.75, jnp.bfloat16)}

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update({"w": jnp.full(N, -0.1 * ULP)}, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params["w"].astype(jnp.float32)

        return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[1]

    return (np.asarray(run()) - 0.75) / ULP


def test_the_mean_is_that_of_float32(walk: np.ndarray) -> None:
    off = walk[-1].mean(dtype=np.float64) - 0.1 * STEPS
    assert abs(off) * ULP / 0.75 <= 3e-5  # of the weight
    assert abs(off) < 4 * np.sqrt(STEPS * 0.1 * 0.9 / N)


def test_the_spread_is_binomial(walk: np.ndarray) -> None:
    for steps in (1, 4, STEPS):
        ratio = walk[steps - 1].var() / (steps * 0.1 * 0.9)
        assert abs(ratio - 1) < 5 * np.sqrt(2 / N) + 5 / np.sqrt(N * steps * 0.09)


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_steps_are_not_correlated(walk: np.ndarray, lag: int) -> None:
    up = np.diff(walk, axis=0, prepend=0)
    assert {*np.unique(up)} == {0.0, 1.0}  # each step goes to one of the two neighbours
    z = (up - 0.1) / np.sqrt(0.09)
    assert abs(np.mean(z[lag:] * z[:-lag])) < 4 / np.sqrt(z[lag:].size)


def adam_at_1e_4(tx: Any, dtype: Any) -> Any:
    """How far weights of 1 are after 100 steps of Adam at 1e-4: in float32, 0.01."""
    params = {"w": jnp.ones(4096, dtype)}

    @jax.jit
    def run() -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update({"w": jnp.full(4096, 0.5, dtype)}, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=100)[0]

    params, state = run()
    moved = P.masters(params, state) if isinstance(state, type(P.master_weights(tx).init(params))) else params
    return 1 - np.asarray(moved["w"], np.float64)


def test_plain_bfloat16_under_adam_at_1e_4_does_not_move_and_these_do() -> None:
    assert np.all(adam_at_1e_4(optax.adam(1e-4), jnp.bfloat16) == 0)
    wanted = adam_at_1e_4(gx.adam(1e-4), jnp.float32)
    np.testing.assert_allclose(wanted, 0.01, rtol=1e-3)
    np.testing.assert_allclose(adam_at_1e_4(P.master_weights(optax.adam(1e-4)), jnp.bfloat16), wanted, atol=1e-7)
    moved = adam_at_1e_4(P.stochastic_rounding(gx.adam(1e-4)), jnp.bfloat16)
    assert abs(moved.mean() - 0.01) < 4 * np.sqrt(0.01 * ULP / moved.size)


@pytest.mark.as_in_use
def test_24_bits_move_by_less_than_half_of_their_last() -> None:
    """By 1e-6 a weight of 1 with 16 significant bits, rounded to nearest, would stay where it is."""
    tx = P.master_weights(gx.sgd(1.0), bits=24)
    params, state = P.split({"w": jnp.ones(N)}, tx)
    update = jax.jit(tx.update)
    for _ in range(20):
        updates, state = update({"w": jnp.full(N, -(2.0**-20))}, state, params)
        params = gx.apply_updates(params, updates)
    moved = np.asarray(P.masters(params, state)["w"], np.float64) - 1
    assert abs(moved.mean() - 20 * 2.0**-20) < 4 * np.sqrt(20 * 2.0**-20 * 2.0**-15 / N)


@pytest.mark.as_in_use
def test_seed_and_step_make_the_bits_and_nothing_else_does() -> None:
    params = {"a": jnp.full(256, 0.75, jnp.bfloat16), "b": jnp.full(256, 0.75, jnp.bfloat16), "c": jnp.ones(3)}
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3), params)
    tx = P.stochastic_rounding(gx.sgd(1.0), seed=1)
    first, state = tx.update(grads, tx.init(params), params)
    again, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert same_bytes(first, again)
    assert {str(u.dtype) for u in jax.tree.leaves(first)} == {"float32"}
    np.testing.assert_array_equal(first["c"], np.float32(-1e-3))  # float32 is not rounded
    other, _ = tx.replace(seed=2).update(grads, tx.init(params), params)
    later, _ = tx.update(grads, state, params)
    drawn = [np.asarray(x).tobytes() for x in (first["a"], first["b"], other["a"], later["a"])]
    assert len({*drawn}) == 4


def test_what_is_refused() -> None:
    tx = P.stochastic_rounding(gx.sgd(1.0))
    with pytest.raises(TypeError, match="expected params of bfloat16 or float32, got float16 at 'w'"):
        tx.init({"w": jnp.ones(2, jnp.float16)})
    with pytest.raises(ValueError, match=r"precision.stochastic_rounding: expected params, got None"):
        tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))
