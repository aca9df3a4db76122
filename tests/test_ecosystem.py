"""A transformation goes wherever optax's go (its wrappers, flax, meshes, donation, export), and theirs go into ours."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import harness
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import eight_devices
from flax import nnx
from flax.nnx import pytreelib
from flax.training.train_state import TrainState

import gradxform as gx

PARAMS = {"dense": {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3) / 7, "bias": jnp.array([0.5, -0.25, 0.0])}}
GRADS = jax.tree.map(lambda p: 0.3 * p - 0.1, PARAMS)
MASK = {"dense": {"kernel": True, "bias": False}}
RATE = 0.1

RECIPES: dict[str, gx.Transformation] = {
    "sgd": gx.sgd(RATE, momentum=0.9),
    "rmsprop": gx.rmsprop(RATE, momentum=0.9),
    "adagrad": gx.adagrad(RATE),
    "adam": gx.adam(RATE),
    "adamw": gx.adamw(RATE),
    "nadam": gx.nadam(RATE),
    "nadamw": gx.nadamw(RATE),
    "amsgrad": gx.amsgrad(RATE),
    "radam": gx.radam(RATE),
    "adabelief": gx.adabelief(RATE),
    "yogi": gx.yogi(RATE),
    "lion": gx.lion(RATE),
    "muon": gx.muon(RATE),
    "lars": gx.lars(RATE),
    "lamb": gx.lamb(RATE),
    "adafactor": gx.adafactor(RATE, min_dim_size_to_factor=2),
}
LISTING = gx.chain(
    gx.clip_by_global_norm(1.0),
    gx.record_norms(),
    gx.adamw(gx.schedules.cosine(RATE, 100, 0.01), weight_decay=0.01, mask=gx.ndim_at_least(2)),
)
COMBINED: dict[str, gx.Transformation] = {
    "listing": LISTING,
    "skip": gx.skip_nonfinite(gx.chain(gx.record_norms(), gx.adam(RATE)), 3),
    "accumulate": gx.accumulate(LISTING, 2),
    "selective": gx.selective_transform(gx.adamw(RATE), freeze_mask=gx.path_matches("bias")),
    "partition": gx.partition({"a": gx.adam(RATE), "b": gx.sgd(RATE)}, {"dense": {"kernel": "a", "bias": "b"}}),
    "noise": gx.chain(gx.add_noise(0.1, 0.5, 0), gx.sgd(RATE)),
    "named": gx.named_chain(("clip", gx.clip(1.0)), ("adam", gx.adam(RATE))),
    "with optax": gx.chain(optax.clip(1.0), gx.adam(RATE), optax.ema(0.9)),
}


def equal_trees(a: Any, b: Any, rtol: float = 2e-6) -> None:
    """Asserts that two trees have one structure, the same dtypes and nearly the same numbers."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=rtol)


def train(tx: optax.GradientTransformation, n: int = 3, **extra: Any) -> Any:
    """Params and state after some steps on changing gradients, and every update on the way, in one compiled step."""

    @jax.jit
    def step(params: Any, state: Any, factor: Any) -> Any:
        gradient = jax.tree.map(lambda g: factor * g, GRADS)
        updates, state = tx.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state, updates

    params, state, seen = PARAMS, tx.init(PARAMS), []
    for i in range(n):
        params, state, updates = step(params, state, 1.0 + i)
        seen.append(updates)
    return params, state, seen


def same_run(ours: Any, theirs: Any, n: int = 3) -> None:
    equal_trees(train(ours, n)[0], train(theirs, n)[0])
    equal_trees(train(ours, n)[2], train(theirs, n)[2])


# Ours inside theirs.


def test_every_recipe_is_tried() -> None:
    assert set(RECIPES) == set(harness.RECIPES), "RECIPES above has those of tests/harness.py"


