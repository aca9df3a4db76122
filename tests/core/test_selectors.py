"""Selectors pick leaves by path and by shape, in any tree."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.core import freeze as frozen_dict

import gradxform as gx

PARAMS = {
    "embed": jnp.ones((5, 2)),
    "blocks": [{"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}],
    "temperature": jnp.ones(()),
}


def selected(selector: gx.Selector, params: Any = PARAMS) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(selector(params))
    assert all(type(leaf) is bool for _, leaf in leaves)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if leaf}


ALL = {"embed", "blocks/0/kernel", "blocks/0/bias", "blocks/1/kernel", "blocks/1/bias", "temperature"}
KERNELS = {"blocks/0/kernel", "blocks/1/kernel"}


@pytest.mark.parametrize(
    ("selector", "paths"),
    [
        (gx.path_matches("kernel$"), KERNELS),
        (gx.path_matches("^blocks/0/"), {"blocks/0/kernel", "blocks/0/bias"}),
        (gx.path_matches("embed|temp"), {"embed", "temperature"}),
        (gx.path_matches(r"/1/(kernel|bias)"), {"blocks/1/kernel", "blocks/1/bias"}),
        (gx.path_matches("nowhere"), set()),
        (gx.path_matches(""), ALL),
        (gx.ndim_at_least(0), ALL),
        (gx.ndim_at_least(1), ALL - {"temperature"}),
        (gx.ndim_at_least(2), KERNELS | {"embed"}),
        (gx.ndim_at_least(3), set()),
        (gx.ndim_at_least(2) & ~gx.path_matches("embed"), KERNELS),
        (gx.path_matches("embed") | gx.path_matches("temperature"), {"embed", "temperature"}),
        (~gx.ndim_at_least(1), {"temperature"}),
        (~~gx.path_matches("kernel"), KERNELS),
        (~(gx.ndim_at_least(2) | gx.path_matches("bias")), {"temperature"}),
        (gx.ndim_at_least(2) & gx.path_matches("/0/") | gx.path_matches("embed"), {"blocks/0/kernel", "embed"}),
    ],
)
def test_what_is_selected(selector: gx.Selector, paths: set[str]) -> None:
    assert selected(selector) == paths
    assert jax.tree.structure(selector(PARAMS)) == jax.tree.structure(PARAMS)


def test_de_morgan() -> None:
    a, b = gx.path_matches("kernel|embed"), gx.ndim_at_least(2)
    assert selected(~(a & b)) == selected(~a | ~b)
    assert selected(~(a | b)) == selected(~a & ~b)
    assert ~(a & b) != (~a | ~b)


def test_on_shapes_and_tracers() -> None:
    shapes = jax.eval_shape(lambda: PARAMS)
    assert selected(gx.ndim_at_least(2), shapes) == KERNELS | {"embed"}
    seen = []
    jax.jit(lambda p: seen.append(selected(gx.ndim_at_least(2) & gx.path_matches("k"), p)))(PARAMS)
    assert seen == [KERNELS]


def test_on_a_tree_with_none_and_a_single_leaf() -> None:
    assert gx.ndim_at_least(1)({"a": None, "b": jnp.ones(2)}) == {"a": None, "b": True}
    assert gx.ndim_at_least(1)(jnp.ones(2)) is True
    assert gx.path_matches("anything")(jnp.ones(2)) is False


def test_on_a_flax_frozen_dict() -> None:
    params = frozen_dict(PARAMS)
    assert selected(gx.path_matches("kernel$") & gx.ndim_at_least(2), params) == KERNELS
    assert isinstance(gx.ndim_at_least(1)(params), FrozenDict)
    tx = gx.masked(gx.scale(0.0), gx.path_matches("kernel$"))
    updates, _ = tx.update(params, tx.init(params))
    assert float(updates["embed"].sum()) == 10
    assert float(updates["blocks"][0]["kernel"].sum()) == 0


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)


def test_on_an_nnx_state() -> None:
    """A leaf of nnx has the path of its variable, as in the pure dict of the same state."""
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    pure = nnx.to_pure_dict(state)
    for selector in (
        gx.ndim_at_least(2),
        gx.path_matches("^dense/kernel$"),
        gx.path_matches("bias$"),
        gx.path_matches("dense") & ~gx.path_matches("bias$"),
    ):
        assert nnx.to_pure_dict(selector(state)) == selector(pure)
        assert any(jax.tree.leaves(selector(pure)))
    tx = gx.selective_transform(gx.sgd(1.0), freeze_mask=gx.path_matches("bias$"))
    updates, _ = tx.update(state, tx.init(state), state)
    updates = nnx.to_pure_dict(updates)
    assert float(abs(updates["norm"]["scale"]).sum()) == 3
    assert float(abs(updates["norm"]["bias"]).sum()) == 0
    assert float(abs(updates["dense"]["kernel"]).sum()) > 0


def test_errors_name_the_path_of_an_nnx_variable() -> None:
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    bad = jax.tree.map(lambda x: x.astype(int) if x.ndim == 2 else x, state)
    with pytest.raises(TypeError, match="dense/kernel"):
        gx.adam(0.1).init(bad)


@pytest.mark.parametrize("pattern", ["(", "[", "*", "a{2,1}", "\\"])
def test_a_bad_pattern_is_refused_at_the_call(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^pattern: expected a regular expression"):
        gx.path_matches(pattern)


@pytest.mark.parametrize("other", [True, "kernel", None, {"a": True}, lambda params: True])
def test_selectors_combine_with_selectors_only(other: Any) -> None:
    for combine in (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: b & a):
        with pytest.raises(TypeError):
            combine(gx.ndim_at_least(2), other)


def test_a_selector_has_no_numbers() -> None:
    """Inside a transformation it is structure; by itself it is a leaf, as any function is."""
    selector = gx.ndim_at_least(2) & ~gx.path_matches("a")
    assert jax.tree.leaves(gx.freeze(selector)) == []
    assert jax.tree.map(lambda x: x, gx.freeze(selector)) == gx.freeze(selector)
    assert jax.tree.leaves(selector) == [selector]


def test_wherever_a_mask_goes() -> None:
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = gx.adamw(1.0, weight_decay=0.5, mask=gx.ndim_at_least(2))
    updates, _ = decay.update(zeros, decay.init(params), params)
    assert float(updates["w"][0, 0]) == -0.5
    assert float(updates["b"][0]) == 0
    frozen = gx.freeze(gx.path_matches("^w$"))
    updates, _ = frozen.update(params, frozen.init(params))
    assert float(updates["w"].sum()) == 0
    assert float(updates["b"].sum()) == 2
