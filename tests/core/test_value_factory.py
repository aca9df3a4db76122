"""Values of a user's own, and what one can and cannot do to a value."""

import collections
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from value_catalog import GRADS, PARAMS, VALUES, equal_trees

import gradxform as gx

Tree = Any


@gx.transformation
def plain(rate: float, flip: bool = True):  # type: ignore[no-untyped-def]
    """A user's ten lines, after optax's habit."""

    def init(params: Tree) -> Tree:
        return {"count": jnp.zeros([], jnp.int32)}

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        sign = -1 if flip else 1
        return jax.tree.map(lambda g: sign * rate * g, updates), {"count": state["count"] + 1}

    return init, update


@gx.transformation
def with_extra(rate: float = 1.0):  # type: ignore[no-untyped-def]
    def update(updates: Tree, state: Tree, params: Tree = None, *, value: Any = 1.0, **extra: Any) -> tuple[Tree, Tree]:
        return jax.tree.map(lambda g: rate * value * g, updates), state + (len(extra),)

    return lambda params: (), update


@gx.transformation
def with_named_extra(rate: float = 1.0):  # type: ignore[no-untyped-def]
    def update(updates: Tree, state: Tree, params: Tree = None, *, value: Any) -> tuple[Tree, Tree]:
        return jax.tree.map(lambda g: rate * value * g, updates), state

    return lambda params: (), update


@gx.transformation
def recipe(learning_rate: float, b1: float = 0.9):  # type: ignore[no-untyped-def]
    return gx.chain(gx.clip_by_global_norm(1.0), gx.scale_by_adam(b1=b1), gx.scale(-learning_rate))


@gx.transformation
def theirs(learning_rate: float):  # type: ignore[no-untyped-def]
    return optax.sgd(learning_rate, momentum=0.9)


@gx.transformation
def optax_pair(factor: float):  # type: ignore[no-untyped-def]
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (jax.tree.map(lambda g: factor * g, updates), state),
    )


@gx.transformation
def hypers(a, b=1.0, *parts, c: int = 2, **rest):  # type: ignore[no-untyped-def]
    """Every kind of parameter."""
    return lambda params: (), lambda updates, state, params=None: (updates, state)


def test_a_plain_pair() -> None:
    tx = plain(0.5)
    assert isinstance(tx, gx.Transformation)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    state = tx.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(GRADS, state, PARAMS)
    equal_trees(updates, jax.tree.map(lambda g: -0.5 * g, GRADS))
    assert int(state["count"]) == 2
    assert repr(tx) == f"{tx.name}(rate=0.5, flip=True)"
    assert tx.name.endswith("plain")
    assert tx == plain(0.5, True) != plain(0.5, False)
    assert jax.tree.leaves(tx) == [0.5]
    assert plain.__name__ == "plain"
    assert plain.__doc__ == "A user's ten lines, after optax's habit."
    assert list(inspect.signature(plain).parameters) == ["rate", "flip"]


def test_a_plain_pair_takes_extra_arguments_that_it_does_not_know() -> None:
    updates, _ = plain(0.5).update(GRADS, plain(0.5).init(PARAMS), PARAMS, value=3.0, loss=2.0)
    equal_trees(updates, jax.tree.map(lambda g: -0.5 * g, GRADS))


def test_a_pair_with_extra_arguments() -> None:
    tx = gx.chain(gx.clip(100.0), gx.masked(with_extra(0.5), gx.ndim_at_least(0)), gx.identity())
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=4.0, loss=1.0)
    equal_trees(updates, jax.tree.map(lambda g: 2 * g, GRADS))
    assert state[1].inner_state == (1,)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    equal_trees(updates, jax.tree.map(lambda g: 0.5 * g, GRADS))


def test_a_pair_that_names_an_extra_argument() -> None:
    tx = gx.chain(with_named_extra(0.5), gx.scale(2.0))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=3.0, other=1.0)
    equal_trees(updates, jax.tree.map(lambda g: 3 * g, GRADS))


def test_a_factory_of_a_chain() -> None:
    tx = recipe(0.1)
    parts = gx.chain(gx.clip_by_global_norm(1.0), gx.scale_by_adam(), gx.scale(-0.1))
    equal_trees(tx.init(PARAMS), parts.init(PARAMS))
    equal_trees(tx.update(GRADS, tx.init(PARAMS), PARAMS), parts.update(GRADS, parts.init(PARAMS), PARAMS))
    assert tx != parts
    assert jax.tree.leaves(tx) == [0.9, 0.1] or sorted(jax.tree.leaves(tx)) == [0.1, 0.9]