def test_in_optax_chain() -> None:
    same_run(optax.chain(optax.clip(0.1), gx.adam(RATE)), optax.chain(optax.clip(0.1), optax.adam(RATE)))
    same_run(optax.named_chain(("a", gx.clip(0.1)), ("b", gx.sgd(RATE))), gx.chain(gx.clip(0.1), gx.sgd(RATE)))


def test_in_optax_multi_steps() -> None:
    ours, theirs = (optax.MultiSteps(tx, every_k_schedule=2) for tx in (gx.adamw(RATE), optax.adamw(RATE)))
    same_run(ours.gradient_transformation(), theirs.gradient_transformation(), 5)


def test_in_optax_masked() -> None:
    same_run(optax.masked(gx.adam(RATE), MASK), optax.masked(optax.adam(RATE), MASK))


def test_a_selector_as_optaxs_mask() -> None:
    same_run(optax.masked(optax.adam(RATE), gx.ndim_at_least(2)), optax.masked(optax.adam(RATE), MASK))
    same_run(optax.adamw(RATE, mask=gx.path_matches("kernel")), optax.adamw(RATE, mask=MASK))


def test_in_optax_partition() -> None:
    labels = {"dense": {"kernel": "a", "bias": "b"}}
    same_run(
        optax.partition({"a": gx.adam(RATE), "b": gx.sgd(RATE)}, labels),
        optax.partition({"a": optax.adam(RATE), "b": optax.sgd(RATE)}, labels),
    )


@pytest.mark.parametrize("rate", [RATE, gx.schedules.cosine(RATE, 10), optax.cosine_decay_schedule(RATE, 10)])
def test_in_optax_inject_hyperparams(rate: Any) -> None:
    ours = optax.inject_hyperparams(gx.adamw)(learning_rate=rate, weight_decay=0.01)
    theirs = optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=0.01)
    same_run(ours, theirs)
    _, state, _ = train(ours)
    assert "learning_rate" in state.hyperparams
    state.hyperparams["b1"] = jnp.float32(0.5)
    ours.update(GRADS, state, PARAMS)


def rates_and_steps(optimizer: nnx.Optimizer, model: Any, set_rate: Callable[[Any, float], None]) -> tuple[Any, int]:
    """The largest step at each of four rates, and in how many traces they were made."""
    traces, sizes = [], []

    @nnx.jit
    def step(model: Any, optimizer: nnx.Optimizer) -> None:
        traces.append(1)
        optimizer.update(model, nnx.grad(lambda m: m(jnp.ones((1, 2))).sum())(model))

    for rate in (0.1, 0.05, 0.02, 0.01):
        set_rate(optimizer, rate)
        before = np.asarray(model.kernel[...])
        step(model, optimizer)
        sizes.append(float(np.abs(np.asarray(model.kernel[...]) - before).max()))
    return sizes, len(traces)


def test_four_rates_in_one_trace_by_inject_hyperparams() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.inject_hyperparams(gx.adamw)(0.1, weight_decay=0.0), wrt=nnx.Param)

    def set_rate(optimizer: Any, rate: float) -> None:
        optimizer.opt_state.hyperparams["learning_rate"][...] = jnp.float32(rate)

    sizes, traces = rates_and_steps(optimizer, model, set_rate)
    np.testing.assert_allclose(sizes, [0.1, 0.05, 0.02, 0.01], rtol=1e-4)
    assert traces == 1


def test_four_rates_in_one_trace_as_arrays_of_a_transformation_that_nnx_knows_as_data() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = gx.adamw(jnp.float32(0.1), weight_decay=0.0)
    with pytest.raises(ValueError, match="static attribute 'tx'"):
        nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.register_data_type(gx.Transformation)
    try:
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        def set_rate(optimizer: Any, rate: float) -> None:
            optimizer.tx = optimizer.tx.replace(learning_rate=jnp.float32(rate))

        sizes, traces = rates_and_steps(optimizer, model, set_rate)
        np.testing.assert_allclose(sizes, [0.1, 0.05, 0.02, 0.01], rtol=1e-4)
        assert traces == 1
    finally:
        pytreelib.DATA_REGISTRY.discard(gx.Transformation)


