"""The state of a transformation as codes: what is coded, how it goes on, and what is refused."""

from __future__ import annotations

import collections
import dataclasses
import json
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codec_checks import P, same_codes

import gradxform as gx

PARAMS = {"w": jnp.ones((64, 96)), "v": jnp.ones((96, 64)), "b": jnp.ones(64)}
KERNELS = gx.ndim_at_least(2)
RANDOM = np.random.RandomState(0)
GRADS = [jax.tree.map(lambda p: jnp.float32(0.1 * RANDOM.standard_normal(p.shape)), PARAMS) for _ in range(4)]
STATE = P.compress_state(gx.adam(0.1), "fp8").init(PARAMS)


def hows(tx: Any, params: Any = PARAMS) -> dict[str, Any]:
    """How each leaf of a fresh state is coded, by its path."""
    state = jax.eval_shape(tx.init, params)
    found = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, P.Coded))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.how
        for path, leaf in found
        if isinstance(leaf, P.Coded)
    }


def run(tx: Any, steps: int = 4, state: Any = None) -> tuple[Any, Any]:
    state, update, updates = tx.init(PARAMS) if state is None else state, jax.jit(tx.update), None
    for grads in GRADS[:steps]:
        updates, state = update(grads, state, PARAMS)
    return updates, state


def test_large_leaves_of_floats_are_coded_in_the_structure_of_the_state() -> None:
    plain = gx.adam(0.1).init(PARAMS)
    assert jax.tree.structure(P.decompress(STATE)) == jax.tree.structure(plain)
    assert set(hows(P.compress_state(gx.adam(0.1), "fp8"))) == {"0/mu/v", "0/mu/w", "0/nu/v", "0/nu/w"}
    assert STATE[0].mu["b"].dtype == jnp.float32 and STATE[0].count.dtype == jnp.int32
    assert STATE[0].mu["w"].code.shape == (64, 96) and STATE[0].mu["w"].code.dtype == jnp.float8_e5m2
    # One counter for all.
    assert [leaf.step is not None for leaf in (STATE[0].mu["v"], STATE[0].mu["w"], STATE[0].nu["v"])] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: gx.adamw(0.1),
        lambda: optax.adamw(0.1),
        lambda: gx.amsgrad(0.1),
        lambda: optax.amsgrad(0.1),
        lambda: gx.rmsprop(0.1, centered=True),
        lambda: optax.rmsprop(0.1, centered=True),
        lambda: optax.adagrad(0.1),
        lambda: gx.adafactor(0.1, min_dim_size_to_factor=8),
        lambda: optax.contrib.prodigy(),
        lambda: optax.contrib.ademamix(0.1),
        lambda: optax.adan(0.1),
        lambda: optax.contrib.schedule_free_adamw(0.1),
        lambda: gx.accumulate(gx.skip_nonfinite(gx.chain(gx.clip(1.0), gx.masked(gx.lamb(0.1), KERNELS)), 2), 1),
        lambda: gx.partition({"a": gx.adam(0.1), "b": gx.lion(0.1)}, {"w": "a", "v": "b", "b": "a"}),
    ],
    ids=lambda make: "",
)
def test_what_is_never_negative_is_known(make: Any) -> None:
    """By trial: a leaf that is taken for one of squares never has a number below 0, and every other has one."""
    tx, state = make(), None
    signs: dict[str, bool] = {}
    state = tx.init(PARAMS)
    for grads in GRADS:
        _, state = tx.update(grads, state, PARAMS)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            signs[name] = signs.get(name, False) or bool(jnp.any(jnp.asarray(leaf) < 0))
    coded = hows(P.compress_state(tx, "bf16", min_size=8))
    assert coded
    for name, how in coded.items():
        # What optax keeps of the params themselves is above 0 here by chance, and so are plain copies.
        unsure = any(part in name for part in ("z/", "params0", "total"))
        assert how.nonnegative != signs[name] or (unsure and not how.nonnegative), name


