"""What holds of every chain: drawn at random from all bricks, recipes and optax's, over trees of every kind of leaf."""

import copy
import json
import pickle
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, assume, given, settings

import gradxform as gx

pytestmark = pytest.mark.long

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def tree(*dtypes: Any) -> Any:
    """A nested tree whose leaves take turns in these dtypes, with None and a leaf without elements."""
    shapes = {"body": {"kernel": (2, 3), "bias": (3,)}, "stack": [(2, 2, 2), None], "empty": (0, 3), "head": ()}
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    made = [jax.random.normal(jax.random.key(i), shape, dtypes[i % len(dtypes)]) for i, shape in enumerate(leaves)]
    return jax.tree.unflatten(treedef, made)


TREES = {
    "float32": tree("float32"),
    "bfloat16": tree("bfloat16"),
    "float16": tree("float16"),
    "mixed": tree("float32", "bfloat16", "float16"),
    "complex64": tree("complex64", "float32"),
}
SCHEDULES = st.one_of(
    st.builds(gx.schedules.constant, st.floats(1e-3, 0.5)),
    st.builds(gx.schedules.cosine, st.floats(1e-3, 0.5), st.integers(1, 100), st.floats(0, 1e-3)),
    st.builds(gx.schedules.step, st.floats(1e-3, 0.5), st.floats(0.1, 1), st.integers(1, 100)),
    st.builds(
        gx.schedules.one_cycle, st.floats(1e-3, 0.5), st.integers(2, 100), anneal=st.sampled_from(("cosine", "linear"))
    ),
    st.builds(
        lambda n, peak: gx.schedules.warmup(n, gx.schedules.inverse_sqrt(peak, n + 1)),
        st.integers(0, 10),
        st.floats(1e-3, 0.5),
    ),
)
RATES = st.one_of(st.floats(1e-3, 0.5), SCHEDULES)
UNIT = st.floats(0, 0.99)
EPS = st.floats(1e-8, 1e-2)
DTYPES = st.sampled_from((None, "bfloat16", "float32"))
FLAGS = st.booleans()
MASKS = st.one_of(
    st.just(None),
    st.booleans(),
    st.builds(gx.ndim_at_least, st.integers(0, 3)),
    st.builds(gx.path_matches, st.sampled_from(("body", "bias|head", "^stack/0$", "nothing"))),
    st.builds(
        lambda n, text: gx.ndim_at_least(n) & ~gx.path_matches(text) | gx.path_matches("head"),
        st.integers(0, 3),
        st.sampled_from(("body", "bias")),
    ),
)
SOME_MASKS = MASKS.filter(lambda mask: mask is not None)