def test_inject_hyperparams_is_told_what_has_to_be_known() -> None:
    tx = optax.inject_hyperparams(gx.adafactor)(learning_rate=RATE)
    with pytest.raises(TypeError, match=r"min_dim_size_to_factor: .*static_args='min_dim_size_to_factor'"):
        jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    tx = optax.inject_hyperparams(gx.adafactor, static_args="min_dim_size_to_factor")(
        learning_rate=RATE, min_dim_size_to_factor=2
    )
    same_run(tx, gx.adafactor(RATE, min_dim_size_to_factor=2))


def test_in_optax_inject_hyperparams_with_a_mask() -> None:
    inject = optax.inject_hyperparams(gx.adamw, static_args=("mask",))
    same_run(inject(learning_rate=RATE, mask=gx.ndim_at_least(2)), gx.adamw(RATE, mask=gx.ndim_at_least(2)))


def test_in_optax_apply_if_finite() -> None:
    same_run(optax.apply_if_finite(gx.adam(RATE), 3), optax.apply_if_finite(optax.adam(RATE), 3))
    tx = optax.apply_if_finite(gx.adam(RATE), 3)
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    updates, state = tx.update(bad, tx.init(PARAMS), PARAMS)
    assert all(float(abs(u).sum()) == 0 for u in jax.tree.leaves(updates))
    assert int(state.notfinite_count) == 1


def test_in_optax_lookahead_and_wrappers_of_optimizers() -> None:
    same_run(optax.with_extra_args_support(gx.adam(RATE)), gx.adam(RATE))
    assert optax.with_extra_args_support(gx.adam(RATE)) == gx.adam(RATE)
    same_run(optax.flatten(gx.adam(RATE)), optax.adam(RATE))
    same_run(
        optax.conditionally_transform(gx.adam(RATE), lambda step, **_: True),
        optax.conditionally_transform(optax.adam(RATE), lambda step, **_: True),
    )


@pytest.mark.parametrize("name", [*RECIPES, *COMBINED])
def test_tree_map_params(name: str) -> None:
    """optax tells the parts of a state that look like params from those that do not."""
    tx = (RECIPES | COMBINED)[name]
    state = tx.init(PARAMS)
    marked = optax.tree_utils.tree_map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    shapes = {leaf.shape for leaf in jax.tree.leaves(PARAMS)}
    # Adafactor's rows and columns stand where the params stand but have shapes of their own.
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True):
        if not jnp.issubdtype(before.dtype, jnp.floating):
            assert before is after
        elif before.shape in shapes:
            assert float((after - before).min()) == pytest.approx(1)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape in shapes]
    assert len(moments) > 0 or name == "noise"


def test_tree_get_and_set() -> None:
    """optax finds a field of a state by its name."""
    tx = gx.chain(gx.clip(1.0), gx.adam(RATE))
    state = tx.init(PARAMS)
    assert int(optax.tree_utils.tree_get(state, "count")) == 0
    equal_trees(optax.tree_utils.tree_get(state, "mu"), jax.tree.map(jnp.zeros_like, PARAMS))
    assert int(optax.tree_utils.tree_get(optax.tree_utils.tree_set(state, count=jnp.int32(5)), "count")) == 5


# Theirs inside ours.