def test_a_factory_of_another_librarys_transformation() -> None:
    tx, other = theirs(0.1), optax.sgd(0.1, momentum=0.9)
    equal_trees(tx.update(GRADS, tx.init(PARAMS), PARAMS), other.update(GRADS, other.init(PARAMS), PARAMS))
    assert tx == theirs(0.1)
    new = jax.jit(lambda t: t.update(GRADS, t.init(PARAMS))[0])(theirs(0.2))
    equal_trees(new, jax.tree.map(lambda u: 2 * u, tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]))


def test_a_factory_of_an_optax_pair() -> None:
    tx = gx.chain(optax_pair(0.5), gx.scale(2.0))
    equal_trees(tx.update(GRADS, tx.init(PARAMS))[0], GRADS)


@pytest.mark.parametrize("made", [None, 3, (), (len,), (len, 3), (len, len, len), [len, len], {"init": len}, len])
def test_a_bad_return_is_refused_at_the_call(made: Any) -> None:
    @gx.transformation
    def broken(rate: float = 1.0):  # type: ignore[no-untyped-def]
        return made

    with pytest.raises(TypeError, match=r"broken: expected the factory to return a pair \(init, update\)"):
        broken()


def test_a_user_brick_sees_float32_and_returns_what_came_in() -> None:
    seen = []

    @gx.transformation
    def spy(factor: float = 1.0):  # type: ignore[no-untyped-def]
        def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
            seen.append(jax.tree.map(lambda u: u.dtype, updates))
            return jax.tree.map(lambda u: factor * u, updates), state

        return lambda params: (), update

    params = {"b": jnp.ones(2, jnp.bfloat16), "h": jnp.ones(2, jnp.float16), "f": jnp.ones(2), "c": jnp.ones(2, "c8")}
    for tx in (spy(1 / 3), gx.chain(spy(1 / 3)), gx.chain(gx.clip(9.0), spy(1 / 3), gx.scale(1.0))):
        updates, _ = tx.update(params, tx.init(params), params)
        assert seen.pop() == {"b": jnp.float32, "h": jnp.float32, "f": jnp.float32, "c": jnp.complex64}
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
    # Two factors of a third in bfloat16 would round twice: 0.11108, where one rounding gives 0.11133 or its neighbour.
    tx = gx.chain(spy(1 / 3), spy(1 / 3))
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["b"][0] == jnp.bfloat16(1 / 9)
    assert updates["h"][0] == jnp.float16(1 / 9)


def test_a_user_brick_with_the_wrong_structure_names_it() -> None:
    @gx.transformation
    def loses(name: str = "bias"):  # type: ignore[no-untyped-def]
        return lambda params: (), lambda u, s, p=None: ({"kernel": u["kernel"]}, s)

    tx = gx.chain(loses())
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match="'bias'"):
        tx.update(params, tx.init(params))


def test_hyperparameters_of_a_user_brick_that_arrive_as_arrays() -> None:
    tx = plain(jnp.bfloat16(0.5))
    updates, _ = tx.update(GRADS, tx.init(PARAMS))
    equal_trees(updates, jax.tree.map(lambda g: -0.5 * g, GRADS))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_every_kind_of_parameter() -> None:
    tx = hypers(1, 2, gx.clip(1.0), "x", c=3, d=4.0)
    assert tx == hypers(1, 2.0, gx.clip(1), "x", c=3, d=4.0)
    assert tx != hypers(1, 2, gx.clip(1.0), "x", c=3, d=5.0)
    assert sorted(jax.tree.leaves(tx)) == [1.0, 2.0, 4.0]
    assert jax.tree.map(lambda x: x, tx) == tx
    assert tx.replace(c=5) == hypers(1, 2, gx.clip(1.0), "x", c=5, d=4.0)


def test_what_a_call_with_any_names_prints() -> None:
    text = repr(hypers(1, 2.0, c=3, d=4.0))
    assert text.endswith("hypers(a=1, b=2.0, c=3, d=4.0)")


def test_a_call_that_does_not_fit_the_signature() -> None:
    with pytest.raises(TypeError, match="rate"):
        plain()
    with pytest.raises(TypeError, match="speed"):
        plain(0.5, speed=1)
    with pytest.raises(TypeError, match="learning_rate"):
        gx.sgd()


def test_methods_keep_working_as_optax_pairs() -> None:
    tx = gx.sgd(0.1)
    init, update = tx
    assert len(tx) == 2
    assert tx[0] is init is tx.init
    assert tx[1] is update is tx.update
    assert isinstance(tx, tuple)
    equal_trees(update(GRADS, init(PARAMS), PARAMS)[0], jax.tree.map(lambda g: -0.1 * g, GRADS))
    other = tx._replace(init=lambda params: "state")
    assert other.init(PARAMS) == "state"
    assert type(other) is optax.GradientTransformationExtraArgs