BRICKS = st.one_of(
    st.builds(gx.scale, st.floats(-2, 2)),
    st.builds(gx.scale_by_learning_rate, RATES, flip_sign=FLAGS),
    st.builds(gx.scale_by_schedule, SCHEDULES),
    st.builds(gx.scale_by_param_block_rms, EPS),
    st.builds(gx.trace, UNIT, FLAGS, DTYPES),
    st.builds(gx.ema, UNIT, FLAGS, DTYPES),
    st.builds(gx.scale_by_rms, UNIT, EPS, EPS, FLAGS, FLAGS),
    # Without a memory the variance is a difference of equal squares: nothing but rounding.
    st.builds(gx.scale_by_stddev, st.floats(0.1, 0.99), st.floats(1e-3, 1e-1), EPS, FLAGS, FLAGS),
    st.builds(gx.scale_by_rss, st.floats(0, 1), EPS),
    st.builds(gx.scale_by_adam, UNIT, UNIT, EPS, EPS, DTYPES, nesterov=FLAGS),
    st.builds(gx.scale_by_amsgrad, UNIT, UNIT, EPS, EPS, DTYPES, FLAGS, FLAGS, max_of_corrected=FLAGS),
    st.builds(gx.scale_by_belief, UNIT, UNIT, st.floats(1e-3, 1e-1), st.floats(1e-3, 1e-1), nesterov=FLAGS),
    st.builds(gx.scale_by_yogi, UNIT, UNIT, EPS, EPS, bias_correction=FLAGS, initialize_mu=FLAGS),
    st.builds(gx.scale_by_radam, UNIT, st.floats(0.1, 0.99), EPS, EPS, nesterov=FLAGS),
    st.builds(gx.scale_by_nadam, UNIT, UNIT, EPS, EPS, DTYPES),
    st.builds(gx.scale_by_lion, UNIT, UNIT, DTYPES),
    st.builds(
        gx.scale_by_factored_rms,
        FLAGS,
        st.floats(0.1, 1),
        min_dim_size_to_factor=st.sampled_from((2, 128)),
        factored_axes=st.sampled_from(("largest", "last")),
        clamp_epsilon=FLAGS,
    ),
    st.builds(gx.scale_by_trust_ratio, EPS, st.floats(0, 1), EPS, weight_decay=EPS),
    st.builds(gx.add_decayed_weights, st.floats(0, 0.5), MASKS),
    st.builds(gx.add_noise, st.floats(0, 0.5), st.floats(0, 1), st.integers(0, 9)),
    st.builds(gx.centralize, st.sampled_from((0, -1))),
    st.builds(gx.clip, st.floats(0, 2)),
    st.builds(gx.clip_by_global_norm, st.floats(0, 2)),
    st.builds(gx.clip_by_block_rms, st.floats(0.1, 2)),
    st.builds(gx.adaptive_grad_clip, st.floats(0, 1)),
    st.builds(gx.identity),
    st.builds(gx.set_to_zero),
    st.builds(gx.record_norms),
    st.builds(gx.freeze, SOME_MASKS),
)
RECIPES = st.one_of(
    st.builds(gx.sgd, RATES, st.one_of(st.none(), UNIT), FLAGS, DTYPES, st.one_of(st.none(), RATES), MASKS),
    st.builds(gx.adamw, RATES, UNIT, UNIT, EPS, EPS, DTYPES, RATES, MASKS, nesterov=FLAGS),
    st.builds(gx.rmsprop, RATES, UNIT, EPS, momentum=st.one_of(st.none(), UNIT), rate_in_momentum=FLAGS),
    st.builds(gx.lamb, RATES, UNIT, UNIT, EPS, weight_decay=RATES, mask=MASKS, trust_ratio_mask=MASKS),
    st.builds(gx.lars, RATES, RATES, MASKS, momentum=UNIT),
    st.builds(
        gx.adafactor,
        RATES,
        min_dim_size_to_factor=st.just(2),
        momentum=st.one_of(st.none(), UNIT),
        dtype_momentum=st.sampled_from(("float32", "bfloat16")),
        relative_step=FLAGS,
    ),
    st.builds(gx.adabelief, RATES, eps=st.floats(1e-3, 1e-1)),
    st.builds(gx.adagrad, RATES),
    st.builds(gx.nadamw, RATES, momentum_decay=st.one_of(st.none(), EPS)),
)
THEIRS = st.sampled_from(
    [
        optax.adam(0.1, eps=1e-3),
        optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9),
        optax.clip_by_global_norm(0.5),
        optax.scale_by_rms(eps=1e-3),
        optax.add_decayed_weights(0.1),
        optax.ema(0.9),
        optax.scale(0.5),
        optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    ]
)


LABELS = {"body": "a", "empty": "a", "head": "b", "stack": ["b", None]}


def combined(inner: Any) -> Any:
    """Chains and other combinators of what ``inner`` draws."""
    return st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: gx.chain(*parts)),
        st.lists(inner, max_size=3).map(
            lambda parts: gx.named_chain(*((f"part {i}", tx) for i, tx in enumerate(parts)))
        ),
        st.builds(gx.masked, inner, SOME_MASKS),
        st.builds(gx.selective_transform, inner, freeze_mask=SOME_MASKS),
        st.builds(gx.accumulate, inner, st.integers(1, 3)),
        st.builds(gx.skip_nonfinite, inner, st.integers(0, 3), raise_in_jit=st.just(False)),
        st.builds(lambda a, b: gx.partition({"a": a, "b": b}, LABELS), inner, inner),
    )


OURS = st.recursive(st.one_of(BRICKS, RECIPES), combined, max_leaves=4)
ANY = st.lists(st.recursive(st.one_of(BRICKS, RECIPES, THEIRS), combined, max_leaves=3), min_size=1, max_size=3).map(
    lambda parts: gx.chain(*parts)
)