def reads_value(factor: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates by an argument that only the caller of ``update`` has."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
        return jax.tree.map(lambda u: factor * value * u, updates), (state[0] + 1, jnp.float32(value))

    return optax.GradientTransformationExtraArgs(lambda params: (0, jnp.float32(0)), update)


def test_their_parts_in_our_chain() -> None:
    same_run(
        gx.chain(optax.clip_by_global_norm(0.1), gx.scale_by_adam(), optax.scale(-RATE)),
        optax.chain(optax.clip_by_global_norm(0.1), optax.scale_by_adam(), optax.scale(-RATE)),
    )
    same_run(gx.chain(optax.adamw(RATE)), optax.chain(optax.adamw(RATE)))
    same_run(gx.named_chain(("a", optax.adam(RATE)), ("b", gx.scale(0.5))), gx.chain(gx.adam(RATE), optax.scale(0.5)))


@pytest.mark.parametrize(
    "theirs",
    [
        optax.sgd(RATE, momentum=0.9),
        optax.adamw(RATE),
        optax.adafactor(RATE, min_dim_size_to_factor=2),
        optax.lion(RATE),
        optax.noisy_sgd(RATE, key=0),
        optax.contrib.prodigy(),
        optax.contrib.schedule_free_sgd(RATE),
        optax.contrib.mechanize(optax.sgd(RATE)),
        optax.MultiSteps(optax.adam(RATE), 2).gradient_transformation(),
        optax.masked(optax.adam(RATE), MASK),
        optax.apply_if_finite(optax.adam(RATE), 3),
        optax.polyak_sgd(),
    ],
    ids=[
        "sgd",
        "adamw",
        "adafactor",
        "lion",
        "noisy_sgd",
        "prodigy",
        "schedule_free",
        "mechanize",
        "multi_steps",
        "masked",
        "apply_if_finite",
        "polyak",
    ],
)
def test_any_of_theirs_runs_in_our_chain(theirs: Any) -> None:
    extra = {"value": jnp.float32(0.5)}
    ours = gx.chain(gx.clip(100.0), theirs, gx.scale(1.0))
    equal_trees(train(ours, **extra)[0], train(optax.chain(theirs), **extra)[0])
    assert ours == gx.chain(gx.clip(100.0), theirs, gx.scale(1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda tx: gx.chain(tx),
        lambda tx: gx.chain(gx.clip(100.0), gx.chain(tx)),
        lambda tx: gx.masked(tx, True),
        lambda tx: gx.selective_transform(tx, freeze_mask=False),
        lambda tx: gx.accumulate(tx, 1),
        lambda tx: gx.skip_nonfinite(tx, 3),
        lambda tx: gx.partition({"a": tx}, "a"),
        lambda tx: gx.named_chain(("only", tx)),
        lambda tx: optax.chain(gx.chain(tx)),
    ],
    ids=["chain", "nested", "masked", "selective", "accumulate", "skip", "partition", "named", "optax"],
)
def test_extra_arguments_are_passed_through(make: Any) -> None:
    tx = make(reads_value(2.0))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=3.0, unknown="ignored")
    equal_trees(updates, jax.tree.map(lambda g: 6 * g, GRADS))
    # One that does not ask for the argument is not handed it.
    gx.chain(optax.GradientTransformation(*optax.adam(RATE)), gx.adam(RATE)).update(
        GRADS, gx.chain(optax.adam(RATE), gx.adam(RATE)).init(PARAMS), PARAMS, value=3.0
    )


@pytest.mark.parametrize(
    "theirs",
    [optax.adam(RATE), optax.trace(0.9), optax.ema(0.9), optax.scale_by_rms()],
    ids=["adam", "trace", "ema", "rms"],
)
@pytest.mark.parametrize(("dtype", "given"), [(jnp.bfloat16, True), (jnp.bfloat16, False), (jnp.float16, True)])
def test_their_state_keeps_its_dtypes_with_narrow_params(theirs: Any, dtype: Any, given: bool) -> None:
    """With the params given or not: without them, theirs would see the float32 that our clip computes in."""
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = gx.chain(gx.clip_by_global_norm(1.0), theirs, gx.scale(0.5))
    state = tx.init(params)
    traces = []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(params, state, params if given else None)
        return gx.apply_updates(params, updates), state, updates

    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    for _ in range(3):
        params, state, updates = step(params, state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == kinds
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert len(traces) == 1


def test_their_schedules_and_masks() -> None:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, 2, 10)
    same_run(gx.adamw(rate, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)), optax.adamw(rate, mask=MASK))
    same_run(gx.sgd(gx.schedules.warmup(2, rate)), gx.sgd(gx.schedules.join([lambda t: 0.0, rate], [2])))
    same_run(optax.sgd(gx.schedules.cosine(RATE, 10)), gx.sgd(optax.cosine_decay_schedule(RATE, 10)))


