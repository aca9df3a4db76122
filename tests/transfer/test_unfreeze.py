"""Gradual unfreezing: what is frozen does not move, and what is thawed trains as if it had just begun."""

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
from gradxform.transfer import gradual_unfreeze

PARAMS = {
    "body": {"bias": jnp.array([-0.0, 1.5]), "kernel": jnp.array([[1.0, -2.0]], jnp.bfloat16)},
    "head": jnp.array([0.5, 2.0]),
    "stem": jnp.array([3.0]),
}
SCHEDULE = (("^head", 0), ("^body", 2), ("^stem", None))


def gradient(t: int) -> Any:
    return jax.tree.map(lambda p: (jnp.cos(p.astype(jnp.float32) * (t + 1)) + 0.3).astype(p.dtype), PARAMS)


def run(tx: Any, steps: int = 5, gradient: Any = gradient, params: Any = PARAMS) -> list[Any]:
    step = jax.jit(lambda g, s, p: tx.update(g, s, p))
    state, seen = tx.init(params), []
    for t in range(steps):
        updates, state = step(gradient(t), state, params)
        params = gx.apply_updates(params, updates)
        seen.append((updates, state, params))
    assert step._cache_size() == 1
    return seen


def only(tree: Any, *names: str) -> Any:
    return {name: tree[name] for name in names}


def test_each_part_trains_from_its_own_step_as_if_it_began_there() -> None:
    adamw = gx.adamw(gx.schedules.linear(0.1, 0.0, 8), weight_decay=0.1)
    seen = run(gradual_unfreeze(adamw, SCHEDULE))
    head = run(adamw, 5, lambda t: only(gradient(t), "head"), only(PARAMS, "head"))
    body = run(adamw, 3, lambda t: only(gradient(t + 2), "body"), only(PARAMS, "body"))
    for t, (updates, _, params) in enumerate(seen):
        assert harness.same_bytes(only(params, "stem"), only(PARAMS, "stem"))
        assert harness.distance(only(updates, "head"), head[t][0]) < 1e-7
        if t < 2:
            assert harness.same_bytes(only(params, "body"), only(PARAMS, "body"))
            assert all(np.signbit(u).all() and not u.any() for u in map(np.asarray, jax.tree.leaves(updates["body"])))
        else:
            assert harness.distance(only(updates, "body"), body[t - 2][0]) < 1e-7
    assert harness.distance(seen[-1][2]["body"], PARAMS["body"]) > 0.05


def test_the_state_of_a_frozen_part_does_not_move_and_there_is_none_for_what_never_trains() -> None:
    tx = gradual_unfreeze(gx.adam(0.1), SCHEDULE)
    start = tx.init(PARAMS)
    assert list(start.inner_states) == ["0", "2"]
    seen = run(tx)
    assert harness.same_bytes(seen[1][1].inner_states["2"], start.inner_states["2"])
    assert [int(state.inner_states["2"][0].count) for _, state, _ in seen] == [0, 0, 1, 2, 3]
    assert [int(state.inner_states["0"][0].count) for _, state, _ in seen] == [1, 2, 3, 4, 5]
    assert len(jax.tree.leaves(start)) == 1 + (1 + 2) + (1 + 4)


STACKED = ((("^blocks/", 0), (None, 1, 0, 1)), (("^heads", -1), (1, 0)))
LAYERED = {"blocks": {"kernel": jnp.arange(24.0).reshape(4, 2, 3), "scale": jnp.ones(4)}, "heads": jnp.ones((2, 2))}