def kinds(tree: Any) -> Any:
    # A typed key is never weakly typed and has no such attribute.
    return jax.tree.structure(tree), [
        (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in jax.tree.leaves(tree)
    ]


def check_close(a: Any, b: Any, scale: float) -> None:
    """Nearly the same numbers: a program may round in another order, by a few units of its last place."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert (jax.random.key_data(x) == jax.random.key_data(y)).all()
        elif x.size:
            unit = scale * float(jnp.finfo(x.dtype).eps) if jnp.issubdtype(x.dtype, jnp.inexact) else 0.0
            x, y = (np.asarray(z, np.complex128) for z in (x, y))
            top = np.max(np.abs(np.where(np.isfinite(x), x, 0)))
            np.testing.assert_allclose(x, y, rtol=unit, atol=unit * top)


# A seed for each kind of tree, so that the two workers share them.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name.endswith("float16") else ()) for name in TREES]
)
def test_a_chain_trains(name: str) -> None:
    """Structure, shapes and dtypes stay; jit gives what eager gives; the second call does not compile again."""
    params = TREES[name]
    grads = jax.tree.map(lambda p: (0.5 * p + 0.1).astype(p.dtype), params)

    @settings(SETTINGS, max_examples=6)
    @given(ANY)
    def check(tx: gx.Transformation) -> None:
        state = tx.init(params)
        traces = []

        @jax.jit
        def update(grads: Any, state: Any, params: Any) -> Any:
            traces.append(1)
            return tx.update(grads, state, params)

        first = update(grads, state, params)
        assert kinds(first) == kinds((grads, state))
        second = update(first[0], first[1], params)
        assert kinds(second) == kinds(first)
        assert len(traces) == 1
        eager = tx.update(grads, state, params)
        assert kinds(eager) == kinds((grads, state))
        check_close(first, eager, 64)
        assert kinds(jax.eval_shape(tx.init, params)) == kinds(state)
        assert kinds(gx.apply_updates(params, first[0])) == kinds(params)

    check()


@settings(SETTINGS, max_examples=100)
@given(OURS, OURS)
def test_a_value_goes_there_and_back(tx: gx.Transformation, other: gx.Transformation) -> None:
    for back in (
        gx.from_config(json.loads(json.dumps(gx.to_config(tx), allow_nan=False))),
        pickle.loads(pickle.dumps(tx)),
        copy.deepcopy(tx),
        eval(repr(tx), dict(vars(gx))),
        jax.tree.map(lambda x: x, tx),
        jax.tree.unflatten(jax.tree.structure(tx), jax.tree.leaves(tx)),
        tx.replace(**tx.arguments),
    ):
        assert type(back) is gx.Transformation
        assert back == tx
        assert hash(back) == hash(tx)
        assert repr(back) == repr(tx)
    assert max(map(len, repr(tx).splitlines())) <= 120
    assert (tx == other) == (repr(tx) == repr(other))
    assert all(type(leaf) is float for leaf in jax.tree.leaves(tx))


@settings(SETTINGS, max_examples=100)
@given(SCHEDULES, st.integers(0, 1000))
def test_a_schedule_goes_there_and_back(schedule: gx.Schedule, step: int) -> None:
    for back in (
        gx.from_config(json.loads(json.dumps(gx.to_config(schedule), allow_nan=False))),
        pickle.loads(pickle.dumps(schedule)),
        eval(repr(schedule), dict(vars(gx))),
    ):
        assert back == schedule
        assert hash(back) == hash(schedule)
    value = schedule(step)
    assert value.shape == ()
    assert value.dtype == jnp.float32
    assert bool(jnp.isfinite(value))


def shared_numbers(tx: gx.Transformation, factor: float) -> gx.Transformation:
    return jax.tree.map(lambda x: x * factor, tx)


@settings(SETTINGS, max_examples=5)
@given(OURS)
def test_a_value_is_an_argument_of_jit(tx: gx.Transformation) -> None:
    """With its numbers as inputs a program gives what it gives with them as constants, and other numbers fit it."""
    params = TREES["float32"]
    assume(jax.tree.leaves(tx))
    traces = []

    @jax.jit
    def update(tx: gx.Transformation) -> Any:
        traces.append(1)
        return tx.update(params, tx.init(params), params)[0]

    check_close(update(tx), tx.update(params, tx.init(params), params)[0], 4096)
    smaller = shared_numbers(tx, 0.99)
    check_close(update(smaller), smaller.update(params, smaller.init(params), params)[0], 4096)
    assert len(traces) == 1