def test_apply_updates_of_either() -> None:
    updates, _ = gx.adam(RATE).update(GRADS, gx.adam(RATE).init(PARAMS), PARAMS)
    equal_trees(gx.apply_updates(PARAMS, updates), optax.apply_updates(PARAMS, updates))


# Checkpoints.


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (gx.adamw(RATE), optax.adamw(RATE)),
        (gx.adamw(RATE, mask=MASK), optax.adamw(RATE, mask=MASK)),
        (gx.adamw(gx.schedules.cosine(RATE, 10)), optax.adamw(optax.cosine_decay_schedule(RATE, 10))),
        (gx.adam(RATE), optax.adam(RATE)),
        (gx.sgd(RATE, momentum=0.9), optax.sgd(RATE, momentum=0.9)),
        (gx.lion(RATE), optax.lion(RATE)),
        (
            gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(RATE)),
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE)),
        ),
    ],
    ids=["adamw", "adamw-mask", "adamw-schedule", "adam", "sgd", "lion", "chain"],
)
def test_a_checkpoint_of_one_goes_on_with_the_other(ours: Any, theirs: Any) -> None:
    a, b = train(ours)[1], train(theirs)[1]
    equal_trees(a, b)
    for first, second in ((ours, theirs), (theirs, ours)):
        updates, state = first.update(GRADS, train(second)[1], PARAMS)
        expected = first.update(GRADS, train(first)[1], PARAMS)
        equal_trees(updates, expected[0])
        equal_trees(state, expected[1])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (gx.scale_by_adam(), optax.scale_by_adam()),
        (gx.scale_by_amsgrad(), optax.scale_by_amsgrad()),
        (gx.scale_by_lion(), optax.scale_by_lion()),
        (gx.scale_by_rms(), optax.scale_by_rms()),
        (gx.scale_by_rss(), optax.scale_by_rss()),
        (gx.scale_by_stddev(), optax.scale_by_stddev()),
        (gx.scale_by_belief(), optax.scale_by_belief()),
        (gx.scale_by_yogi(), optax.scale_by_yogi()),
        (gx.scale_by_radam(), optax.scale_by_radam()),
        (gx.trace(0.9), optax.trace(0.9)),
        (gx.ema(0.9), optax.ema(0.9)),
        (gx.scale_by_factored_rms(min_dim_size_to_factor=2), optax.scale_by_factored_rms(min_dim_size_to_factor=2)),
        (gx.scale(0.5), optax.scale(0.5)),
        (gx.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)),
        (gx.scale_by_schedule(gx.schedules.constant(0.5)), optax.scale_by_schedule(optax.constant_schedule(0.5))),
        (gx.masked(gx.trace(0.9), MASK), optax.masked(optax.trace(0.9), MASK)),
        (
            gx.partition({"a": gx.trace(0.9), "b": gx.scale(1.0)}, {"dense": {"kernel": "a", "bias": "b"}}),
            optax.partition({"a": optax.trace(0.9), "b": optax.scale(1.0)}, {"dense": {"kernel": "a", "bias": "b"}}),
        ),
    ],
    ids=lambda tx: tx.name if isinstance(tx, gx.Transformation) else "",
)
def test_states_are_optaxs(ours: Any, theirs: Any) -> None:
    a, b = ours.init(PARAMS), theirs.init(PARAMS)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    equal_trees(a, b)


# flax.