def test_a_param_with_the_name_of_a_field_is_none() -> None:
    Attention = collections.namedtuple("Attention", ["q", "v"])
    params = {"attention": Attention(jnp.ones((64, 64)), jnp.ones((64, 64)))}
    found = hows(P.compress_state(optax.adam(0.1), "fp8"), params)
    assert {name: how.nonnegative for name, how in found.items()} == {
        "0/mu/attention/q": False,
        "0/mu/attention/v": False,
        "0/nu/attention/q": True,
        "0/nu/attention/v": True,
    }


def test_pairs_and_where_choose_by_the_paths_of_the_state() -> None:
    tx = P.compress_state(gx.adam(0.1), [("nu", "bf16"), (gx.path_matches("/v$"), None), ("", P.fp8(7.0))])
    assert {name: how.codec for name, how in hows(tx).items()} == {
        "0/nu/v": P.bf16(),
        "0/nu/w": P.bf16(),
        "0/mu/w": P.fp8(7.0),
    }
    assert set(hows(P.compress_state(gx.adam(0.1), "fp8", where="mu"))) == {"0/mu/v", "0/mu/w"}
    assert set(hows(P.compress_state(gx.adam(0.1), "fp8", min_size=64))) >= {"0/mu/b", "0/nu/b"}


@pytest.mark.parametrize("name", ["bf16", "fp8", "int8_blockwise", "int4_blockwise"])
def test_there_and_back_and_on(name: str) -> None:
    """A checkpoint moves both ways, and a run that goes on from one is the same bit for bit."""
    tx = P.compress_state(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1)), name)
    updates, state = run(tx)
    again = P.compress(P.decompress(state), state)
    assert jax.tree.structure(again) == jax.tree.structure(state) and same_codes(again, state)
    kept = pickle.loads(pickle.dumps(state))
    for other in (again, kept):
        on, _ = run(tx, 1, other)
        assert all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(on), jax.tree.leaves(run(tx, 1, state)[0]), strict=True)
        )
    exact, _ = run(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1)))
    error = jnp.linalg.norm(updates["w"] - exact["w"]) / jnp.linalg.norm(exact["w"])
    assert error < {"bf16": 0.01, "fp8": 0.15, "int8_blockwise": 0.08, "int4_blockwise": 0.5}[name]


@pytest.mark.parametrize("name", ["bf16", "fp8", "int8_blockwise", "int4_blockwise"])
def test_a_step_that_is_skipped_keeps_every_code(name: str) -> None:
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), GRADS[0])
    for tx in (
        gx.skip_nonfinite(P.compress_state(gx.adam(0.1), name), 3),
        P.compress_state(gx.skip_nonfinite(gx.adam(0.1), 3), name),
    ):
        _, state = run(tx, 2)
        _, after = jax.jit(tx.update)(bad, state, PARAMS)
        codes = [
            [
                leaf.code
                for leaf in jax.tree.leaves(s, is_leaf=lambda x: isinstance(x, P.Coded))
                if isinstance(leaf, P.Coded)
            ]
            for s in (state, after)
        ]
        assert len(codes[0]) == 4 and same_codes(*codes)


def test_it_is_a_value_and_shows_what_is_inside() -> None:
    tx = P.compress_state(gx.adamw(gx.schedules.linear(0.5, 0.0, 4)), [("nu", P.bf16()), ("", "fp8")], where="mu|nu")
    assert gx.from_config(json.loads(json.dumps(gx.to_config(tx)))) == tx == pickle.loads(pickle.dumps(tx))
    assert eval(repr(tx), {**vars(gx), "precision": P}) == tx
    _, state = run(tx, 2)
    assert gx.hyperparams(tx, state)["tx/learning_rate"] == 0.25
    recorded = P.compress_state(gx.chain(gx.record_norms(), gx.adam(0.1)), "fp8")
    assert gx.metrics(run(recorded, 1)[1])["param_norm"] > 0


