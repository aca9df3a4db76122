"""Trees that do not fit: the error names the first path that differs, and says what is there on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import optax
import pytest

import gradxform as gx

PARAMS = {"body": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}, "head": jnp.ones(2)}

everywhere = gx.path_matches("")

STATEFUL: dict[str, Callable[[], gx.Transformation]] = {
    **{name: (lambda name=name: harness.recipe(name)) for name in harness.RECIPES},
    "clip and adam": lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.adam(0.1)),
    "masked": lambda: gx.masked(gx.adam(0.1), everywhere),
    "selective": lambda: gx.selective_transform(gx.adam(0.1), freeze_mask=lambda p: jax.tree.map(lambda x: False, p)),
    "partition": lambda: gx.partition({"a": gx.adam(0.1)}, lambda p: jax.tree.map(lambda x: "a", p)),
    "accumulate": lambda: gx.accumulate(gx.adam(0.1), 2),
    "skip_nonfinite": lambda: gx.skip_nonfinite(gx.adam(0.1), 3),
    "named_chain": lambda: gx.named_chain(("clip", gx.clip(1.0)), ("adam", gx.adam(0.1))),
}
NEEDS_PARAMS = ("adamw", "nadamw", "lion", "lars", "lamb", "adafactor")


def changed(path: str, leaf: Any) -> dict[str, Any]:
    """The params with another leaf at a path; an Ellipsis takes the leaf out."""
    tree = {"body": dict(PARAMS["body"]), "head": PARAMS["head"]}
    *above, name = path.split("/")
    node = tree["body"] if above else tree
    if leaf is ...:
        del node[name]
    else:
        node[name] = leaf
    return tree


MISFITS = {
    "missing": ("body/kernel", changed("body/kernel", ...)),
    "extra": ("body/scale", changed("body/scale", jnp.ones(3))),
    "shape": ("body/kernel", changed("body/kernel", jnp.ones((3, 3)))),
    "shape-that-broadcasts": ("body/kernel", changed("body/kernel", jnp.ones((1, 3)))),
    "scalar-that-broadcasts": ("body/bias", changed("body/bias", jnp.ones(()))),
    "none": ("body/bias", changed("body/bias", None)),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("name", STATEFUL)
def test_gradients_that_do_not_fit_the_params(name: str, misfit: str) -> None:
    path, gradients = MISFITS[misfit]
    tx = STATEFUL[name]()
    with pytest.raises(ValueError, match=f"'{path}'"):
        tx.update(gradients, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("name", [name for name in STATEFUL if name not in NEEDS_PARAMS])
def test_gradients_that_do_not_fit_the_state(name: str, misfit: str) -> None:
    path, gradients = MISFITS[misfit]
    tx = STATEFUL[name]()
    with pytest.raises(ValueError, match=f"'{path}'"):
        tx.update(gradients, tx.init(PARAMS))


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_of_other_params(name: str, misfit: str) -> None:
    path, other = MISFITS[misfit]
    tx = STATEFUL[name]()
    with pytest.raises(ValueError, match=f"'{path}'"):
        tx.update(PARAMS, tx.init(other), PARAMS)


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: gx.add_decayed_weights(0.1),
        lambda: gx.scale_by_trust_ratio(),
        lambda: gx.adaptive_grad_clip(0.1),
        lambda: gx.scale_by_param_block_rms(),
        lambda: gx.sgd(0.1, weight_decay=0.1),
    ],
    ids=["add_decayed_weights", "scale_by_trust_ratio", "adaptive_grad_clip", "scale_by_param_block_rms", "sgd"],
)
def test_params_that_do_not_fit_the_gradients(make: Callable[[], gx.Transformation], misfit: str) -> None:
    path, params = MISFITS[misfit]
    tx = make()
    with pytest.raises(ValueError, match=f"'{path}'"):
        tx.update(PARAMS, tx.init(PARAMS), params)


@pytest.mark.parametrize("misfit", [m for m in MISFITS if m != "none"])
def test_updates_that_do_not_fit_the_params(misfit: str) -> None:
    path, updates = MISFITS[misfit]
    with pytest.raises(ValueError, match=f"'{path}'"):
        gx.apply_updates(PARAMS, updates)


def test_an_update_of_none_leaves_a_leaf_as_it_is() -> None:
    after = gx.apply_updates({"a": jnp.ones(2), "b": None}, {"a": None, "b": None})
    assert after["b"] is None
    assert after["a"].tolist() == [1.0, 1.0]


def test_the_error_says_what_is_on_either_side() -> None:
    tx = gx.adamw(0.1)
    with pytest.raises(ValueError) as error:
        tx.update(MISFITS["shape"][1], tx.init(PARAMS), PARAMS)
    assert "(2, 3)" in str(error.value) and "(3, 3)" in str(error.value)
    with pytest.raises(ValueError) as error:
        tx.update(MISFITS["none"][1], tx.init(PARAMS), PARAMS)
    assert "None" in str(error.value) and "float32[3]" in str(error.value)


def test_params_that_are_needed_and_missing() -> None:
    for name in NEEDS_PARAMS:
        tx = harness.recipe(name)
        with pytest.raises(ValueError, match=rf"{name}: expected params, got None; \w+ needs them"):
            tx.update(PARAMS, tx.init(PARAMS))


MASK_MISFITS = {
    "missing": ("body/bias", {"body": {"kernel": True}, "head": True}),
    "extra": ("body/scale", {"body": {"kernel": True, "bias": False, "scale": True}, "head": True}),
    "deeper": ("head/kernel", {"body": True, "head": {"kernel": True}}),
    "other": ("tail", {"body": True, "tail": False}),
}


@pytest.mark.parametrize("when", ["init", "update"])
@pytest.mark.parametrize("misfit", MASK_MISFITS)
@pytest.mark.parametrize(
    "make",
    [
        lambda mask: gx.masked(gx.adam(0.1), mask),
        lambda mask: gx.freeze(mask),
        lambda mask: gx.selective_transform(gx.adam(0.1), freeze_mask=mask),
        lambda mask: gx.adamw(0.1, mask=mask),
        lambda mask: gx.add_decayed_weights(0.1, mask),
        lambda mask: gx.masked(gx.adam(0.1), lambda params: mask),
        lambda mask: gx.partition({True: gx.adam(0.1), False: gx.sgd(0.1)}, mask),
    ],
    ids=["masked", "freeze", "selective", "adamw", "decay", "function", "partition"],
)
def test_masks_that_do_not_fit(make: Callable[[Any], gx.Transformation], misfit: str, when: str) -> None:
    path, mask = MASK_MISFITS[misfit]
    tx = make(mask)
    state = None
    with pytest.raises(ValueError, match=f"'{path}|{path.split('/')[0]}'") as error:
        state = tx.init(PARAMS)
    assert state is None
    assert "mask" in str(error.value) or "labels" in str(error.value)
    if when == "update":
        good = make(jax.tree.map(lambda x: True, PARAMS))
        with pytest.raises(ValueError, match=f"'{path}|{path.split('/')[0]}'"):
            tx.update(PARAMS, good.init(PARAMS), PARAMS)


@pytest.mark.parametrize("bad", [1, 0.0, "yes", None, jnp.ones(2)], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda mask: gx.masked(gx.adam(0.1), mask),
        lambda mask: gx.freeze(mask),
        lambda mask: gx.selective_transform(gx.adam(0.1), freeze_mask=mask),
        lambda mask: gx.masked(gx.adam(0.1), lambda params: mask),
    ],
    ids=["masked", "freeze", "selective", "function"],
)
def test_masks_that_are_not_bools(make: Callable[[Any], gx.Transformation], bad: Any) -> None:
    wrong = ValueError if bad is None else TypeError  # None is a subtree without leaves: it does not fit
    with pytest.raises(wrong, match="'head'"):
        make({"body": True, "head": bad}).init(PARAMS)


def test_a_label_without_a_transformation() -> None:
    tx = gx.partition({"a": gx.sgd(0.1)}, {"body": {"bias": "a", "kernel": "b"}, "head": "a"})
    with pytest.raises(ValueError, match=r"'body/kernel'.*'b'"):
        tx.init(PARAMS)


def test_the_state_of_a_shorter_chain() -> None:
    tx = gx.chain(gx.clip(1.0), gx.adam(0.1))
    with pytest.raises(ValueError, match="expected the state of 2"):
        tx.update(PARAMS, (optax.EmptyState(),), PARAMS)


@pytest.mark.parametrize("state", [None, (), {}, optax.EmptyState()], ids=str)
@pytest.mark.parametrize("make", [lambda: gx.scale(0.5), lambda: gx.clip_by_global_norm(100.0), lambda: gx.identity()])
def test_what_keeps_nothing_takes_any_state_of_nothing(make: Callable[[], gx.Transformation], state: Any) -> None:
    updates, after = make().update(PARAMS, state)
    assert after == state or after == optax.EmptyState()
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("state", [[1, 2], {"micro_step": 0}, optax.EmptyState(), None], ids=str)
def test_wrappers_refuse_the_state_of_something_else(state: Any) -> None:
    for name, tx in {
        "accumulate": gx.accumulate(gx.sgd(0.1), 2),
        "skip_nonfinite": gx.skip_nonfinite(gx.sgd(0.1), 2),
        "record_norms": gx.record_norms(),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: expected the state of {name}, .*State, got .*init\\(params\\)"):
            tx.update(PARAMS, state, PARAMS)


def test_what_keeps_nothing_refuses_the_state_of_something() -> None:
    with pytest.raises(ValueError, match="expected the state of scale, EmptyState, got ScaleByAdamState"):
        gx.scale(0.5).update(PARAMS, gx.scale_by_adam().init(PARAMS))


def test_a_function_that_changes_the_tree() -> None:
    tx = gx.stateless(lambda updates, params: {"head": updates["head"]})
    with pytest.raises(ValueError, match="'body/bias'"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