def linen_step(model: nn.Module, traces: list[int]) -> Callable[[TrainState, jax.Array], TrainState]:
    @jax.jit
    def step(state: TrainState, x: jax.Array) -> TrainState:
        traces.append(1)
        gradient = jax.grad(lambda p: jnp.sum((state.apply_fn({"params": p}, x) - 1.0) ** 2))(state.params)
        return state.apply_gradients(grads=gradient)

    return step


def test_in_a_flax_train_state() -> None:
    """An equal transformation made again is the same to jit: nothing is traced twice."""
    model, x, traces = nn.Dense(3), jnp.ones((4, 2)), []
    params = model.init(jax.random.key(0), x)["params"]
    step = linen_step(model, traces)

    def run(tx: optax.GradientTransformation) -> TrainState:
        state = TrainState.create(apply_fn=apply, params=params, tx=tx)
        for _ in range(3):
            state = step(state, x)
        return state

    apply = model.apply

    def make(rate: Any) -> gx.Transformation:
        return gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(rate, 10), mask=gx.ndim_at_least(2)))

    ours = run(make(RATE))
    assert len(traces) == 1
    equal_trees(run(make(RATE)).params, ours.params)
    assert len(traces) == 1
    # Another value is another program: a transformation in a train state is a constant.
    run(make(2 * RATE))
    assert len(traces) == 2
    theirs = run(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(optax.cosine_decay_schedule(RATE, 10), mask={"kernel": True, "bias": False}),
        )
    )
    equal_trees(ours.params, theirs.params)
    assert int(ours.step) == 3


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.last = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jax.nn.relu(self.norm(self.first(x))))


def nnx_run(tx: optax.GradientTransformation, n: int = 4) -> tuple[list[float], Any, int]:
    model, x, traces = Model(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (8, 2)), []
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer) -> jax.Array:
        traces.append(1)
        loss, gradient = nnx.value_and_grad(lambda m: jnp.mean((m(x) - x.sum(1, keepdims=True)) ** 2))(model)
        optimizer.update(model, gradient)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(n)]
    return losses, nnx.to_pure_dict(nnx.state(model, nnx.Param)), len(traces)


def test_in_an_nnx_optimizer() -> None:
    losses, params, traces = nnx_run(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.05)), 6)
    assert traces == 1
    assert losses == sorted(losses, reverse=True)
    theirs = nnx_run(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05)), 6)
    np.testing.assert_allclose(losses, theirs[0], rtol=1e-5)
    equal_trees(params, theirs[1], 1e-5)


def test_selectors_and_combinators_in_an_nnx_optimizer() -> None:
    tx = gx.skip_nonfinite(
        gx.accumulate(
            gx.selective_transform(
                gx.adamw(gx.schedules.cosine(0.05, 100), mask=gx.path_matches("kernel$")),
                freeze_mask=gx.path_matches("^norm/") | gx.path_matches("bias$"),
            ),
            2,
        ),
        3,
    )
    losses, params, traces = nnx_run(tx)
    start = nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(0)), nnx.Param))
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(start), strict=True)
    moved = {jax.tree_util.keystr(path, simple=True, separator="/") for (path, a), b in pairs if bool((a != b).any())}
    assert moved == {"first/kernel", "last/kernel"}
    # Two micro-batches a step: the loss is the same for two calls.
    assert losses[0] == losses[1] > losses[2] == losses[3]
    assert traces == 1


def floats(numbers: dict[str, Any]) -> dict[str, float]:
    assert all(isinstance(x, (int, float, jax.Array)) for x in numbers.values())
    return {name: float(x) for name, x in numbers.items()}


INSIDE: dict[str, tuple[Callable[[gx.Transformation], Any], str]] = {
    "itself": (lambda tx: tx, ""),
    "chain": (lambda tx: optax.chain(optax.scale(1.0), tx), "1/"),
    "MultiSteps": (lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(), "inner_opt_state/"),
}
RATES = gx.schedules.cosine(3e-4, 10)


