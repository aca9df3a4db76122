"""Rates by layer against the rules written out, and LARS and LAMB with masks as SimCLR uses them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradxform as gx
from gradxform.transfer import discriminative_rates, layer_scales, layers_at_depth, layerwise_decay, scale_by_layer

VIT = {
    "blocks": [{"kernel": np.ones((2, 2), np.float32)} for _ in range(12)],
    "cls": np.ones(2, np.float32),
    "head": {"kernel": np.ones((2, 1), np.float32)},
    "norm": np.ones(2, np.float32),
    "patch_embed": {"kernel": np.ones((3, 2), np.float32)},
    "pos": np.ones(2, np.float32),
}
GROUPS = ("cls|pos|patch_embed", r"blocks/(\d+)/")


def beit_layer_id(path: str, depth: int = 12) -> int:
    """The layer of BEiT's and MAE's fine-tuning: embeddings 0, block i is i + 1, all else the last."""
    if path.split("/")[0] in ("cls", "pos", "patch_embed"):
        return 0
    return int(path.split("/")[1]) + 1 if path.startswith("blocks") else depth + 1


def wanted(decay: float) -> dict[str, float]:
    names = harness.flat(VIT)
    return {name: decay ** (13 - beit_layer_id(name)) for name in names}


def test_the_scales_are_those_of_beit_and_mae() -> None:
    scales = layer_scales(VIT, 0.75, GROUPS)
    assert scales == wanted(0.75)
    assert scales["norm"] == scales["head/kernel"] == 1.0
    assert scales["blocks/11/kernel"] == 0.75
    tx = scale_by_layer(0.75, GROUPS)
    updates, _ = tx.update(VIT, tx.init(VIT))
    for name, leaf in harness.flat(updates).items():
        np.testing.assert_allclose(leaf, wanted(0.75)[name], rtol=1e-6)


def test_at_the_place_of_the_learning_rate_and_behind_a_recipe() -> None:
    rate = gx.schedules.linear(0.5, 0.25, 2)
    bricks = gx.chain(gx.scale_by_adam(), gx.add_decayed_weights(0.1), layerwise_decay(rate, 0.75, GROUPS))
    behind = gx.chain(gx.adamw(rate, weight_decay=0.1), scale_by_layer(0.75, GROUPS))
    plain = gx.adamw(rate, weight_decay=0.1)
    states = tuple(tx.init(VIT) for tx in (bricks, behind, plain))
    step = jax.jit(
        lambda g, states: tuple(
            zip(*(tx.update(g, s, VIT) for tx, s in zip((bricks, behind, plain), states, strict=True)), strict=True)
        )
    )
    for _ in range(3):
        (a, b, c), states = step(VIT, states)
        # The factor multiplies the decoupled decay as well, as in timm.
        for name, leaf in harness.flat(c).items():
            np.testing.assert_allclose(harness.flat(a)[name], wanted(0.75)[name] * leaf, rtol=1e-5)
            np.testing.assert_allclose(harness.flat(b)[name], wanted(0.75)[name] * leaf, rtol=1e-5)
    assert step._cache_size() == 1
    assert float(gx.hyperparams(layerwise_decay(rate, 0.75, GROUPS), states[0][2])["learning_rate"]) == 0.25


def test_rates_between_two_ends_are_geometric() -> None:
    tx = discriminative_rates(1e-4, 1e-2, GROUPS)  # 14 layers: the embeddings, 12 blocks, the rest
    updates, _ = tx.update(VIT, tx.init(VIT))
    ends = np.geomspace(1e-4, 1e-2, 14)
    for name, leaf in harness.flat(updates).items():
        np.testing.assert_allclose(leaf, -ends[beit_layer_id(name)], rtol=1e-5)
    # Where every leaf is in a group, the last group has the last rate.
    two = {"a": 1.0, "b": 1.0}
    tx = discriminative_rates(0.25, 1.0, ("a", "b"))
    assert {k: float(u) for k, u in tx.update(two, tx.init(two))[0].items()} == {"a": -0.25, "b": -1.0}


def test_rates_between_two_schedules_may_start_at_zero() -> None:
    up = gx.schedules.linear
    tx = discriminative_rates(up(0.0, 0.04, 2), up(0.0, 4.0, 2), ("a", "b"))
    tree = {"a": 1.0, "b": 1.0, "c": 1.0}
    state, seen = tx.init(tree), []
    for _ in range(3):
        updates, state = tx.update(tree, state)
        seen.append([float(-u) for u in updates.values()])
    np.testing.assert_allclose(seen, [[0, 0, 0], [0.02, 0.2, 2.0], [0.04, 0.4, 4.0]], rtol=1e-6)


SCANNED = {
    "blocks": {"bias": np.ones((2, 12), np.float32), "kernel": np.ones((12, 2, 2), np.float32)},
    "cls": np.ones(2, np.float32),
    "head": np.ones((2, 1), np.float32),
}
STACKS = ("cls", ("blocks/kernel", 0), ("blocks/bias", -1))


def test_the_layers_of_a_scan_have_rates_of_their_own_along_their_axis() -> None:
    """The blocks as one leaf, with the rates that they have one by one."""
    assert layer_scales(SCANNED, 0.75, ("cls", ("blocks/kernel", 0), ("blocks/bias", 1))) == {
        "blocks/bias": [0.75 ** (12 - i) for i in range(12)],
        "blocks/kernel": [0.75 ** (24 - i) for i in range(12)],
        "cls": 0.75**25,
        "head": 1.0,
    }
    same = {"blocks": [SCANNED["blocks"]["kernel"], {"w": np.ones((12, 1))}], "cls": SCANNED["cls"], "head": 1.0}
    groups = ("cls", (r"^blocks", 0))
    assert layer_scales(same, 0.75, groups)["blocks/1/w"] == [wanted(0.75)[f"blocks/{i}/kernel"] for i in range(12)]
    ends = np.geomspace(1e-4, 1e-2, 14)
    tx = gx.chain(scale_by_layer(0.75, groups), discriminative_rates(1e-4, 1e-2, groups))
    updates, _ = jax.jit(tx.update)(same, tx.init(same))
    want = 0.75 ** np.arange(12, 0, -1) * -ends[1:13]
    np.testing.assert_allclose(updates["blocks"][0], np.broadcast_to(want[:, None, None], (12, 2, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["cls"], np.full(2, 0.75**13 * -ends[0]), rtol=1e-5)
    np.testing.assert_allclose(updates["head"], -ends[13], rtol=1e-5)
    last = scale_by_layer(0.5, STACKS)
    bias = last.update(SCANNED, last.init(SCANNED))[0]["blocks"]["bias"]
    np.testing.assert_allclose(bias, np.broadcast_to(0.5 ** np.arange(12, 0, -1), (2, 12)), rtol=1e-6)
    # A mask hides some of the leaves, of which others tell how many layers there are; where none does it is refused.
    tx = gx.masked(scale_by_layer(0.5, groups), {"blocks": [True, False], "cls": True, "head": True})
    np.testing.assert_allclose(tx.update(same, tx.init(same))[0]["cls"], [0.5**13] * 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"groups: expected to see how many layers 'blocks' has along axis 0, got a"):
        gx.masked(scale_by_layer(0.5, groups), {"blocks": False, "cls": True, "head": True}).init(same)


def test_ulmfit_divides_by_2_6() -> None:
    scales = layer_scales(VIT, 1 / 2.6, r"blocks/(\d+)/")
    np.testing.assert_allclose(scales["blocks/9/kernel"], 2.6**-3, rtol=1e-12)


def test_layers_of_several_numbers_count_in_their_order() -> None:
    tree = {"stage2": [1.0], "stage10": [1.0], "stage1": [1.0, 1.0, 1.0], "fc": 1.0}
    scales = layer_scales(tree, 0.5, r"stage(\d+)/(\d+)")
    assert scales == {
        "fc": 1.0,
        "stage1/0": 2**-5,
        "stage1/1": 2**-4,
        "stage1/2": 2**-3,
        "stage10/0": 0.5,
        "stage2/0": 0.25,
    }


def test_layers_from_the_depth_of_the_tree() -> None:
    tree = {"Dense_0": {"bias": 1.0, "kernel": 1.0}, "Dense_10": {"bias": 1.0}, "Dense_2": {"kernel": 1.0}}
    groups = layers_at_depth(tree)
    assert layer_scales(tree, 0.5, groups) == {
        "Dense_0/bias": 0.25,
        "Dense_0/kernel": 0.25,
        "Dense_10/bias": 1.0,
        "Dense_2/kernel": 0.5,
    }
    # Two keys deep; a list keeps its own order; a leaf above that depth is a layer of its own.
    tree = {"body": [{"w": 1.0} for _ in range(11)], "out": 1.0}
    scales = layer_scales(tree, 0.5, layers_at_depth(tree, 2))
    assert [scales[f"body/{i}/w"] for i in (0, 1, 10)] == [0.5**11, 0.5**10, 0.5]
    assert scales["out"] == 1.0


def test_the_layers_of_an_nnx_model() -> None:
    model = nnx.Sequential(*(nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(3)))
    params = nnx.state(model, nnx.Param)
    scales = layer_scales(params, 0.5, r"layers/([01])/")
    assert (scales["layers/0/kernel"], scales["layers/1/bias"], scales["layers/2/kernel"]) == (0.25, 0.5, 1.0)
    assert layer_scales(params, 0.5, layers_at_depth(params, 2)) == scales
    tx = scale_by_layer(0.5, r"layers/([01])/")
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    assert harness.flat(nnx.to_pure_dict(updates))["layers/0/kernel"].tolist() == [[0.25] * 2] * 2


def test_a_layer_keeps_its_number_where_others_are_frozen() -> None:
    tx = gx.selective_transform(
        scale_by_layer(0.5, ("^embed", r"^blocks/(\d+)")), freeze_mask=gx.path_matches("embed|blocks/1")
    )
    tree = {"blocks": [1.0, 1.0, 1.0], "embed": 1.0, "head": 1.0}
    updates, _ = tx.update(tree, tx.init(tree))
    assert [float(u) for u in jax.tree.leaves(updates)] == [0.125, 0.0, 0.5, 0.0, 1.0]


def test_the_decay_can_be_differentiated_and_mapped_over() -> None:
    def total(decay: Any) -> Any:
        tx = scale_by_layer(decay, ("^a", "^b"))
        return tx.update({"a": 1.0, "b": 1.0, "c": 1.0}, tx.init({"a": 1.0, "b": 1.0, "c": 1.0}))[0]["a"]

    np.testing.assert_allclose(jax.grad(total)(0.75), 1.5, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(total)(jnp.array([0.5, 0.25])), [0.25, 0.0625], rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        scale_by_layer(0.75, GROUPS),
        layerwise_decay(0.1, 0.75, list(GROUPS)),
        discriminative_rates(0.1, 1.0, GROUPS[1]),
        scale_by_layer(0.75, STACKS),
    ],
)
def test_they_are_values(tx: Any) -> None:
    assert pickle.loads(pickle.dumps(tx)) == tx == gx.from_config(json.loads(json.dumps(gx.to_config(tx))))
    assert eval(repr(tx), {"transfer": gx.transfer}) == tx
    assert jax.tree.map(lambda x: x, tx) == tx


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scale_by_layer(0.0, "a"), ValueError, "decay: expected a real number > 0, got 0.0"),
        (lambda: scale_by_layer(0.5, ()), ValueError, r"groups: expected at least one regular expression, got \(\)"),
        (
            lambda: scale_by_layer(0.5, 3),
            TypeError,
            "groups: expected a regular expression or a sequence of them, or of",
        ),
        (lambda: scale_by_layer(0.5, ("a", 3)), TypeError, "groups: expected a regular expression or a sequence"),
        (lambda: scale_by_layer(0.5, "("), ValueError, "groups: expected a regular expression"),
        (lambda: scale_by_layer(0.5, (("a", 0.5),)), TypeError, "groups: axis of 'a': expected an integer, got 0.5"),
        (lambda: scale_by_layer(0.5, ("a", ("b", 0, 1))), TypeError, r"or of pairs \(regular expression, axis\), got"),
        (
            lambda: scale_by_layer(0.5, (("blocks", 0),)).init({"blocks": 1.0}),
            ValueError,
            r"groups: expected a layer for each index along axis 0 at 'blocks', which 'blocks' matches, got shape \(\)",
        ),
        (
            lambda: scale_by_layer(0.5, (("blocks", 0),)).init(SCANNED),
            ValueError,
            r"groups: expected 2 layers along axis 0 at 'blocks/kernel', as at 'blocks/bias', got shape \(12, 2, 2\)",
        ),
        (
            lambda: scale_by_layer(0.5, "stem").init(VIT),
            ValueError,
            "groups: expected 'stem' to be the first that matches some path, got the paths blocks/0/kernel",
        ),
        (
            lambda: scale_by_layer(0.5, ("blocks", "blocks/3")).init(VIT),
            ValueError,
            "expected 'blocks/3' to be the first",
        ),
        (lambda: layer_scales(VIT, 0.5, "(cls)"), ValueError, r"expected the groups of '\(cls\)' to be numbers"),
        (lambda: discriminative_rates(-0.1, 1.0, "a"), ValueError, "first: expected a real number >= 0"),
        (lambda: discriminative_rates(0.1, "much", "a"), TypeError, "last: expected a real number or a schedule"),
        (lambda: layerwise_decay(None, 0.5, "a"), TypeError, "learning_rate: expected"),
        (lambda: layers_at_depth(VIT, 0), ValueError, "depth: expected an integer >= 1, got 0"),
    ],
)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


NET = {
    "conv": {"kernel": np.float32([[1.0, -2.0], [0.5, 3.0]])},
    "bn": {"bias": np.float32([0.25, -0.5]), "scale": np.float32([1.0, 2.0])},
    "dense": {"bias": np.float32([1.5]), "kernel": np.float32([[2.0], [-1.0]])},
}
SLOPES = jax.tree.map(lambda p: np.float32(0.3 * p + 0.1), NET)
KERNELS = ~gx.path_matches("(^|/)bn/|bias")


def test_lars_leaves_out_biases_and_norms_as_simclr_does() -> None:
    """SimCLR's LARSOptimizer: no decay and a ratio of 1 for what matches, the rate inside the momentum."""
    tx = gx.lars(0.3, weight_decay=1e-2, mask=KERNELS, trust_ratio_mask=KERNELS, trust_coefficient=0.001, momentum=0.9)
    state, params, updates = tx.init(NET), NET, None
    w, v = harness.flat(NET), dict.fromkeys(harness.flat(NET), 0.0)
    for _ in range(3):
        updates, state = tx.update(SLOPES, state, params)
        params = gx.apply_updates(params, updates)
        for name, g in harness.flat(SLOPES).items():
            ratio = 1.0
            if "kernel" in name:
                g = g + 1e-2 * w[name]
                ratio = 0.001 * np.linalg.norm(w[name]) / np.linalg.norm(g)
            v[name] = 0.9 * v[name] + 0.3 * ratio * g
            w[name] = w[name] - v[name]
    for name, leaf in harness.flat(params).items():
        np.testing.assert_allclose(leaf, w[name], rtol=1e-5)


def test_lamb_leaves_out_biases_and_norms_as_simclr_does() -> None:
    """No decay and a ratio of 1 for what matches."""
    tx = gx.lamb(0.1, eps=1e-6, weight_decay=1e-2, mask=KERNELS, trust_ratio_mask=KERNELS)
    state, params = tx.init(NET), NET
    w = harness.flat(NET)
    m, v = (dict.fromkeys(w, 0.0) for _ in range(2))
    for t in range(1, 4):
        updates, state = tx.update(SLOPES, state, params)
        params = gx.apply_updates(params, updates)
        for name, g in harness.flat(SLOPES).items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            u = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-6)
            if "kernel" in name:
                u = u + 1e-2 * w[name]
                u = u * np.linalg.norm(w[name]) / np.linalg.norm(u)
            w[name] = w[name] - 0.1 * u
    for name, leaf in harness.flat(params).items():
        np.testing.assert_allclose(leaf, w[name], rtol=1e-5)