def test_layers_of_a_stacked_leaf_train_from_their_own_steps() -> None:
    """As the same layers do in leaves of their own."""

    def apart(tree: Any) -> Any:
        return {
            "blocks": [jax.tree.map(lambda x, i=i: x[i], tree["blocks"]) for i in range(4)],
            "heads": [tree["heads"][:, i] for i in range(2)],
        }

    def gradient(t: int) -> Any:
        found = jax.tree.map(lambda x: jnp.cos(x * (t + 1)) + 0.3, LAYERED)
        found["blocks"]["kernel"] = found["blocks"]["kernel"].at[0].set(jnp.nan)  # it never trains
        return found

    steps = [*(f"^blocks/{i}/" for i in range(4)), "^heads/0", "^heads/1"]
    schedule = tuple(zip(steps, (None, 1, 0, 1, 1, 0), strict=True))
    adamw, clip = gx.adamw(0.1, weight_decay=0.1), gx.clip_by_global_norm(1.0)
    ours = run(gradual_unfreeze(adamw, STACKED, before=clip), 3, gradient, LAYERED)
    theirs = run(gradual_unfreeze(adamw, schedule, before=clip), 3, lambda t: apart(gradient(t)), apart(LAYERED))
    for (updates, state, params), (their_updates, _, their_params) in zip(ours, theirs, strict=True):
        assert harness.distance(apart(updates), their_updates) < 1e-6
        assert harness.distance(apart(params), their_params) < 1e-6
        assert [
            len(mu["blocks"]["kernel"]) for mu in (state.inner_states["0"][0].mu, state.inner_states["1"][0].mu)
        ] == [1, 2]
    assert harness.same_bytes(ours[0][2]["blocks"]["kernel"][:2], LAYERED["blocks"]["kernel"][:2])
    # A state starts from shapes too.
    tx = gradual_unfreeze(adamw, STACKED, before=clip)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), LAYERED)
    assert jax.tree.map(jnp.shape, tx.init(shapes)) == jax.tree.map(jnp.shape, tx.init(LAYERED))


def test_a_clip_before_measures_what_trains_and_nan_in_what_does_not_is_harmless() -> None:
    def gradient(t: int) -> Any:
        return {
            "body": jnp.array([jnp.nan if t < 2 else 30.0]),
            "head": jnp.array([40.0]),
            "stem": jnp.array([jnp.nan]),
        }

    params = {"body": jnp.array([1.0]), "head": jnp.array([1.0]), "stem": jnp.array([1.0])}
    tx = gradual_unfreeze(gx.sgd(1.0), SCHEDULE, before=gx.chain(gx.clip_by_global_norm(1.0), gx.record_norms()))
    got = [(float(u["body"][0]), float(u["head"][0]), float(u["stem"][0])) for u, _, _ in run(tx, 3, gradient, params)]
    np.testing.assert_allclose(got, [(0, -1, 0), (0, -1, 0), (-0.6, -0.8, 0)], rtol=1e-6)
    assert np.isfinite(list(gx.metrics(run(tx, 1, gradient, params)[0][1]).values())).all()


def test_a_schedule_of_the_whole_run_goes_behind() -> None:
    rate = gx.schedules.linear(1.0, 0.0, 4)
    tx = gx.chain(gradual_unfreeze(gx.sgd(1.0), SCHEDULE), gx.scale_by_schedule(rate))
    seen = run(tx, 4, lambda t: jax.tree.map(jnp.ones_like, PARAMS))
    assert [float(u["head"][0]) for u, _, _ in seen] == [-1.0, -0.75, -0.5, -0.25]
    assert [float(u["body"]["bias"][0]) for u, _, _ in seen] == [0.0, 0.0, -0.5, -0.25]
    assert harness.same_bytes(seen[1][2]["body"], PARAMS["body"])


def test_outside_of_jit_and_with_an_optimizer_of_optax_it_is_the_same() -> None:
    import optax

    ours, theirs = (gradual_unfreeze(tx, SCHEDULE) for tx in (gx.adam(0.1), optax.adam(0.1)))
    state, params = ours.init(PARAMS), PARAMS
    for t in range(3):
        updates, state = ours.update(gradient(t), state, params)
        params = gx.apply_updates(params, updates)
    assert harness.distance(params, run(ours, 3)[-1][2]) < 1e-6
    assert harness.distance(params, run(theirs, 3)[-1][2]) < 1e-2  # optax computes in bfloat16 where params are


