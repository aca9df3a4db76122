"""A value is a pytree of its numbers: through jit without a retrace, over a population, by path."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from value_catalog import CASES, GRADS, MASK, PARAMS, TRANSFORMATIONS, VALUES, WITH_ARRAYS, equal_trees

import gradxform as gx

PYTREES = {name: value for name, value in VALUES.items() if not isinstance(value, gx.Selector | gx.precision.Codec)}


def leaves_by_path(value: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(value)
    }


def numbers_in(value: Any) -> list[Any]:
    """The floats and arrays among the arguments of a call, found without jax."""
    if isinstance(value, gx.Transformation | gx.Schedule | gx.augment.Augmentation):
        return numbers_in(value.arguments)
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, tuple | list) and not hasattr(value, "init"):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, float | complex | jax.Array | np.ndarray) else []


def step(tx: gx.Transformation, updates: Any = GRADS, params: Any = PARAMS) -> Any:
    """One update from a fresh state."""
    return tx.update(updates, tx.init(params), params)


def steps(tx: gx.Transformation, n: int = 3, params: Any = PARAMS) -> Any:
    """A few training steps on a fixed gradient."""
    state = tx.init(params)
    for _ in range(n):
        updates, state = tx.update(GRADS, state, params)
        params = gx.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", [name for name in PYTREES if name not in WITH_ARRAYS])
def test_the_leaves_are_the_numbers(name: str) -> None:
    value = VALUES[name]
    numbers = numbers_in(value)
    assert len(jax.tree.leaves(value)) == len(numbers)
    assert sorted(jax.tree.leaves(value)) == sorted(numbers)
    assert all(isinstance(leaf, float) for leaf in numbers)
    leaves, treedef = jax.tree.flatten(value)
    assert jax.tree.unflatten(treedef, leaves) == value
    assert [leaf for _, leaf in jax.tree_util.tree_leaves_with_path(value)] == leaves
    assert hash(treedef) == hash(jax.tree.structure(jax.tree.map(lambda x: x, value)))


@pytest.mark.parametrize("name", [name for name in CASES if name in PYTREES])
def test_what_fixes_structure_is_static(name: str) -> None:
    case = CASES[name]
    for argument, options in case.arguments.items():
        before, after = (jax.tree.structure(value) for value in (case(), case(**{argument: options.other})))
        if isinstance(options.other, bool | str | int | None):
            assert before != after, argument
        elif isinstance(options.other, float) and isinstance(case().arguments[argument], float):
            assert before == after, argument


def test_bools_strings_ints_dtypes_masks_and_functions_are_static() -> None:
    assert jax.tree.leaves(gx.trace(0.9, nesterov=True, accumulator_dtype="bfloat16")) == [0.9]
    assert jax.tree.leaves(gx.schedules.cosine_restarts(1.0, 10, factor=2)) == [1.0, 0.0, 1.0] or sorted(
        jax.tree.leaves(gx.schedules.cosine_restarts(1.0, 10, factor=2))
    ) == [0.0, 1.0, 1.0]
    assert jax.tree.leaves(gx.freeze(MASK)) == []
    assert jax.tree.leaves(gx.freeze(gx.ndim_at_least(2) & ~gx.path_matches("a"))) == []
    assert jax.tree.leaves(gx.chain(optax.adam(0.1), gx.clip(0.5))) == [0.5]
    assert jax.tree.leaves(gx.scale_by_schedule(lambda step: 0.5)) == []
    assert jax.tree.leaves(gx.masked(gx.scale(0.5), lambda params: True)) == [0.5]
    assert jax.tree.leaves(gx.partition({"a": gx.scale(0.5)}, {"x": "a"})) == [0.5]
    assert jax.tree.leaves(gx.add_noise(0.1, 0.5, key=7)) == [0.1, 0.5]


def test_arrays_are_numbers() -> None:
    key = jax.random.key(0)
    assert jax.tree.leaves(gx.add_noise(0.1, 0.5, key))[-1] is key
    steps_ = jnp.int32(10)
    assert any(leaf is steps_ for leaf in jax.tree.leaves(gx.schedules.cosine(0.1, steps_)))


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (gx.sgd(0.1), ["learning_rate"]),
        (
            gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(0.1, momentum=0.9)),
            ["0/eps", "0/max_norm", "1/learning_rate", "1/momentum"],
        ),
        (
            gx.chain(gx.clip(1.0), gx.chain(gx.scale(0.5), gx.scale(0.25))),
            ["0/max_delta", "1/0/step_size", "1/1/step_size"],
        ),
        (
            gx.sgd(gx.schedules.warmup(5, gx.schedules.cosine(0.1, 20))),
            [
                "learning_rate/init_value",
                "learning_rate/schedule/end_value",
                "learning_rate/schedule/exponent",
                "learning_rate/schedule/init_value",
            ],
        ),
        (gx.masked(gx.scale(0.5), gx.ndim_at_least(2)), ["inner/step_size"]),
        (
            gx.partition({"fast": gx.scale(0.5), "slow": gx.scale(0.25)}, {"x": "fast", "y": "slow"}),
            ["transforms/fast/step_size", "transforms/slow/step_size"],
        ),
        (gx.accumulate(gx.scale(0.5), 2), ["tx/step_size"]),
        (
            gx.schedules.join([gx.schedules.constant(0.1), gx.schedules.linear(0.1, 0.0, 2)], [3]),
            ["schedules/0/value", "schedules/1/end_value", "schedules/1/init_value"],
        ),
    ],
)
def test_paths_can_be_read(value: Any, paths: list[str]) -> None:
    assert sorted(leaves_by_path(value)) == paths
    assert sorted(leaves_by_path({"tx": value})) == [f"tx/{path}" for path in paths]


def test_paths_agree_with_hyperparams() -> None:
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.masked(gx.sgd(0.1, momentum=0.9), gx.ndim_at_least(2)))
    assert set(leaves_by_path(tx)) == set(gx.hyperparams(tx, tx.init(PARAMS)))


def test_tree_map_with_path_sees_each_number_once() -> None:
    tx = gx.chain(gx.clip(1.0), gx.sgd(0.5))
    new = jax.tree_util.tree_map_with_path(lambda path, x: x / 2 if "learning_rate" in str(path) else x, tx)
    assert new == gx.chain(gx.clip(1.0), gx.sgd(0.25))


@pytest.mark.parametrize("name", PYTREES)
def test_tree_map_keeps_the_type(name: str) -> None:
    value = VALUES[name]
    mapped = jax.tree.map(lambda x: x * 1.0, value)
    assert type(mapped) is type(value)
    assert mapped == value
    assert repr(mapped) == repr(value)
    assert jax.tree.map(lambda x: x, [value])[0] == value


@pytest.mark.parametrize(
    "leaf",
    [
        0,
        None,
        True,
        "label",
        np.float32(1),
        np.zeros(3),
        object(),
        jax.ShapeDtypeStruct((), "float32"),
        jax.sharding.PartitionSpec(),
    ],
)
def test_anything_may_stand_where_a_number_stood(leaf: Any) -> None:
    """Axes for vmap, shardings, labels and shapes are trees with the structure of the value."""
    tx = gx.chain(gx.clip(1.0), gx.adamw(gx.schedules.cosine(0.1, 10), mask=gx.ndim_at_least(2)))
    numbers = len(jax.tree.leaves(tx))
    mapped = jax.tree.map(lambda _: leaf, tx)
    is_leaf = lambda x: x is leaf  # noqa: E731
    assert jax.tree.leaves(mapped, is_leaf=is_leaf) == [leaf] * numbers or isinstance(leaf, np.ndarray)
    assert len(jax.tree.leaves(mapped, is_leaf=is_leaf)) == numbers
    assert jax.tree.structure(mapped, is_leaf=is_leaf) == jax.tree.structure(tx)
    assert isinstance(repr(mapped), str)


def test_shapes_of_a_value() -> None:
    tx = gx.sgd(0.1, momentum=0.9)
    shapes = jax.eval_shape(lambda t: t, tx)
    assert jax.tree.structure(shapes) == jax.tree.structure(tx)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(), ()]
    compiled = jax.jit(lambda t: steps(t)[0]).lower(shapes).compile()
    equal_trees(compiled(jax.tree.map(jnp.float32, tx)), steps(tx)[0])


def test_out_axes_and_in_axes_as_trees_of_the_value() -> None:
    tx = gx.sgd(0.1, momentum=0.9)
    axes = tx.replace(momentum=0.9)
    axes = jax.tree.map(lambda x: 0 if x == 0.1 else None, axes)
    rates = jax.tree.map(lambda x: jnp.array([0.1, 0.2]) if x == 0.1 else x, tx)
    new = jax.vmap(lambda t: steps(t)[0], in_axes=(axes,))(rates)
    for i, rate in enumerate((0.1, 0.2)):
        equal_trees(jax.tree.map(lambda x, i=i: x[i], new), steps(gx.sgd(rate, momentum=0.9))[0])


@pytest.mark.parametrize("convert", [np.asarray, np.float32, jnp.float32, jax.device_put, lambda x: np.array(x)])
def test_numbers_of_any_kind_work(convert: Any) -> None:
    """What a checkpoint or a device hands back is a NumPy array."""
    tx = gx.chain(gx.clip(0.5), gx.adamw(gx.schedules.cosine(0.1, 10), weight_decay=0.01))
    back = jax.device_get(jax.tree.map(convert, tx))
    assert jax.tree.structure(back) == jax.tree.structure(tx)
    equal_trees(steps(back)[0], steps(tx)[0])


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_through_jit_as_an_argument(name: str) -> None:
    """The same numbers as closed over, and no second trace for other numbers."""
    tx = TRANSFORMATIONS[name]()
    traces = []

    @jax.jit
    def run(tx: gx.Transformation) -> Any:
        traces.append(tx)
        return step(tx)

    rtol = 1e-4 if "muon" in name else 2e-6  # five steps of Newton-Schulz enlarge a rounding up to 485 times
    equal_trees(run(tx), step(tx), rtol)
    # Every number in it changes, and stays in its range.
    factor = 2.0 if "loss_scale" in name else 0.95  # scales are powers of two
    other = jax.tree.map(lambda x: x * factor, tx)
    equal_trees(run(other), step(other), rtol)
    assert len(traces) == 1
    if jax.tree.leaves(tx):
        assert other != tx


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (gx.sgd(0.1), gx.sgd(0.2)),
        (gx.sgd(0.1), gx.sgd(1)),
        (gx.adam(0.1), gx.adam(0.1, b1=0.5)),
        (gx.adam(0.1), gx.adam(0.1, b2=0.5, eps=1e-4, eps_root=1e-3)),
        (gx.adamw(0.1, weight_decay=0.1), gx.adamw(0.1, weight_decay=0.2)),
        (gx.sgd(gx.schedules.cosine(0.1, 10)), gx.sgd(gx.schedules.cosine(0.2, 10, 0.1))),
        (gx.chain(gx.clip_by_global_norm(1.0), gx.lion(0.1)), gx.chain(gx.clip_by_global_norm(0.1), gx.lion(0.2))),
    ],
)
def test_new_numbers_do_not_retrace(a: gx.Transformation, b: gx.Transformation) -> None:
    traces = []

    @jax.jit
    def run(tx: gx.Transformation, state: Any) -> Any:
        traces.append(1)
        return tx.update(GRADS, state, PARAMS)

    run(a, a.init(PARAMS))
    equal_trees(run(b, b.init(PARAMS)), step(b), 2e-6)
    assert len(traces) == 1


def test_new_structure_does_retrace() -> None:
    traces = []

    @jax.jit
    def run(tx: gx.Transformation) -> Any:
        traces.append(1)
        return step(tx)[0]

    values = [
        gx.sgd(0.1),
        gx.sgd(0.1, momentum=0.9),
        gx.sgd(0.1, momentum=0.9, nesterov=True),
        gx.sgd(gx.schedules.cosine(0.1, 10)),
        gx.sgd(gx.schedules.cosine(0.1, 20)),
    ]
    for tx in values:
        equal_trees(run(tx), step(tx)[0])
    assert len(traces) == len(values)


def test_zero_hyperparameters_as_arguments() -> None:
    """A Python zero takes short cuts that a traced zero cannot; the numbers are the same."""
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    for tx in (
        gx.adam(0.1, eps=0.0),
        gx.adamw(0.1, weight_decay=0.0, eps=0.0),
        gx.rmsprop(0.1, eps=0.0),
        gx.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0),
        gx.adam(0.1, b1=0.0, b2=0.0),
        gx.clip_by_global_norm(0.0),
        gx.lamb(0.1, eps=0.0),
    ):
        for updates in (GRADS, zeros):
            equal_trees(jax.jit(step)(tx, updates), step(tx, updates), 2e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: gx.adamw(rate, weight_decay=0.01),
        lambda rate: gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(gx.schedules.cosine(rate, 10), momentum=0.9)),
        lambda rate: gx.partition({"a": gx.adam(rate), "b": gx.sgd(0.1)}, {"dense": "a", "scale": "b"}),
        lambda rate: gx.accumulate(gx.adafactor(rate, min_dim_size_to_factor=2), 2),
    ],
    ids=["adamw", "chain", "partition", "accumulate"],
)
def test_a_population_in_one_call(make: Any) -> None:
    """vmap over stacked values equals one by one runs."""
    population = [make(rate) for rate in (0.01, 0.03, 0.1)]
    stacked = jax.tree.map(lambda *numbers: jnp.array(numbers), *population)
    assert type(stacked) is gx.Transformation
    one = jax.jit(steps, static_argnums=1)
    together = jax.jit(jax.vmap(lambda tx: steps(tx, 4)))(stacked)
    for i, tx in enumerate(population):
        equal_trees(jax.tree.map(lambda x, i=i: x[i], together), one(tx, 4), 3e-6)
    rates = [float(jnp.abs(together[0]["dense"]["kernel"][i] - PARAMS["dense"]["kernel"]).max()) for i in range(3)]
    assert rates[0] < rates[1] < rates[2]


def test_a_population_of_states_and_params_trains() -> None:
    """Each member keeps its own params and state; a shared number is not stacked."""
    rates = jnp.array([0.01, 0.1])
    tx = gx.adam(rates)
    start = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    member = gx.adam(0.1)
    axes = jax.tree.map(lambda x: 0 if x == 0.1 else None, member)
    state = jax.vmap(lambda t, p: t.init(p), in_axes=(axes, 0))(tx, start)
    updates, state = jax.vmap(lambda t, s, p: t.update(GRADS, s, p), in_axes=(axes, 0, 0))(tx, state, start)
    equal_trees(jax.tree.map(lambda x: x[1], updates), step(member)[0], 2e-6)
    assert state[0].count.tolist() == [1, 1]


def test_scan_and_cond_carry_a_value() -> None:
    tx = gx.sgd(1.0)
    halved, _ = jax.lax.scan(
        lambda t, _: (jax.tree.map(lambda x: x / 2, t), None), jax.tree.map(jnp.float32, tx), None, length=3
    )
    assert halved == gx.sgd(jnp.float32(0.125))
    chosen = jax.jit(lambda flag: jax.lax.cond(flag, lambda: gx.sgd(1.0), lambda: gx.sgd(2.0)))(True)
    assert float(chosen.arguments["learning_rate"]) == 1.0


def test_a_value_comes_out_of_jit() -> None:
    made = jax.jit(lambda rate: gx.chain(gx.clip(1.0), gx.sgd(rate * 2)))(jnp.float32(0.25))
    assert type(made) is gx.Transformation
    assert made == gx.chain(gx.clip(jnp.float32(1.0)), gx.sgd(jnp.float32(0.5))) or (
        float(jax.tree.leaves(made)[1]) == 0.5
    )
    equal_trees(steps(made)[0], steps(gx.chain(gx.clip(1.0), gx.sgd(0.5)))[0])


@pytest.mark.as_in_use
def test_closed_over_numbers_are_exact_constants() -> None:
    """1 - b2 is worked out in Python: 0.001, where float32 has 0.0010000467."""
    tx = gx.scale_by_adam(b1=0.9, b2=0.999)
    one = {"w": jnp.ones(())}
    _, state = jax.jit(lambda g: tx.update(g, tx.init(g)))(one)
    assert state.nu["w"] == np.float32(0.001)
    assert state.mu["w"] == np.float32(0.1)
    assert np.float32(1) - np.float32(0.999) != np.float32(0.001)
    # Nothing of the value is an input of the program.
    closed = jax.make_jaxpr(lambda g: tx.update(g, tx.init(g)))(one)
    assert [const for const in closed.consts if jnp.issubdtype(jnp.result_type(const), jnp.floating)] == []
    argument = jax.make_jaxpr(lambda t, g: t.update(g, t.init(g)))(tx, one)
    assert len(argument.jaxpr.invars) == len(closed.jaxpr.invars) + 4


def test_float64_numbers_keep_every_digit() -> None:
    """As constants, and as arguments where jax has 64-bit types on."""
    with jax.enable_x64(True):
        tx = gx.scale_by_adam(b1=0.9, b2=0.999)
        one = {"w": jnp.ones((), jnp.float64)}
        run = lambda t, g: t.update(g, t.init(g))  # noqa: E731
        for _, state in (jax.jit(lambda g: run(tx, g))(one), jax.jit(run)(tx, one)):
            assert state.nu["w"].dtype == jnp.float64
            np.testing.assert_allclose(state.nu["w"], 1 - 0.999, rtol=1e-15)
            np.testing.assert_allclose(state.mu["w"], 1 - 0.9, rtol=1e-15)


def test_a_schedule_is_a_pytree_too() -> None:
    traces = []

    @jax.jit
    def value(schedule: gx.Schedule, step: Any) -> jax.Array:
        traces.append(1)
        return schedule(step)

    assert value(gx.schedules.linear(1.0, 0.0, 4), 1) == 0.75
    assert value(gx.schedules.linear(2.0, 0.0, 4), 1) == 1.5
    assert len(traces) == 1
    stacked = jax.tree.map(lambda *x: jnp.array(x), gx.schedules.linear(1.0, 0.0, 4), gx.schedules.linear(2.0, 0.0, 4))
    np.testing.assert_allclose(jax.vmap(lambda s: s(1))(stacked), [0.75, 1.5])


def test_no_tracer_stays_behind() -> None:
    """A value used inside a trace still works after it."""
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(0.1, 10)))
    with jax.checking_leaks():
        jax.jit(lambda g: tx.update(g, tx.init(g), PARAMS)[0])(GRADS)
        jax.jit(lambda t: t.update(GRADS, t.init(PARAMS), PARAMS)[0])(tx)
    equal_trees(step(tx), step(tx))
