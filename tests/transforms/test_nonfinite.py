"""skip_nonfinite: a step with NaN or inf in it changes nothing, is counted, and too many of them are an error."""

from __future__ import annotations

import collections
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import same_bytes

import gradxform as gx

BAD = {"nan": jnp.nan, "inf": jnp.inf, "-inf": -jnp.inf}


@pytest.mark.parametrize(("bad", "jit"), [("nan", True), ("inf", True), ("-inf", True), ("nan", False)])
def test_a_bad_step_changes_neither_params_nor_state(bad: str, jit: bool) -> None:
    rate = gx.schedules.linear(0.1, 0.0, 10)
    inner = gx.chain(gx.clip_by_global_norm(1.0), gx.add_noise(1e-3, 0.5, 0), gx.adamw(rate, weight_decay=0.1))
    tx = gx.skip_nonfinite(inner if jit else gx.sgd(rate, 0.9), 5)
    update = jax.jit(tx.update) if jit else tx.update
    params, gradients = (jax.tree.map(jnp.asarray, tree["encoder"]) for tree in harness.problem())
    state = tx.init(params)
    good = [harness.at_step(gradients, t) for t in range(3)]
    for g in good[:2]:
        updates, state = update(g, state, params)
        params = gx.apply_updates(params, updates)
    broken = good[2] | {"kernel": good[2]["kernel"].at[1, 2].set(BAD[bad])}
    before, kept = params, state
    for n in (1, 2):
        updates, state = update(broken, state, params)
        params = gx.apply_updates(params, updates)
        assert same_bytes(params, before)
        assert same_bytes(state.inner_state, kept.inner_state)
        assert (int(state.consecutive_skips), int(state.skipped_steps)) == (n, n)
        assert not bool(state.too_many)
    updates, after = update(good[2], state, params)
    wanted, _ = update(good[2], kept, before)
    assert same_bytes(updates, wanted)  # the run goes on as if nothing had been
    assert (int(after.consecutive_skips), int(after.skipped_steps)) == (0, 2)


