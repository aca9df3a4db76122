"""Parts of a tree: masked, partition, freeze, selective_transform and the selectors that say which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import gradxform as gx

pytestmark = pytest.mark.long

PARAMS = {
    "body": {"bias": jnp.array([1.0, -2.0]), "kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])},
    "head": {"bias": jnp.array([0.5]), "kernel": jnp.array([[1.0], [4.0]])},
}
GRADIENTS = jax.tree.map(lambda p: 0.5 * p + 1.0, PARAMS)

BODY = {"body": {"bias": True, "kernel": True}, "head": {"bias": False, "kernel": False}}
MASKS: dict[str, Any] = {
    "tree": BODY,
    "prefix": {"body": True, "head": False},
    "function": lambda params: {"body": True, "head": False},
    "selector": gx.path_matches("^body/"),
    "not-selector": ~gx.path_matches("^head"),
    "or-selector": gx.path_matches("body/kernel") | (gx.path_matches("body") & ~gx.ndim_at_least(2)),
}


def arrays(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)


def equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("mask", MASKS)
def test_masked_transforms_its_part_and_passes_the_rest_through(mask: str) -> None:
    tx = gx.masked(gx.trace(0.5), MASKS[mask])
    state = tx.init(PARAMS)
    assert len(arrays(state)) == 2  # no momentum for what is not in the part
    _, state = tx.update(GRADIENTS, state, PARAMS)
    updates, _ = tx.update(GRADIENTS, state, PARAMS)
    equal(updates, {"body": jax.tree.map(lambda g: 1.5 * g, GRADIENTS["body"]), "head": GRADIENTS["head"]})


@pytest.mark.parametrize("mask", MASKS)
def test_freeze_gives_zero_updates_where_true(mask: str) -> None:
    tx = gx.freeze(MASKS[mask])
    state = tx.init(PARAMS)
    assert arrays(state) == []
    updates, _ = tx.update(GRADIENTS, state, PARAMS)
    equal(updates, {"body": jax.tree.map(jnp.zeros_like, PARAMS["body"]), "head": GRADIENTS["head"]})


@pytest.mark.parametrize("mask", MASKS)
def test_selective_transform_hides_what_is_frozen(mask: str) -> None:
    # The clip, the decay and the moments see the head alone: everything is as if there were no body.
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1, weight_decay=0.5))
    selective = gx.selective_transform(tx, freeze_mask=MASKS[mask])
    state, alone = selective.init(PARAMS), tx.init(PARAMS["head"])
    assert len(arrays(state)) == len(arrays(alone)) == 5
    params, head = PARAMS, PARAMS["head"]
    for _ in range(3):
        updates, state = selective.update(GRADIENTS, state, params)
        wanted, alone = tx.update(GRADIENTS["head"], alone, head)
        equal(updates["head"], wanted)
        equal(updates["body"], jax.tree.map(jnp.zeros_like, PARAMS["body"]))
        params, head = gx.apply_updates(params, updates), gx.apply_updates(head, wanted)
    equal(params["body"], PARAMS["body"])


def test_frozen_gradients_do_not_count_in_the_clip_norm() -> None:
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1e6])}
    tx = gx.selective_transform(gx.clip_by_global_norm(5.0), freeze_mask={"a": False, "b": True})
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    np.testing.assert_array_equal(updates["a"], [3.0, 4.0])
    outside = gx.chain(
        gx.clip_by_global_norm(5.0), gx.selective_transform(gx.identity(), freeze_mask={"a": False, "b": True})
    )
    updates, _ = outside.update(gradients, outside.init(gradients), gradients)
    assert float(jnp.abs(updates["a"]).max()) < 1e-4  # outside it does


def test_frozen_nan_gradients_do_no_harm() -> None:
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([jnp.nan])}
    for tx in (
        gx.selective_transform(
            gx.chain(gx.clip_by_global_norm(1.0), gx.scale(-1.0)), freeze_mask={"a": False, "b": True}
        ),
        gx.selective_transform(gx.skip_nonfinite(gx.scale(-0.2), 0), freeze_mask={"a": False, "b": True}),
    ):
        updates, _ = tx.update(gradients, tx.init(gradients), gradients)
        np.testing.assert_allclose(updates["a"], [-0.6, -0.8], rtol=1e-6)
        np.testing.assert_array_equal(updates["b"], [0.0])


@pytest.mark.parametrize("name", harness.RECIPES)
def test_frozen_leaves_do_not_move_and_hold_no_state_in_any_optimizer(name: str) -> None:
    tx = gx.selective_transform(harness.recipe(name, 0.1, weight_decay=0.1), freeze_mask=gx.path_matches("frozen"))
    shape = (7, 11)
    params = {"frozen": jnp.full(shape, 1.5), "free": jnp.ones((2, 3))}
    state = tx.init(params)
    assert all(x.shape in ((), (1,), (2,), (3,), (2, 3)) for x in arrays(state))
    updates, state = tx.update(params, state, params)
    np.testing.assert_array_equal(updates["frozen"], jnp.zeros(shape))
    assert float(jnp.abs(updates["free"]).min()) > 0
    assert all(x.shape in ((), (1,), (2,), (3,), (2, 3)) for x in arrays(state))


INTEGERS = {"step": jnp.array(7), "flags": jnp.array([True, False]), "table": jnp.arange(3, dtype=jnp.uint8)}


@pytest.mark.parametrize("gradient", ["integers", "float0"])
@pytest.mark.parametrize("how", ["selective", "masked-and-frozen", "partition"])
def test_frozen_leaves_may_be_integers(how: str, gradient: str) -> None:
    params = {"w": jnp.array([1.0, 2.0]), **INTEGERS}
    frozen = ~gx.path_matches("^w$")
    tx = {
        "selective": gx.selective_transform(gx.adamw(0.1), freeze_mask=frozen),
        "masked-and-frozen": gx.chain(gx.masked(gx.adamw(0.1), ~frozen), gx.freeze(frozen)),
        "partition": gx.partition({True: gx.set_to_zero(), False: gx.adamw(0.1)}, frozen),
    }[how]
    gradients: Any = {"w": jnp.ones(2), **INTEGERS}
    if gradient == "float0":  # what jax.grad(..., allow_int=True) gives
        gradients = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(params)
        assert gradients["step"].dtype == jax.dtypes.float0
    state = tx.init(params)
    updates, state = tx.update(gradients, state, params)
    after = gx.apply_updates(params, updates)
    for key, value in INTEGERS.items():
        assert after[key].dtype == value.dtype
        np.testing.assert_array_equal(after[key], value)
        assert updates[key].dtype == gradients[key].dtype
    np.testing.assert_allclose(after["w"], params["w"] * (1 - 1e-5) - 0.1, rtol=1e-6)


def test_frozen_integers_in_a_jitted_step() -> None:
    params = {"w": jnp.array([1.0, 2.0]), **INTEGERS}
    tx = gx.selective_transform(gx.sgd(1.0), freeze_mask=~gx.path_matches("^w$"))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
        updates, state = tx.update(gradients, state, params)
        return gx.apply_updates(params, updates), state

    after, _ = step(params, tx.init(params))
    np.testing.assert_array_equal(after["w"], -params["w"])
    equal({key: after[key] for key in INTEGERS}, INTEGERS)


def test_partition_gives_each_label_its_own_transformation() -> None:
    labels = {"body": {"bias": "still", "kernel": "slow"}, "head": "fast"}
    tx = gx.partition(
        {
            "slow": gx.chain(gx.clip_by_global_norm(1.0), gx.scale(-1.0)),
            "fast": gx.adam(0.1),
            "still": gx.set_to_zero(),
            "unused": gx.adam(1.0),
        },
        labels,
    )
    state = tx.init(PARAMS)
    assert len(arrays(state.inner_states["fast"])) == 5  # a count, and two moments of two leaves
    updates, state = tx.update(GRADIENTS, state, PARAMS)
    kernel = GRADIENTS["body"]["kernel"]
    np.testing.assert_allclose(updates["body"]["kernel"], -kernel / np.linalg.norm(kernel), rtol=1e-6)
    np.testing.assert_array_equal(updates["body"]["bias"], 0)
    wanted, _ = gx.adam(0.1).update(GRADIENTS["head"], gx.adam(0.1).init(PARAMS["head"]))
    equal(updates["head"], wanted)


def test_labels_are_worked_out_once_for_all_of_them() -> None:
    seen = []

    def labels(tree: Any) -> Any:
        seen.append(tree)
        return {"body": {"bias": "slow", "kernel": "fast"}, "head": "none"}

    tx = gx.partition(
        {
            "fast": gx.chain(gx.trace(0.5), gx.scale(2.0), gx.add_decayed_weights(0.5, {"body": True})),
            "slow": gx.scale(0.5),
            "none": gx.set_to_zero(),
        },
        labels,
    )
    state = tx.init(PARAMS)
    assert len(seen) == 1
    updates, _ = tx.update(GRADIENTS, state, PARAMS)
    assert len(seen) == 2
    equal(
        updates,
        {
            "body": {
                "bias": 0.5 * GRADIENTS["body"]["bias"],
                "kernel": 2 * GRADIENTS["body"]["kernel"] + 0.5 * PARAMS["body"]["kernel"],
            },
            "head": jax.tree.map(jnp.zeros_like, PARAMS["head"]),
        },
    )


@pytest.mark.parametrize(
    "labels",
    [
        {"body": {"bias": "a", "kernel": "b"}, "head": "b"},
        lambda params: {"body": {"bias": "a", "kernel": "b"}, "head": "b"},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, x: "ab"[jax.tree_util.keystr(path, simple=True, separator="/") != "body/bias"], params
        ),
    ],
    ids=["prefix", "function", "by-path"],
)
def test_partition_takes_labels_in_every_form(labels: Any) -> None:
    tx = gx.partition({"a": gx.scale(2.0), "b": gx.add_decayed_weights(0.5)}, labels)
    updates, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
    wanted = jax.tree.map(lambda g, p: g + 0.5 * p, GRADIENTS, PARAMS)
    wanted["body"]["bias"] = 2 * GRADIENTS["body"]["bias"]
    equal(updates, wanted)


@pytest.mark.parametrize(
    ("make", "selected", "others"),
    [
        (lambda mask: gx.masked(gx.scale(3.0), mask), 3.0, 1.0),
        (lambda mask: gx.freeze(mask), 0.0, 1.0),
        (lambda mask: gx.selective_transform(gx.scale(3.0), freeze_mask=mask), 0.0, 3.0),
        (lambda mask: gx.add_decayed_weights(1.0, mask), 2.0, 1.0),
        (lambda mask: gx.partition({True: gx.scale(3.0), False: gx.identity()}, mask), 3.0, 1.0),
    ],
    ids=["masked", "freeze", "selective", "decay", "partition"],
)
def test_masks_follow_lists_and_tuples(
    make: Callable[[Any], gx.Transformation], selected: float, others: float
) -> None:
    params = {"layers": [jnp.ones(2), jnp.ones(3)], "pair": (jnp.ones(1), jnp.ones(1))}
    tx = make({"layers": [True, False], "pair": (False, True)})
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    got = [float(u[0]) for u in jax.tree.leaves(updates)]
    assert got == [selected, others, others, selected]


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        *(("adamw", mask) for mask in MASKS),
        *((name, mask) for name in ("lamb", "sgd", "lars", "adafactor", "rmsprop") for mask in ("prefix", "selector")),
    ],
)
def test_decay_moves_only_what_the_mask_selects(name: str, mask: str) -> None:
    run = lambda **k: harness.one_step(harness.recipe(name, 0.1, **k), GRADIENTS, PARAMS)[0]  # noqa: E731
    plain, everywhere = run(weight_decay=0.0), run(weight_decay=0.3)
    got = run(weight_decay=0.3, mask=MASKS[mask])
    for a, b in zip(arrays(got["body"]), arrays(everywhere["body"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for a, b in zip(arrays(got["head"]), arrays(plain["head"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    moved, decay = plain["body"]["kernel"], everywhere["body"]["kernel"] - plain["body"]["kernel"]
    assert float(jnp.abs(decay).max()) > 0.03 * float(jnp.abs(moved).max())


def test_masks_of_selectors_by_shape_and_path() -> None:
    decayed = gx.ndim_at_least(2) & ~gx.path_matches("head")
    assert decayed(PARAMS) == {"body": {"bias": False, "kernel": True}, "head": {"bias": False, "kernel": False}}
    tx = gx.add_decayed_weights(1.0, decayed | gx.path_matches("head/bias"))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["body"]["kernel"], PARAMS["body"]["kernel"])
    np.testing.assert_array_equal(updates["head"]["bias"], PARAMS["head"]["bias"])
    np.testing.assert_array_equal(updates["body"]["bias"], 0)
    np.testing.assert_array_equal(updates["head"]["kernel"], 0)


@pytest.mark.parametrize("labels", [("a", 0), (None, "a"), (1, "1", 2)])
def test_labels_that_cannot_be_sorted_are_refused_when_made(labels: Any) -> None:
    with pytest.raises(TypeError, match=r"transforms: expected keys that can be sorted, got \["):
        gx.partition({label: gx.sgd(0.1) for label in labels}, labels[0])


def test_none_leaves_under_a_mask() -> None:
    params = {"a": jnp.ones(2), "b": None, "c": {"d": jnp.ones(1), "e": None}}
    for mask in (
        gx.path_matches("a"),
        {"a": True, "b": None, "c": False},
        {"a": True, "b": False, "c": {"d": False, "e": True}},
    ):
        tx = gx.masked(gx.adam(0.1), mask)
        updates, _ = tx.update(params, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-6)
        np.testing.assert_array_equal(updates["c"]["d"], 1.0)


def test_masked_extra_arguments() -> None:
    @gx.transformation
    def take_value() -> Any:
        def update(updates: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
            return jax.tree.map(lambda u, v: v, updates, value), state

        return lambda params: (), update

    value = jax.tree.map(lambda p: p + 100, PARAMS)
    tx = gx.masked(take_value(), BODY, mask_compatible_extra_args=True)
    updates, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS, value=value)
    equal(updates, {"body": value["body"], "head": GRADIENTS["head"]})


def test_nested_parts_in_a_training_run() -> None:
    """Layer-wise groups inside a chain, against the same rules by hand in float64."""
    tx = gx.chain(
        gx.clip_by_global_norm(2.0),
        gx.partition(
            {"big": gx.chain(gx.scale_by_adam(), gx.add_decayed_weights(0.1)), "small": gx.trace(0.9)},
            lambda p: jax.tree.map(lambda x: "big" if x.ndim >= 2 else "small", p),
        ),
        gx.scale(-0.01),
    )
    params, noise = harness.problem()
    got, _ = harness.trajectory_of(tx, noise, params)
    big = {"attention", "conv/0", "encoder/kernel"}

    def grouped(t: int, g: oracles.Arrays, w: oracles.Arrays, memory: oracles.Memory) -> oracles.Arrays:
        part = lambda x, names: {name: x[name] for name in x if name in names}  # noqa: E731
        adam = oracles.sequence(oracles.scale_by_adam(), oracles.add_decayed_weights(0.1))
        small = set(g) - big
        return adam(t, part(g, big), part(w, big), memory.setdefault("big", {})) | oracles.trace(0.9)(
            t, part(g, small), part(w, small), memory.setdefault("small", {})
        )

    rule = oracles.sequence(oracles.clip_by_global_norm(2.0), grouped, oracles.scale(-0.01))
    wanted = harness.oracle_trajectory(rule, noise, params)
    for name, leaf in harness.flat(got).items():
        np.testing.assert_allclose(leaf, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