@pytest.mark.parametrize("wrapper", INSIDE)
@pytest.mark.parametrize("trainer", ["linen", "nnx"])
def test_looking_into_a_train_state_and_an_nnx_optimizer(wrapper: str, trainer: str) -> None:
    """With variables for arrays or without: the numbers after 0, 1 and 3 updates, and no 'value' in a path."""
    wrap, path = INSIDE[wrapper]
    tx = wrap(gx.chain(gx.record_norms(), gx.clip_by_global_norm(0.5), gx.record_norms(), gx.sgd(RATES)))
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model))  # three ones
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    state = TrainState.create(apply_fn=model.__call__, params=nnx.to_pure_dict(nnx.state(model)), tx=tx)
    for step in range(4):
        holder: Any = state if trainer == "linen" else optimizer
        if step != 2:
            wanted = {f"{path}1/max_norm": 0.5, f"{path}1/eps": 0.0, f"{path}3/learning_rate": float(RATES(step))}
            assert floats(gx.hyperparams(holder)) == pytest.approx(wanted)
            assert floats(gx.hyperparams(tx, holder.opt_state)) == pytest.approx(wanted)
            norms = floats(gx.metrics(holder))
            assert norms == floats(gx.metrics(holder.opt_state))
            assert set(norms) == {
                f"{above}{name}"
                for above in ("", f"{path}2/")
                for name in ("gradient_norm", "update_norm", "param_norm")
            }
            assert norms["gradient_norm"] == pytest.approx(3**0.5 if step else 0.0)
            assert norms[f"{path}2/gradient_norm"] == pytest.approx(0.5 if step else 0.0)
        if trainer == "linen":
            state = state.apply_gradients(grads=nnx.to_pure_dict(gradient))
        else:
            optimizer.update(model, gradient)


def test_looking_into_an_nnx_optimizer_with_injected_numbers() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.inject_hyperparams(gx.adamw)(0.1), wrt=nnx.Param)
    for rate in (0.1, 0.05, 0.02, 0.01):
        optimizer.opt_state.hyperparams["learning_rate"][...] = jnp.float32(rate)
        got = floats(gx.hyperparams(optimizer))
        assert got["inner_state/learning_rate"] == pytest.approx(rate)
        assert got["inner_state/b2"] == pytest.approx(0.999)
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))


@pytest.mark.parametrize("guard", ["skip", "skip in a chain"])
def test_skipped_steps_of_an_nnx_optimizer(guard: str) -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = gx.skip_nonfinite(gx.chain(gx.record_norms(), gx.sgd(RATES)), 5)
    optimizer = nnx.Optimizer(model, tx if guard == "skip" else optax.chain(tx), wrt=nnx.Param)
    for skipped in range(3):
        numbers = floats(gx.metrics(optimizer))
        assert (numbers["skipped_steps"], numbers["consecutive_skips"], len(numbers)) == (skipped, skipped, 5)
        optimizer.update(model, jax.tree.map(lambda x: x * jnp.nan, nnx.state(model)))
    path = "tx/1/learning_rate" if guard == "skip" else "0/tx/1/learning_rate"
    assert floats(gx.hyperparams(optimizer))[path] == pytest.approx(3e-4)  # no step was made


# Buffers, shapes, meshes, other platforms.


@pytest.mark.parametrize("name", [*RECIPES, *COMBINED])
def test_donated_buffers(name: str) -> None:
    """A state made eagerly can be donated at once, and every donated buffer is used again."""
    tx = (RECIPES | COMBINED)[name]

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.tree.map(lambda p: 0.1 * p, params), state, params)
        return gx.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    expected = jax.jit(step)(*jax.jit(step)(params, state))
    donating = jax.jit(step, donate_argnums=(0, 1))  # an unused donation is a warning, and a warning an error
    first = donating(params, state)
    # Some fields are overwritten without being read, and jit drops what nobody reads before it could be donated.
    unread = ("gradient_norm", "update_norm", "param_norm", "too_many")
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, state)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        stands_for_nothing = leaf.shape == (1,) and {"v", "v_row", "v_col"} & {*name.split("/")}
        if name.split("/")[-1] not in unread and not stands_for_nothing:
            assert leaf.is_deleted(), name
    equal_trees(donating(*first), expected)