def test_a_population_of_rates_is_trained_at_once() -> None:
    def train(rate: Any) -> Any:
        return run(P.compress_state(gx.adamw(rate), "int8_blockwise"), 2)[0]

    both = jax.vmap(train)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(both["w"][1], train(0.2)["w"], rtol=1e-5)
    txs = jax.vmap(lambda rate: P.compress_state(gx.adamw(rate), "fp8"))(jnp.array([0.1, 0.2]))
    states = jax.vmap(lambda tx: tx.init(PARAMS))(txs)
    assert P.decompress(states)[0].mu["w"].shape == (2, 64, 96)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: P.compress_state(gx.adam(0.1), "fp9"), ValueError, "codec: expected one of 'bf16', 'fp8', 'int4_"),
        (
            lambda: P.compress_state(gx.adam(0.1), 8),
            TypeError,
            "codec: expected a codec such as precision.bf16(), or its",
        ),
        (lambda: P.compress_state(gx.adam(0.1), [("mu",)]), TypeError, "codec[0]: expected a pair (selector, codec or"),
        (lambda: P.compress_state(gx.adam(0.1), [("mu", "fp9")]), ValueError, "codec[0]: expected one of"),
        (
            lambda: P.compress_state(gx.adam(0.1), where="layer9").init(PARAMS),
            ValueError,
            "where: expected it to select a leaf of the state, got none of the paths 0/count, 0/mu/b, 0/mu/v",
        ),
        (
            lambda: P.compress_state(gx.adam(0.1), [("layer9", "fp8")]).init(PARAMS),
            ValueError,
            "codec[0]: expected it to",
        ),
        (
            lambda: P.compress_state(gx.adam(0.1), where="count").init(PARAMS),
            TypeError,
            "where: expected it to select leaves of floating-point numbers, got int32 at '0/count'",
        ),
        (
            lambda: P.compress_state(gx.adam(0.1), "bf16").update(GRADS[0], STATE, PARAMS),
            ValueError,
            "state: expected '0/mu/v' to be stored by precision.bf16(rounding='stochastic'), got precision.fp8(top=3.5",
        ),
        (
            lambda: P.compress_state(gx.adam(0.1), "fp8", seed=1).update(GRADS[0], STATE, PARAMS),
            ValueError,
            "state: expected codes of seed 1, got seed 0 at '0/mu/v'",
        ),
        (
            lambda: P.compress_state(gx.adam(0.1), "fp8").update(GRADS[0], gx.adam(0.1).init(PARAMS), PARAMS),
            ValueError,
            "got no codec; decompress(state) and compress(state, tx.init(params)) move it",
        ),
        (lambda: P.compress(gx.sgd(0.1).init(PARAMS), STATE), ValueError, "state and like do not fit"),
    ],
)
def test_what_is_wrong_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_codes_of_another_version_are_refused() -> None:
    old = jax.tree.map(
        lambda x: dataclasses.replace(x, how=dataclasses.replace(x.how, version=0)) if isinstance(x, P.Coded) else x,
        STATE,
        is_leaf=lambda x: isinstance(x, P.Coded),
    )
    with pytest.raises(ValueError, match="expected codes of version 2, got version 0 at '0/mu/v'"):
        P.compress_state(gx.adam(0.1), "fp8").update(GRADS[0], old, PARAMS)


@pytest.mark.parametrize(
    "codec, limit", [("bf16", 4.01), ("fp8", 2.001), ("int8_blockwise", 2.02), ("int4_blockwise", 1.05)]
)
@pytest.mark.parametrize(
    "name, share", [("gx", 1.0), ("optax", 1.0), ("chain", 1.0), ("lamb", 1.0), ("lion", 0.5), ("adafactor", 0.5)]
)
def test_bytes_a_parameter(name: str, share: float, codec: str, limit: float) -> None:
    make = {
        "gx": gx.adamw,
        "optax": optax.adamw,
        "lamb": gx.lamb,
        "lion": gx.lion,
        "adafactor": gx.adafactor,
        "chain": lambda rate: gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(rate)),
    }[name]
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32), "u": jax.ShapeDtypeStruct((4096, 512), jnp.float32)}
    found = P.memory(jax.eval_shape(P.compress_state(make(0.1), codec).init, params), params)
    assert found.per_param <= limit * share
    assert P.memory(jax.eval_shape(gx.adamw(0.1).init, params), params).per_param == pytest.approx(8, abs=1e-4)
