"""Equal calls make equal values that hash alike; calls that differ in anything do not."""

import copy
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from value_catalog import CASES, VALUES, VARIADIC, Case

import gradxform as gx


@gx.transformation
def labelled(label, number: float = 1.0, values: tuple = ()):  # type: ignore[no-untyped-def]
    """Takes anything, so that one can look at how arguments compare."""
    return lambda params: (), lambda updates, state, params=None: (updates, state)


def check_equal(a: object, b: object) -> None:
    assert a == b
    assert (a != b) is False
    assert hash(a) == hash(b)
    assert len({a, b}) == 1


def check_different(a: object, b: object) -> None:
    assert a != b
    assert (a == b) is False
    assert len({a, b}) == 2


@pytest.mark.parametrize("name", CASES)
def test_equal_calls_are_equal(name: str) -> None:
    case = CASES[name]
    check_equal(case(), case())
    # Defaults said aloud, and arguments made anew rather than shared.
    check_equal(case(), case(**copy.deepcopy(case().arguments)))


@pytest.mark.parametrize("name", CASES)
def test_calls_that_differ_in_one_argument_differ(name: str) -> None:
    case = CASES[name]
    for argument, options in case.arguments.items():
        changed = case(**{argument: options.other})
        assert changed != case(), argument
        check_different(case(), changed)
        check_equal(changed, case(**{argument: copy.deepcopy(options.other)}))


@pytest.mark.parametrize("name", VARIADIC)
def test_chains(name: str) -> None:
    check_different(*VARIADIC[name])
    check_equal(VARIADIC[name][0], copy.deepcopy(VARIADIC[name][0]))


def test_values_of_different_factories_differ() -> None:
    for (name, a), (other, b) in itertools.combinations(VALUES.items(), 2):
        assert a != b, (name, other)
    assert len(set(VALUES.values())) == len(VALUES)


def test_the_order_and_nesting_of_a_chain_count() -> None:
    a, b = gx.clip(1.0), gx.scale(0.5)
    check_different(gx.chain(a, b), gx.chain(b, a))
    check_different(gx.chain(a, b), gx.chain(gx.chain(a), b))
    check_different(gx.chain(a), a)
    check_different(gx.chain(), gx.identity())


def test_a_value_is_not_what_it_holds() -> None:
    tx = gx.scale(0.5)
    assert tx != optax.GradientTransformationExtraArgs(tx.init, lambda *a: tx.update(*a))
    assert tx != "scale(step_size=0.5)"
    assert tx != 0.5
    assert tx != None  # noqa: E711


def test_true_is_not_one() -> None:
    check_different(labelled(True), labelled(1))
    check_different(labelled({"a": True}), labelled({"a": 1}))
    check_different(labelled(1.0), labelled(True))
    check_different(labelled("1"), labelled(1))
    check_different(labelled(None), labelled(False))
    # Without an annotation an int is structure and a float is a number.
    check_different(labelled(1), labelled(1.0))


@pytest.mark.parametrize(
    "one",
    [
        1,
        1.0,
        np.float64(1),
        np.float32(1),
        np.int64(1),
        np.int32(1),
        np.int16(1),
        np.uint8(1),
        np.float16(1),
        ml_dtypes.bfloat16(1),
    ],
)
def test_a_real_parameter_takes_any_spelling_of_a_number(one: object) -> None:
    check_equal(labelled("x", one), labelled("x", 1.0))
    check_equal(gx.sgd(one), gx.sgd(1.0))
    assert type(gx.sgd(one).arguments["learning_rate"]) is float
    assert jax.tree.leaves(gx.sgd(one)) == [1.0]
    check_equal(gx.sgd(0.1, momentum=one), gx.sgd(0.1, momentum=1.0))


def test_real_parameters_inside_sequences() -> None:
    s = gx.schedules
    check_equal(s.piecewise(1.0, {2: 1}), s.piecewise(1.0, {2: 1.0}))
    check_equal(s.join([1, s.linear(1, 0, 2)], [3]), s.join([1.0, s.linear(1.0, 0.0, 2)], [3]))


def test_an_integer_parameter_takes_any_spelling_of_an_integer() -> None:
    check_equal(gx.ndim_at_least(2), gx.ndim_at_least(np.int64(2)))
    check_equal(gx.schedules.cosine(1.0, 10), gx.schedules.cosine(1.0, np.int32(10)))
    check_equal(gx.adaptive_grad_clip(0.1, axis=(0, 1)), gx.adaptive_grad_clip(0.1, axis=(np.int64(0), 1)))


def test_floats_compare_by_their_value() -> None:
    nan = float("nan")
    check_equal(labelled("x", nan), labelled("x", float("nan")))
    check_different(labelled("x", 0.1), labelled("x", 0.1 + 1e-17 + 1e-16))
    check_equal(labelled("x", float("inf")), labelled("x", float("inf")))
    check_different(labelled("x", float("inf")), labelled("x", float("-inf")))