def test_negative_zeros_of_params_survive_a_skipped_step() -> None:
    params = {"w": jnp.array([-0.0, 0.0, 1.0])}
    tx = gx.skip_nonfinite(gx.sgd(1.0), 3)
    updates, _ = tx.update({"w": jnp.full(3, jnp.nan)}, tx.init(params))
    assert same_bytes(gx.apply_updates(params, updates), params)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_an_element_that_becomes_nonfinite_inside_stays_as_it_is(jit: bool) -> None:
    params, g = {"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([1.0, 1e20, 0.5])}
    tx = gx.skip_nonfinite(gx.chain(gx.trace(0.9), gx.scale_by_adam()), 3)  # the second square is infinite
    update = jax.jit(tx.update) if jit else tx.update
    _, state = update({"w": jnp.ones(3)}, tx.init(params), params)
    updates, after = update(g, state, params)
    wanted, free = gx.chain(gx.trace(0.9), gx.scale_by_adam()).update(g, state.inner_state, params)
    assert np.isinf(free[1].nu["w"][1])
    for new, unguarded, old in (
        (updates["w"], wanted["w"], jnp.full(3, -0.0)),
        *(
            (
                after.inner_state[1]._asdict()[name]["w"],
                free[1]._asdict()[name]["w"],
                state.inner_state[1]._asdict()[name]["w"],
            )
            for name in ("mu", "nu")
        ),
        (after.inner_state[0].trace["w"], free[0].trace["w"], state.inner_state[0].trace["w"]),
    ):
        assert same_bytes(new[1], old[1])
        np.testing.assert_allclose(new[::2], unguarded[::2], rtol=1e-6)
    assert int(after.inner_state[1].count) == 2 and int(after.skipped_steps) == 0


def test_what_was_infinite_before_may_stay_so() -> None:
    least = gx.transformation(
        lambda: gx.Leafwise(
            lambda now, g, p, low: (g, jnp.where(g > 0, jnp.minimum(low, g), low)),
            {"low": gx.Slot(fill=jnp.inf)},
            state=collections.namedtuple("Least", "low"),
        )
    )
    tx = gx.skip_nonfinite(least(), 3)
    updates, state = tx.update({"w": jnp.array([1.0, -1.0])}, tx.init({"w": jnp.zeros(2)}))
    np.testing.assert_array_equal(updates["w"], [1, -1])
    np.testing.assert_array_equal(state.inner_state.low["w"], [1, jnp.inf])


def test_a_rate_of_nan_is_no_step() -> None:
    tx = gx.skip_nonfinite(gx.adam(lambda count: jnp.where(count == 1, jnp.nan, 0.1)), 3)
    params, state = {"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)})
    _, state = tx.update(params, state, params)
    updates, after = tx.update(params, state, params)
    assert same_bytes(after.inner_state, state.inner_state) and same_bytes(updates, {"w": jnp.full(2, -0.0)})
    assert int(after.skipped_steps) == 1


def test_control_inside_keeps_its_state() -> None:
    import optax

    inner = gx.chain(gx.record_norms(), gx.accumulate(gx.sgd(0.1, 0.9), 2), optax.scale_by_adam(), gx.ema(0.9))
    tx = gx.skip_nonfinite(inner, 5)
    params = {"w": jnp.ones(2)}
    _, state = tx.update(params, tx.init(params), params)
    _, after = jax.jit(tx.update)({"w": jnp.array([1.0, jnp.inf])}, state, params)
    assert same_bytes(after.inner_state, state.inner_state)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_gradients_whose_updates_are_finite_are_skipped(bad: str, jit: bool) -> None:
    tame = lambda updates, params: jax.tree.map(lambda u: jnp.clip(jnp.nan_to_num(u), -1.0, 1.0), updates)  # noqa: E731
    tx = gx.skip_nonfinite(gx.chain(gx.stateless(tame), gx.sgd(1.0)), 3)
    params = {"w": jnp.array([1.0, 2.0])}
    updates, state = (jax.jit(tx.update) if jit else tx.update)({"w": jnp.array([1.0, BAD[bad]])}, tx.init(params))
    np.testing.assert_array_equal(updates["w"], 0)
    assert int(state.skipped_steps) == 1


@pytest.mark.parametrize("given", ["params", "no params"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_updates_that_overflow_their_dtype_do_not_leave(dtype: str, given: str) -> None:
    tx = gx.skip_nonfinite(gx.scale(1e6 if dtype == "float16" else 3e38), 3)
    gradients = {"w": jnp.array([1.2, 1e-2], dtype), "v": jnp.ones(2)}
    updates, state = tx.update(gradients, tx.init(gradients), None if given == "no params" else gradients)
    assert bool(gx.all_finite(updates))
    assert float(updates["w"][0]) == 0 and float(updates["w"][1]) > 1e3
    assert float(updates["v"][0]) > 9e5
    assert int(state.skipped_steps) == 0  # the gradients are finite


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_both_ways_leave_in_the_dtype_of_the_params(value: float) -> None:
    tx = gx.skip_nonfinite(gx.chain(gx.clip(1.0), gx.sgd(0.5)), 3)
    gradients, params = {"w": jnp.full(2, value, jnp.bfloat16)}, {"w": jnp.ones(2)}
    updates, state = jax.jit(tx.update)(gradients, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_array_equal(updates["w"], -0.5 if value == 1.0 else 0.0)
    assert int(state.skipped_steps) == (0 if value == 1.0 else 1)


def test_updates_of_wide_params_have_the_range_of_the_params() -> None:
    tx = gx.skip_nonfinite(gx.scale(1e6), 3)
    gradients, params = {"w": jnp.full(2, 2.0, jnp.float16)}, {"w": jnp.ones(2)}
    updates, state = tx.update(gradients, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], jnp.full(2, 2e6))
    assert int(state.skipped_steps) == 0


def test_gradients_that_overflow_the_norm_are_skipped() -> None:
    # Each is finite; the square of their norm is not, and the clip turns them into NaN.
    tx = gx.skip_nonfinite(gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(1.0)), 3)
    params = {"w": jnp.ones(2)}
    updates, state = tx.update({"w": jnp.full(2, 3e38)}, tx.init(params))
    np.testing.assert_array_equal(updates["w"], 0)
    assert int(state.skipped_steps) == 1


def nan_steps(tx: gx.Transformation, count: int, jit: bool) -> Any:
    update = jax.jit(tx.update) if jit else tx.update
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(count):
        updates, state = update({"w": jnp.full(2, jnp.nan)}, state)
        jax.block_until_ready(updates)
    jax.effects_barrier()
    return state


def test_too_many_bad_steps_raise_eagerly() -> None:
    tx = gx.skip_nonfinite(gx.sgd(0.1), 2)
    state = nan_steps(tx, 2, jit=False)
    with pytest.raises(gx.NonfiniteError, match="3 steps in a row"):
        tx.update({"w": jnp.full(2, jnp.nan)}, state)
    with pytest.raises(FloatingPointError):
        nan_steps(gx.skip_nonfinite(gx.sgd(0.1), 0), 1, jit=False)


def test_too_many_bad_steps_raise_from_compiled_code_if_asked_to() -> None:
    tx = gx.skip_nonfinite(gx.sgd(0.1), 2, raise_in_jit=True)
    nan_steps(tx, 2, jit=True)
    with pytest.raises(Exception, match="3 steps in a row had NaN or inf"):
        nan_steps(tx, 3, jit=True)


def test_compiled_steps_leave_it_to_the_host() -> None:
    tx = gx.skip_nonfinite(gx.sgd(0.1), 2)
    fine = nan_steps(tx, 2, jit=True)
    gx.check_finite(fine)
    assert gx.metrics(fine)["consecutive_skips"] == 2
    state = nan_steps(tx, 4, jit=True)
    assert bool(state.too_many)
    for tell in (gx.check_finite, gx.metrics):
        with pytest.raises(gx.NonfiniteError, match=r"4 steps in a row .*\(4 in all\)"):
            tell(state)
    assert jax.jit(gx.metrics)(state)["consecutive_skips"] == 4
    assert set(gx.metrics(jax.eval_shape(lambda: state))) == {"consecutive_skips", "skipped_steps"}


def test_a_step_for_several_devices_may_not_raise() -> None:
    params = {"w": jnp.ones(2)}
    for devices, quiet in ((2, False), (1, True)):
        mesh = jax.sharding.AbstractMesh((devices,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        with jax.sharding.use_abstract_mesh(mesh):
            for loud in (False, True):
                tx = gx.skip_nonfinite(gx.sgd(0.1), 2, raise_in_jit=loud)
                trace = lambda tx=tx: jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params))  # noqa: E731
                if quiet or not loud:
                    trace()
                else:
                    with pytest.raises(ValueError, match=r"raise_in_jit: expected False .* on a mesh of 2"):
                        trace()


def population_steps(tx: gx.Transformation, bad: list[list[float]], jit: bool) -> Any:
    """The state of a population of three after some steps, each with the gradient of each member."""
    update = jax.jit(jax.vmap(tx.update)) if jit else jax.vmap(tx.update)
    params = {"w": jnp.ones((3, 2))}
    state = jax.vmap(tx.init)(params)
    for gradients in bad:
        updates, state = update({"w": jnp.ones((3, 2)) * jnp.array(gradients)[:, None]}, state, params)
        jax.block_until_ready(updates)
    jax.effects_barrier()
    return state


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_population_skips_member_by_member(jit: bool) -> None:
    nan = float("nan")
    tx = gx.skip_nonfinite(gx.adam(0.1), max_consecutive=1, raise_in_jit=True)
    state = population_steps(tx, [[1.0, nan, 1.0], [nan, 1.0, 1.0], [1.0, nan, 1.0]], jit)
    assert state.consecutive_skips.tolist() == [0, 1, 0]
    assert state.skipped_steps.tolist() == [1, 2, 0]
    assert state.inner_state[0].count.tolist() == [2, 1, 3]
    gx.check_finite(state)
    with pytest.raises(Exception, match="2 steps in a row had NaN or inf"):
        population_steps(tx, [[1.0, nan, 1.0], [nan, nan, 1.0]], jit)


def test_check_finite_on_a_population() -> None:
    nan = float("nan")
    tx = gx.chain(gx.scale(1.0), gx.skip_nonfinite(gx.sgd(0.1), 1, raise_in_jit=False))
    steps = [[nan, 1.0, 1.0], [1.0, 1.0, 1.0], [nan, 1.0, nan], [1.0, 1.0, nan]]
    gx.check_finite(population_steps(tx, steps[:3], jit=True))
    state = population_steps(tx, steps, jit=True)
    assert state[1].too_many.tolist() == [False, False, True]
    with pytest.raises(gx.NonfiniteError, match=r"member 2: 2 steps in a row .*\(2 in all\)"):
        gx.check_finite(state)


def test_the_count_in_a_row_begins_again_after_a_good_step() -> None:
    tx = gx.skip_nonfinite(gx.sgd(0.1), 2)
    state, params = tx.init({"w": jnp.ones(1)}), {"w": jnp.ones(1)}
    seen = []
    for value in (jnp.nan, jnp.nan, 1.0, jnp.inf, jnp.inf, 1.0):
        _, state = tx.update({"w": jnp.full(1, value)}, state, params)
        seen.append((int(state.consecutive_skips), int(state.skipped_steps)))
    assert seen == [(1, 1), (2, 2), (0, 2), (1, 3), (2, 4), (0, 4)]


def test_check_finite_looks_inside_other_states() -> None:
    inner = gx.skip_nonfinite(gx.sgd(0.1), 0, raise_in_jit=False)
    tx = gx.chain(gx.scale(1.0), gx.masked(gx.accumulate(inner, 1), {"w": True}))
    state = nan_steps(tx, 1, jit=True)
    with pytest.raises(gx.NonfiniteError):
        gx.check_finite(state)
    gx.check_finite(tx.init({"w": jnp.ones(1)}))
    nested = gx.skip_nonfinite(gx.chain(gx.set_to_zero(), inner), 9)
    gx.check_finite(nested.init({"w": jnp.ones(1)}))


def test_the_guard_without_a_callback_exports() -> None:
    tx = gx.skip_nonfinite(gx.adam(0.1), 2, raise_in_jit=False)
    params = {"w": jnp.ones(2)}
    exported = jax.export.export(jax.jit(tx.update), platforms=["cpu", "cuda", "tpu"])(params, tx.init(params), params)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    ("tree", "finite"),
    [
        ({}, True),
        ({"a": None}, True),
        ({"a": jnp.zeros(0)}, True),
        ({"a": 1.0, "b": jnp.ones(2)}, True),
        ({"a": jnp.array([1.0, jnp.inf])}, False),
        ({"a": jnp.array(1 + 1j * jnp.nan)}, False),
        ({"a": jnp.array([6e4], jnp.float16) * 2}, False),
        ({"a": jnp.array([1, 2])}, True),
    ],
)
def test_all_finite(tree: Any, finite: bool) -> None:
    assert bool(gx.all_finite(tree)) is finite


@pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)])
def test_arguments_out_of_range(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_consecutive"):
        gx.skip_nonfinite(gx.sgd(0.1), limit)