def test_the_class_is_not_the_way_to_make_one() -> None:
    with pytest.raises(TypeError, match="transformation"):
        gx.Transformation(lambda params: (), lambda updates, state, params=None: (updates, state))


@pytest.mark.parametrize("value", [gx.sgd(0.1), gx.schedules.constant(0.1), gx.ndim_at_least(2)])
def test_a_value_cannot_be_changed(value: Any) -> None:
    before = repr(value)
    for name in ("learning_rate", "value", "_arguments", "name", "anything"):
        with pytest.raises(AttributeError):
            setattr(value, name, 0.5)
    with pytest.raises(AttributeError):
        del value._arguments
    value.arguments["learning_rate"] = 0.5
    value.arguments.clear()
    assert repr(value) == before


def test_the_message_of_a_change_shows_the_way() -> None:
    with pytest.raises(AttributeError, match=r"immutable.*replace\(learning_rate="):
        gx.sgd(0.1).learning_rate = 0.5


def test_what_a_value_was_made_of_may_change_later() -> None:
    mask, pair = {"w": True}, [True]
    tx, other = gx.freeze(mask), gx.freeze(pair)
    text = hash(tx), repr(tx), hash(other), repr(other)
    mask["w"] = False
    pair.append(False)
    assert (hash(tx), repr(tx), hash(other), repr(other)) == text
    scales = {5: 0.5}
    schedule = gx.schedules.piecewise(1.0, scales)
    scales[5] = 0.1
    assert float(schedule(6)) == 0.5


def test_what_a_value_hands_out_may_change() -> None:
    tx = gx.freeze({"w": True})
    tx.arguments["mask"]["w"] = False
    assert tx == gx.freeze({"w": True})
    assert gx.to_config(tx) == gx.to_config(gx.freeze({"w": True}))
    config = gx.to_config(tx)
    config["arguments"].clear()
    assert gx.to_config(tx) != config


def test_numpy_arrays_that_change_later() -> None:
    rates = np.array([0.1, 0.2])
    tx = gx.sgd(rates)
    before = hash(tx)
    rates[0] = 0.5
    assert hash(tx) == before
    assert tx == gx.sgd(np.array([0.1, 0.2]))


def test_replace() -> None:
    tx = gx.adamw(gx.schedules.cosine(0.1, 10), mask=gx.ndim_at_least(2))
    assert tx.replace() == tx
    assert tx.replace(b1=0.5) == gx.adamw(gx.schedules.cosine(0.1, 10), b1=0.5, mask=gx.ndim_at_least(2))
    assert tx.replace(b1=1 / 2, mask=None).arguments["mask"] is None
    assert tx.arguments["b1"] == 0.9
    assert gx.schedules.cosine(0.1, 10).replace(steps=20) == gx.schedules.cosine(0.1, 20)
    assert gx.path_matches("a").replace(pattern="b") == gx.path_matches("b")
    assert gx.chain(gx.clip(1.0)).replace(transformations=(gx.clip(2.0), gx.scale(1.0))) == gx.chain(
        gx.clip(2.0), gx.scale(1.0)
    )
    with pytest.raises(TypeError, match=r"^adamw\(\) has no argument 'beta'; did you mean 'b1'\?"):
        tx.replace(beta=0.5)
    with pytest.raises(ValueError, match="b1: expected"):
        tx.replace(b1=1.5)


def test_arguments_hold_every_default() -> None:
    for name, value in VALUES.items():
        if name in ("both", "either", "negated"):
            continue
        factory = functools.reduce(getattr, value.name.split("."), gx)
        assert list(value.arguments) == list(inspect.signature(factory).parameters), name


def test_a_schedule_of_a_users_own() -> None:
    @gx.schedule
    def reciprocal(init_value: float, power: int = 1):  # type: ignore[no-untyped-def]
        return lambda step: init_value / (step + 1) ** power

    rate = reciprocal(1, 2)
    np.testing.assert_allclose(rate(jnp.arange(3)), [1.0, 0.25, 1 / 9], rtol=1e-6)
    assert jax.tree.leaves(rate) == [1.0]
    assert gx.sgd(rate) == gx.sgd(reciprocal(1.0, 2))
    assert gx.hyperparams(gx.sgd(rate), gx.sgd(rate).init(PARAMS))["learning_rate"] == 1.0


def test_a_state_may_be_any_tree() -> None:
    Pair = collections.namedtuple("Pair", ["left", "right"])

    @gx.transformation
    def counts():  # type: ignore[no-untyped-def]
        return (lambda params: Pair(0, [jnp.zeros(())])), lambda u, s, p=None: (u, s._replace(left=s.left + 1))

    tx = gx.chain(counts(), gx.scale(1.0))
    _, state = tx.update(GRADS, tx.init(PARAMS))
    assert state[0].left == 1