def test_arrays_compare_by_dtype_shape_and_content() -> None:
    check_equal(gx.scale(jnp.float32(0.5)), gx.scale(jnp.float32(0.5)))
    check_different(gx.scale(jnp.float32(0.5)), gx.scale(jnp.float32(0.25)))
    check_different(gx.scale(jnp.float32(0.5)), gx.scale(jnp.bfloat16(0.5)))
    check_different(gx.scale(jnp.float32(0.5)), gx.scale(0.5))
    check_different(gx.scale(jnp.float32(0.5)), gx.scale(jnp.array([0.5])))
    check_different(gx.scale(jnp.zeros(2, jnp.float16)), gx.scale(jnp.zeros(2, jnp.bfloat16)))
    check_different(gx.scale(jnp.zeros((2, 3))), gx.scale(jnp.zeros((3, 2))))
    check_equal(labelled("x", jnp.array([jnp.nan, 1.0])), labelled("x", jnp.array([jnp.nan, 1.0])))
    check_equal(gx.scale(np.array([0.5, 0.25])), gx.scale(np.array([0.5, 0.25])))
    check_different(gx.scale(np.array([0.5, 0.25])), gx.scale(np.array([0.25, 0.5])))


def test_keys_compare_by_their_data() -> None:
    def noise(key: object) -> gx.Transformation:
        return gx.add_noise(0.1, 0.5, key)

    check_equal(noise(jax.random.key(3)), noise(jax.random.key(3)))
    check_different(noise(jax.random.key(3)), noise(jax.random.key(4)))
    check_different(noise(jax.random.key(3)), noise(jax.random.PRNGKey(3)))
    check_different(noise(jax.random.key(3)), noise(3))


def test_masks_compare_leaf_by_leaf() -> None:
    def frozen(mask: object) -> gx.Transformation:
        return gx.freeze(mask)

    check_equal(frozen({"a": True, "b": False}), frozen({"b": False, "a": True}))
    check_different(frozen({"a": True, "b": False}), frozen({"a": True, "b": True}))
    check_different(frozen({"a": True, "b": False}), frozen({"a": True}))
    check_different(frozen({"a": True}), frozen({"b": True}))
    check_different(frozen({"a": {"b": True}}), frozen({"a": True}))
    check_equal(frozen({"a": np.bool_(True)}), frozen({"a": True}))
    check_equal(frozen(gx.path_matches("a") & gx.ndim_at_least(1)), frozen(gx.path_matches("a") & gx.ndim_at_least(1)))
    check_different(
        frozen(gx.path_matches("a") & gx.ndim_at_least(1)), frozen(gx.path_matches("a") | gx.ndim_at_least(1))
    )


def test_a_list_is_not_a_tuple() -> None:
    # As a mask the two fit different params.
    check_different(gx.freeze([True, False]), gx.freeze((True, False)))
    check_different(labelled("x", 1.0, [1, 2, 3]), labelled("x", 1.0, (1, 2, 3)))
    check_equal(labelled("x", 1.0, [1, 2, 3]), labelled("x", 1.0, [1, np.int64(2), 3]))
    check_different(labelled("x", 1.0, [1, 2, 3]), labelled("x", 1.0, [1, 2]))


def test_functions_and_other_libraries_compare_by_identity() -> None:
    theirs, rate = optax.adam(1e-3), optax.cosine_decay_schedule(1.0, 10)
    check_equal(gx.chain(theirs), gx.chain(theirs))
    check_different(gx.chain(theirs), gx.chain(optax.adam(1e-3)))
    check_equal(gx.sgd(rate), gx.sgd(rate))
    check_different(gx.sgd(rate), gx.sgd(optax.cosine_decay_schedule(1.0, 10)))


def test_a_value_as_a_static_argument_and_as_a_key() -> None:
    traces = []

    def half(tx: gx.Transformation, x: jax.Array) -> jax.Array:
        traces.append(tx)
        return tx.update({"w": x}, tx.init({"w": x}))[0]["w"]

    jitted = jax.jit(half, static_argnums=0)
    assert jitted(gx.clip(0.5), jnp.ones(())) == 0.5
    assert jitted(gx.clip(0.5), jnp.ones(())) == 0.5
    assert len(traces) == 1
    assert jitted(gx.clip(0.25), jnp.ones(())) == 0.25
    assert len(traces) == 2
    assert {gx.sgd(0.1): "a"}[gx.sgd(0.1)] == "a"


def test_a_recipe_is_not_its_parts() -> None:
    # They do the same, but one is not the call that made the other.
    check_different(gx.freeze({"a": True}), gx.masked(gx.set_to_zero(), {"a": True}))


def test_the_table_has_other_values(name: str = "adamw") -> None:
    case: Case = CASES[name]
    given = case().arguments
    assert all(options.other != given[argument] for argument, options in case.arguments.items())
