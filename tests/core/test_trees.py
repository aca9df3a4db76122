"""Trees that do not fit name the first path at which they differ."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradxform as gx
from gradxform.core import trees

PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": jnp.ones(2)}
X = jnp.ones(2)
TX = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1))


def without(path: str) -> Any:
    tree = jax.tree.map(lambda x: x, PARAMS)
    *above, last = path.split("/")
    node = tree
    for key in above:
        node = node[key]
    del node[last]
    return tree


def changed(path: str, leaf: Any) -> Any:
    tree = jax.tree.map(lambda x: x, PARAMS)
    *above, last = path.split("/")
    node = tree
    for key in above:
        node = node[key]
    node[last] = leaf
    return tree


MISFITS = {
    "missing": (without("a/bias"), "a/bias"),
    "missing last": (without("b"), "b"),
    "one too many": (changed("a/zeta", jnp.ones(2)), "a/zeta"),
    "none": (changed("a/kernel", None), "a/kernel"),
    "a subtree for a leaf": (changed("b", {"deep": jnp.ones(2)}), "b"),
    "shape": (changed("a/bias", jnp.ones(4)), "a/bias"),
    "broadcasting shape": (changed("a/bias", jnp.ones(1)), "a/bias"),
    "scalar": (changed("b", jnp.ones(())), "b"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_gradients_that_do_not_fit(misfit: str) -> None:
    updates, path = MISFITS[misfit]
    with pytest.raises(ValueError, match=f"'{path}"):
        TX.update(updates, TX.init(PARAMS), PARAMS)


@pytest.mark.parametrize("misfit", MISFITS)
def test_gradients_that_do_not_fit_the_state(misfit: str) -> None:
    updates, path = MISFITS[misfit]
    tx = gx.adam(0.1)
    with pytest.raises(ValueError, match=f"'{path}"):
        tx.update(updates, tx.init(PARAMS))


@pytest.mark.parametrize("misfit", MISFITS)
def test_params_that_do_not_fit(misfit: str) -> None:
    params, path = MISFITS[misfit]
    with pytest.raises(ValueError, match=f"'{path}"):
        TX.update(PARAMS, TX.init(PARAMS), params)


@pytest.mark.parametrize("misfit", [name for name in MISFITS if name != "none"])
def test_updates_that_do_not_fit_the_params(misfit: str) -> None:
    updates, path = MISFITS[misfit]
    with pytest.raises(ValueError, match=f"'{path}"):
        gx.apply_updates(PARAMS, updates)


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_state_of_other_params(misfit: str) -> None:
    other, path = MISFITS[misfit]
    with pytest.raises(ValueError, match=f"'{path}"):
        TX.update(PARAMS, TX.init(other), PARAMS)


@pytest.mark.parametrize(
    "make",
    [
        lambda tx: tx,
        gx.chain,
        lambda tx: gx.masked(tx, True),
        lambda tx: gx.accumulate(tx, 2),
        lambda tx: gx.skip_nonfinite(tx, 2),
        lambda tx: gx.selective_transform(tx, freeze_mask=False),
    ],
    ids=["plain", "chain", "masked", "accumulate", "skip_nonfinite", "selective"],
)
@pytest.mark.parametrize("misfit", ["missing", "shape"])
def test_inside_combinators_and_under_jit(make: Any, misfit: str) -> None:
    tx = make(gx.adam(0.1))
    updates, path = MISFITS[misfit]
    state = tx.init(PARAMS)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match=f"'{path}'"):
            update(updates, state, PARAMS)


@pytest.mark.parametrize(
    ("mask", "path"),
    [
        ({"a": {"kernel": True}, "b": True}, "a/bias"),
        ({"a": True}, "b"),
        ({"a": True, "b": True, "c": True}, "c"),
        ({"a": {"kernel": True, "bias": {"deep": True}}, "b": False}, "a/bias"),
        ({"a": {"kernel": True, "bias": None}, "b": False}, "a/bias"),
        ({"a": None, "b": True}, "a'"),
    ],
)
def test_masks_that_do_not_fit(mask: Any, path: str) -> None:
    for tx in (
        gx.masked(gx.scale(0.5), mask),
        gx.adamw(0.1, mask=mask),
        gx.freeze(mask),
        gx.selective_transform(gx.sgd(0.1), freeze_mask=mask),
    ):
        with pytest.raises(ValueError, match=f"mask do not fit at '{path}"):
            tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"mask do not fit at '\(root\)': mask: PyTreeDef\(None\)"):
        gx.masked(gx.scale(0.5), None).init(PARAMS)


def test_the_same_leaves_in_other_containers_name_the_first_that_differs() -> None:
    ours, theirs = {"a": [X], "x": {"y": (X, [X])}}, {"a": [X], "x": {"y": (X, (X,))}}
    tx = gx.adam(0.1)
    with pytest.raises(ValueError, match=r"state and updates .* at 'x/y/1': updates: PyTreeDef\(\[\*\]\); state"):
        tx.update(ours, tx.init(theirs))
    with pytest.raises(ValueError, match=r"at 'x/y/1': params: .*; updates: PyTreeDef\(\(\*,\)\)"):
        gx.apply_updates(ours, theirs)
    with pytest.raises(ValueError, match=r"at '1': mask: None"):
        gx.masked(tx, [True, None]).init((X, theirs))


@pytest.mark.parametrize(
    "mask", [True, False, {"a": True, "b": False}, {"a": {"kernel": True, "bias": False}, "b": True}]
)
def test_a_prefix_of_the_params_is_a_mask(mask: Any) -> None:
    tx = gx.masked(gx.set_to_zero(), mask)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    ours, theirs = updates, optax.masked(optax.set_to_zero(), mask)
    assert jax.tree.map(lambda x: float(x.sum()), ours) == jax.tree.map(
        lambda x: float(x.sum()), theirs.update(PARAMS, theirs.init(PARAMS))[0]
    )


def test_labels_that_do_not_fit() -> None:
    parts = {"x": gx.scale(0.5), "y": gx.scale(0.25)}
    with pytest.raises(ValueError, match=r"param_labels.*'b'.*'z'"):
        gx.partition(parts, {"a": "x", "b": "z"}).init(PARAMS)
    with pytest.raises(ValueError, match="'a/bias"):
        gx.partition(parts, {"a": {"kernel": "x"}, "b": "y"}).init(PARAMS)


def test_a_state_of_another_chain() -> None:
    tx = gx.chain(gx.clip(1.0), gx.adam(0.1))
    with pytest.raises(ValueError, match="chain: expected the state of 2 transformations in a tuple, got a tuple of 1"):
        tx.update(PARAMS, gx.chain(gx.clip(1.0)).init(PARAMS))


@pytest.mark.parametrize(
    ("leaf", "found"),
    [(jnp.ones(2, int), "int32"), (jnp.ones(2, bool), "bool"), (jax.random.key(0), "key<fry>"), (3, "int")],
)
def test_leaves_that_are_no_numbers(leaf: Any, found: str) -> None:
    for call in (
        lambda: TX.init(changed("a/bias", leaf)),
        lambda: gx.sgd(0.1).init(changed("a/bias", leaf)),
        lambda: TX.update(changed("a/bias", leaf), TX.init(PARAMS), PARAMS),
        lambda: gx.global_norm(changed("a/bias", leaf)),
    ):
        with pytest.raises(TypeError, match=f"'a/bias', got {found}"):
            call()


def test_paths() -> None:
    one = jnp.ones(1)
    tree = {"a": [one, (one, {"b": one})], "c": None, "d": optax.EmaState(one, one)}
    assert trees.paths(tree) == ["a/0", "a/1/0", "a/1/1/b", "d/count", "d/ema"]
    assert trees.paths(jnp.ones(1)) == ["(root)"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    """As a module of equinox: its leaves are fields."""

    query: Any
    key: Any
    value: Any


ATTENTION = {"attn": Attention(jnp.ones(1), jnp.ones(1), jnp.ones(1))}


def test_a_field_of_the_name_value_is_in_its_path() -> None:
    assert trees.paths(ATTENTION) == ["attn/query", "attn/key", "attn/value"]
    assert trees.paths(Attention(1.0, None, {"value": 2.0}), none=True) == ["query", "key", "value/value"]
    tx = gx.selective_transform(gx.sgd(1.0), freeze_mask=gx.path_matches("attn/(key|value)"))
    updates = tx.update(ATTENTION, tx.init(ATTENTION), ATTENTION)[0]["attn"]
    assert (float(updates.query[0]), float(updates.key[0]), float(updates.value[0])) == (-1, 0, 0)
    with pytest.raises(TypeError, match="'attn/value', got int32"):
        gx.sgd(1.0).init({"attn": Attention(1.0, 1.0, jnp.ones(1, int))})


def test_a_field_of_the_name_value_in_transfer(tmp_path: pathlib.Path) -> None:
    np.savez(
        tmp_path / "model.npz",
        **{f"attn/{name}": np.full(1, i, np.float32) for i, name in enumerate(("query", "key", "value"))},
    )
    loaded = gx.transfer.load_pretrained(tmp_path / "model.npz", ATTENTION)[0]["attn"]
    assert (float(loaded.query[0]), float(loaded.key[0]), float(loaded.value[0])) == (0, 1, 2)
    assert gx.transfer.layer_scales(ATTENTION, 0.5, ("query", "key", "value")) == {
        "attn/query": 0.125,
        "attn/key": 0.25,
        "attn/value": 0.5,
    }
    assert gx.transfer.layers_at_depth(ATTENTION, 2) == ("^attn/query(?:/|$)", "^attn/key(?:/|$)")


def test_a_variable_of_nnx_has_no_key_of_its_own() -> None:
    one = jnp.ones(1)
    state = nnx.State(
        {"attn": {"value": nnx.Param(one), "cache": nnx.Variable({"value": one, "k": Attention(one, one, one)})}}
    )
    wanted = ["attn/cache/k/query", "attn/cache/k/key", "attn/cache/k/value", "attn/cache/value", "attn/value"]
    assert trees.paths(state) == wanted
    assert trees.paths(nnx.to_pure_dict(state)) == wanted
    assert trees.paths(Attention(nnx.Param(one), one, nnx.Param(one))) == ["query", "key", "value"]
    assert trees.paths(nnx.Param(one)) == ["(root)"]
    selected = gx.path_matches("^attn/value$")(state)
    assert jax.tree.structure(selected) == jax.tree.structure(state)
    assert jax.tree.leaves(selected) == [False] * 4 + [True]


def test_a_single_array_is_a_tree() -> None:
    tx = gx.adam(0.1)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    assert updates.shape == (2,)
    with pytest.raises(ValueError, match=r"\(root\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(2)))


def test_the_message_says_what_each_side_has() -> None:
    with pytest.raises(ValueError, match=r"'a/bias', got \(4,\)"):
        gx.apply_updates(PARAMS, changed("a/bias", jnp.ones(4)))
    with pytest.raises(ValueError, match="no leaf"):
        gx.apply_updates(PARAMS, without("a/bias"))


def test_params_that_are_missing() -> None:
    with pytest.raises(ValueError, match="expected params, got None"):
        TX.update(PARAMS, TX.init(PARAMS))