@pytest.mark.parametrize("name", [*RECIPES, *COMBINED])
def test_shapes_without_arrays(name: str) -> None:
    tx = (RECIPES | COMBINED)[name]
    shapes = jax.eval_shape(lambda: PARAMS)
    state = jax.eval_shape(tx.init, shapes)
    made = tx.init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(made)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == [(x.shape, x.dtype) for x in jax.tree.leaves(made)]
    updates, after = jax.eval_shape(tx.update, shapes, state, shapes)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), PARAMS)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((updates, after)))


@pytest.mark.parametrize(
    "tx", [gx.scale(0.5), gx.set_to_zero(), gx.clip(1.0), gx.trace(0.9), gx.adamw(RATE)], ids=lambda tx: tx.name
)
def test_python_numbers_leave_no_weak_types(tx: gx.Transformation) -> None:
    """A weakly typed update would make the next step of a training loop another program."""
    params = {"w": 1.0, "b": jnp.asarray(2.0)}
    assert params["b"].weak_type
    for update in (tx.update, jax.jit(tx.update)):
        updates, state = update(params, tx.init(params), params)
        new = gx.apply_updates(params, updates)
        assert [leaf for leaf in jax.tree.leaves((updates, state, new, tx.init(params))) if leaf.weak_type] == []


@pytest.mark.parametrize("name", [*RECIPES, *(name for name in COMBINED if name != "skip")])
def test_a_training_step_exports_for_every_platform(name: str) -> None:
    # A key as two integers: jax cannot serialize a typed key in the signature of a program.
    noise = gx.chain(gx.add_noise(0.1, 0.5, jax.random.PRNGKey(0)), gx.sgd(RATE))
    tx = (RECIPES | COMBINED | {"noise": noise})[name]
    leaves, treedef = jax.tree.flatten((PARAMS, tx.init(PARAMS)))

    @jax.jit
    def step(leaves: list[jax.Array]) -> list[jax.Array]:
        params, state = jax.tree.unflatten(treedef, leaves)
        updates, state = tx.update(GRADS, state, params)
        return jax.tree.leaves((gx.apply_updates(params, updates), state))

    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(leaves)
    back = jax.export.deserialize(exported.serialize())
    assert back.platforms == ("cpu", "cuda", "tpu")
    equal_trees(back.call(leaves), step(leaves))


def test_a_guarded_step_exports_without_the_host_callback() -> None:
    tx = gx.skip_nonfinite(gx.adam(RATE), 3, raise_in_jit=False)
    update = jax.jit(lambda g: tx.update(g, tx.init(g))[0])
    exported = jax.export.export(update, platforms=["cpu", "cuda", "tpu"])(GRADS)
    equal_trees(jax.export.deserialize(exported.serialize()).call(GRADS), update(GRADS))


SHARDED = pathlib.Path(__file__).parent / "core" / "sharded_program.py"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with eight devices found."""
    return json.loads(eight_devices(tmp_path_factory, SHARDED).splitlines()[-1])


@pytest.mark.parametrize("mesh", ["auto", "explicit"])
@pytest.mark.parametrize(
    "check", ["eager init", "jitted init", "values", "shardings after a step", "factored", "adafactor's state"]
)
def test_on_a_mesh(sharded: dict[str, Any], mesh: str, check: str) -> None:
    assert sharded["devices"] == 8
    assert sharded[mesh][check] == []


def test_by_hand_on_a_mesh(sharded: dict[str, Any]) -> None:
    checks = {name: found for name, found in sharded.items() if name not in ("devices", "auto", "explicit")}
    assert len(checks) == 10
    assert {name: found for name, found in checks.items() if found} == {}