def test_in_an_nnx_optimizer() -> None:
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1)))
    optimizer = nnx.Optimizer(model, gradual_unfreeze(gx.adamw(0.1), (("layers/1/", 0), ("", 1))), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        optimizer.update(model, nnx.grad(lambda model: model(jnp.ones((4, 2))).sum())(model))

    start = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    step(model, optimizer)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert harness.same_bytes(after["layers"][0], start["layers"][0])
    assert harness.distance(after["layers"][1], start["layers"][1]) > 0.05
    step(model, optimizer)
    assert harness.distance(nnx.to_pure_dict(nnx.state(model, nnx.Param))["layers"][0], start["layers"][0]) > 0.05


def test_it_is_a_value() -> None:
    tx = gradual_unfreeze(gx.adam(0.1), SCHEDULE, before=gx.clip(1.0))
    assert pickle.loads(pickle.dumps(tx)) == tx == gx.from_config(json.loads(json.dumps(gx.to_config(tx))))
    assert eval(repr(tx), {"transfer": gx.transfer} | vars(gx)) == tx
    assert tx != tx.replace(schedule=(("", 0),))
    stacked = tx.replace(schedule=STACKED)
    assert (
        pickle.loads(pickle.dumps(stacked)) == stacked == gx.from_config(json.loads(json.dumps(gx.to_config(stacked))))
        and eval(repr(stacked), {"transfer": gx.transfer} | vars(gx)) == stacked
    )
    assert gx.hyperparams(tx, tx.init(PARAMS))["optimizer/2/learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradual_unfreeze(3, SCHEDULE), TypeError, "optimizer: expected a transformation, got 3"),
        (
            lambda: gradual_unfreeze(gx.sgd(0.1), SCHEDULE, before=3),
            TypeError,
            "before: expected a transformation, got 3",
        ),
        (lambda: gradual_unfreeze(gx.sgd(0.1), {"a": 1}), TypeError, "schedule: expected pairs"),
        (lambda: gradual_unfreeze(gx.sgd(0.1), ()), ValueError, "schedule: expected at least one pair"),
        (
            lambda: gradual_unfreeze(gx.sgd(0.1), (("a", -1),)),
            ValueError,
            "schedule: step of 'a': expected an integer >=",
        ),
        (lambda: gradual_unfreeze(gx.sgd(0.1), (("a", 1.5),)), TypeError, "schedule: step of 'a': expected an integer"),
        (lambda: gradual_unfreeze(gx.sgd(0.1), (("(", 1),)), ValueError, "schedule: expected a regular expression"),
        (lambda: gradual_unfreeze(gx.sgd(0.1), ((("a", 0), 1),)), TypeError, "schedule: expected pairs"),
        (lambda: gradual_unfreeze(gx.sgd(0.1), ((("a", 0), ()),)), TypeError, "schedule: expected pairs"),
        (
            lambda: gradual_unfreeze(gx.sgd(0.1), ((("a", 0.5), (1, 2)),)),
            TypeError,
            "schedule: axis of 'a': expected an",
        ),
        (
            lambda: gradual_unfreeze(gx.sgd(0.1), ((("", 0), (0, 1)),)).init(PARAMS),
            ValueError,
            r"schedule: expected 2 layers along axis 0 at 'body/kernel', as many as '' has steps, got shape \(1, 2\)",
        ),
        (
            lambda: gradual_unfreeze(gx.sgd(0.1), (("head", 0),)).init(PARAMS),
            ValueError,
            "schedule: expected a pair that matches 'body/bias', got none",
        ),
        (
            lambda: gradual_unfreeze(gx.sgd(0.1), (("", 0), ("head", 1))).init(PARAMS),
            ValueError,
            "schedule: expected 'head' to be the first that matches some path",
        ),
    ],
)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
