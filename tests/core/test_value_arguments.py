"""What an argument is, how it is kept, how a factory's function receives it, and what a call that does not fit says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from value_catalog import GRADS, PARAMS

import gradxform as gx
from gradxform.core.arguments import kind
from gradxform.core.schedule import at_step
from gradxform.core.types import AnySchedule, DType, Kind, Scalar, ScalarOrSchedule

PAIR = (lambda params: (), lambda updates, state, params=None: (updates, state))
NONE = Kind(0)
EITHER = Kind.SCALAR | Kind.SCHEDULE


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Scalar, Kind.SCALAR),
        (Scalar | None, Kind.SCALAR),
        (Sequence[Scalar], Kind.SCALAR),
        (Mapping[str, Scalar], Kind.SCALAR),
        (dict[float, str], NONE),
        (Scalar | tuple[Scalar, Scalar] | None, Kind.SCALAR),
        (float, Kind.SCALAR),
        (float | None, Kind.SCALAR),
        (float | jax.Array, Kind.SCALAR),
        (ScalarOrSchedule, EITHER),
        (ScalarOrSchedule | None, EITHER),
        (Sequence[ScalarOrSchedule], EITHER),
        (AnySchedule, Kind.SCHEDULE),
        (DType, Kind.DTYPE),
        (DType | None, Kind.DTYPE),
        (Sequence[DType], Kind.DTYPE),
        (bool, Kind.BOOL),
        (bool | None, Kind.BOOL),
        (bool | jax.Array, NONE),
        (tuple[bool, ...], NONE),
        (Callable[[float], float], NONE),
        (Callable, NONE),
        (int, NONE),
        (Any, NONE),
        (str | None, NONE),
    ],
)
def test_the_kind_of_an_argument(annotation: Any, expected: Kind) -> None:
    assert kind(inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)) is expected


def test_without_an_annotation_a_float_is_a_number() -> None:
    options = {"kind": inspect.Parameter.KEYWORD_ONLY}
    assert kind(inspect.Parameter("x", default=1.0, **options)) is Kind.SCALAR
    assert kind(inspect.Parameter("x", default=1, **options)) is NONE


def test_the_name_of_an_argument_says_nothing() -> None:
    @gx.transformation
    def named(dtype: str = "f8 or more", storage: DType = None):  # type: ignore[no-untyped-def]
        return PAIR

    assert named().arguments["dtype"] == "f8 or more"
    assert named(storage=jnp.bfloat16).arguments["storage"] == "bfloat16"
    with pytest.raises(TypeError, match="storage: expected a dtype, got 'float99'"):
        named(storage="float99")


def test_an_annotation_that_cannot_be_evaluated_is_refused_at_the_decorator() -> None:
    with pytest.raises(TypeError, match=r"of_unknown: the annotation of other cannot be evaluated: 'Unknown \|"):

        @gx.transformation
        def of_unknown(rate: float, other: Unknown | None = None):  # type: ignore[no-untyped-def]  # noqa: F821
            return PAIR

    with pytest.raises(TypeError, match=r"inside: the annotation of init_value cannot .*Sequence.*Unknown"):

        @gx.schedule
        def inside(init_value: Sequence["Unknown"]):  # type: ignore[no-untyped-def]  # noqa: F821, UP037
            return lambda step: init_value


def test_what_is_returned_may_be_unknown() -> None:
    @gx.transformation
    def returns_unknown(rate: float) -> Unknown:  # noqa: F821
        return PAIR

    assert returns_unknown(1).arguments == {"rate": 1.0}


SEEN: dict[str, Any] = {}


@gx.transformation
def keeps(
    b2: Scalar = 0.5,
    rates: Sequence[Scalar] = (),
    named: Mapping[str, Scalar] | None = None,  # type: ignore
    rate: ScalarOrSchedule = 0.1,
    other: Any = None,
):
    SEEN.update(b2=b2, rates=rates, named=named, rate=rate, other=other)
    return PAIR


def test_numbers_arrive_ready_for_arithmetic() -> None:
    narrow = jnp.bfloat16(0.999)
    value = keeps(narrow, [narrow, 1, np.array([0.5, 0.25], np.float16)], {"a": narrow, "b": 2}, narrow, narrow)
    assert SEEN["b2"].dtype == jnp.float32
    assert SEEN["b2"] == np.float32(narrow)
    assert [getattr(x, "dtype", float) for x in SEEN["rates"]] == [jnp.float32, float, np.float32]
    assert SEEN["rates"][1] == 1.0
    assert SEEN["named"]["a"].dtype == jnp.float32
    assert type(SEEN["named"]["b"]) is float
    assert SEEN["rate"].dtype == jnp.float32
    assert SEEN["other"].dtype == jnp.bfloat16
    # The call is kept as it was made.
    assert value.arguments["b2"].dtype == jnp.bfloat16
    assert value.arguments["rates"][2].dtype == np.float16
    assert "b2=Array(1, dtype=bfloat16)" in repr(value)
    assert gx.from_config(gx.to_config(value)) == value
    assert value != keeps(jnp.float32(narrow), *list(value.arguments.values())[1:])


def test_python_numbers_stay_exact() -> None:
    keeps(0.999, [0.1])
    assert SEEN["b2"] == 0.999
    assert type(SEEN["b2"]) is float
    rate = gx.schedules.constant(1.0)
    keeps(rate=rate)
    assert SEEN["rate"] == rate


@gx.transformation
def second_moment(b2: Scalar = 0.999):  # type: ignore[no-untyped-def]
    """A user's brick, without a helper."""

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        state = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state, updates)
        return jax.tree.map(lambda g, v: g / jnp.sqrt(v), updates, state), state

    return init, update


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_hyperparameter_of_a_users_brick(dtype: str) -> None:
    b2 = jnp.asarray(0.99, dtype)  # 0.98828125 in bfloat16, whose 1 - b2 times a gradient would be rounded to 8 bits
    expected = jax.tree.map(lambda g: np.float32(1 - float(b2)) * np.asarray(g) ** 2, GRADS)
    step = lambda tx: tx.update(GRADS, tx.init(PARAMS), PARAMS)[1]  # noqa: E731
    for state in (
        step(second_moment(b2)),
        jax.jit(step)(second_moment(b2)),
        jax.jit(lambda b2: step(second_moment(b2)))(b2),
    ):
        assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}
        for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-7)


def test_a_hyperparameter_at_a_step_is_ready_too() -> None:
    narrow = lambda step: jnp.bfloat16(0.5) * step  # noqa: E731
    assert at_step(narrow, 3).dtype == jnp.float32
    assert at_step(jnp.bfloat16(0.5), 3).dtype == jnp.float32
    assert at_step(0.999, 3) == at_step(lambda step: 0.999, 3) == 0.999
    assert type(at_step(0.999, 3)) is float
    np.testing.assert_array_equal(at_step(gx.schedules.linear(0.0, 1.0, 4), jnp.arange(3)), [0.0, 0.25, 0.5])
    np.testing.assert_array_equal(
        at_step(optax.linear_schedule(0.0, 1.0, 4), jnp.arange(4).reshape(2, 2)), [[0.0, 0.25], [0.5, 0.75]]
    )
    # A schedule in bfloat16 gives its product with a decay in float32: 0.3 * 0.5 has 8 bits in bfloat16.
    both = gx.adamw(lambda step: jnp.bfloat16(1.0), weight_decay=lambda step: jnp.bfloat16(0.3), base_learning_rate=2.0)
    updates, _ = both.update({"w": 0.0}, both.init({"w": 1.0}), {"w": 1.0})
    assert updates["w"] == -np.float32(jnp.bfloat16(0.3)) / 2


def test_what_is_built_in_a_trace_is_not_of_it() -> None:
    """A value that jax has put together is built where it is first used; another trace uses it again."""
    for made in (second_moment(0.5), gx.adamw(0.5, b2=0.5, base_learning_rate=0.5)):
        tx = jax.tree.map(jnp.bfloat16, made)
        run = lambda g, tx=tx: tx.update(g, tx.init(PARAMS), PARAMS)[0]  # noqa: E731
        first = jax.jit(run)(GRADS)
        jax.tree.map(np.testing.assert_array_equal, first, jax.jit(lambda g, run=run: run(g))(GRADS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: gx.partition({"a": gx.sgd(0.1), 0: gx.sgd(1.0)}, {"x": "a"}),
        lambda: gx.masked(gx.sgd(0.1), {"transforms": [{"a": True, 0: False}]}),
        lambda: gx.partition({"transforms": gx.sgd(0.1)}, {"a": "transforms", 0: "transforms"}),
    ],
)
def test_keys_that_do_not_sort_are_refused_when_the_value_is_made(make: Any) -> None:
    with pytest.raises(TypeError, match=r"^(transforms|mask|param_labels): expected keys .* got \['a', 0\]"):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gx.adamw(lr=1e-3), r"adamw() has no argument 'lr'; did you mean 'learning_rate'?"),
        (lambda: gx.adamw(1e-3, beta1=0.9), r"adamw() has no argument 'beta1'; did you mean 'b1'?"),
        (lambda: gx.adamw(1e-3, betas=(0.9, 0.99)), r"adamw() has no argument 'betas'; did you mean 'b1' and 'b2'?"),
        (lambda: gx.lion(1e-3, betas=(0.9, 0.99)), r"lion() has no argument 'betas'; did you mean 'b1' and 'b2'?"),
        (lambda: gx.adamw(1e-3, wd=0.1), r"adamw() has no argument 'wd'; did you mean 'weight_decay'?"),
        (lambda: gx.adamw(1e-3, momentum=0.9), r"adamw() has no argument 'momentum'; did you mean 'b1'?"),
        (
            lambda: gx.adamw(1e-3, weightDecay=0.1),
            r"adamw() has no argument 'weightDecay'; did you mean 'weight_decay'?",
        ),
        (
            lambda: gx.adamw(1e-3, weigth_decay=0.1),
            r"adamw() has no argument 'weigth_decay'; did you mean 'weight_decay'?",
        ),
        (
            lambda: gx.sgd(),
            "sgd() needs 'learning_rate'; it has learning_rate, momentum, nesterov, accumulator_dtype, weight_decay, "
            "mask",
        ),
        (lambda: gx.sgd(momentum=0.9, rate=0.1), r"sgd() has no argument 'rate'; did you mean 'learning_rate'?"),
        (lambda: gx.clip(1.0, 2.0), r"clip() takes at most 1 arguments by position (max_delta), got 2"),
        (lambda: gx.identity(1.0), r"identity() takes at most 0 arguments by position (none), got 1"),
        (lambda: gx.identity(x=1.0), r"identity() has no argument 'x'; it has none"),
        (lambda: gx.sgd(0.1, learning_rate=0.1), r"sgd() got 'learning_rate' twice, by position and by keyword"),
        (lambda: gx.chain(tx=gx.clip(1.0)), r"chain() has no argument 'tx'; it has none"),
        (
            lambda: gx.schedules.cosine(0.1, T_max=10),
            r"schedules.cosine() has no argument 'T_max'; did you mean 'steps'?",
        ),
        (
            lambda: gx.schedules.cosine(0.1),
            r"schedules.cosine() needs 'steps'; it has init_value, steps, end_value, exponent",
        ),
        (lambda: gx.ndim_at_least(ndim=2), r"ndim_at_least() has no argument 'ndim'; did you mean 'n'?"),
        (
            lambda: gx.augment.random_flip_left_right(prob=0.5),
            r"augment.random_flip_left_right() has no argument 'prob'; did you mean 'p'?",
        ),
    ],
)
def test_a_call_that_does_not_fit_names_the_factory_and_the_nearest_name(call: Any, message: str) -> None:
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == message


RATE = gx.schedules.cosine(0.1, 10)


@pytest.mark.parametrize(
    ("value", "path", "new", "expected"),
    [
        (gx.sgd(0.1), "learning_rate", 0.2, gx.sgd(0.2)),
        (gx.chain(gx.clip(1.0), gx.adamw(1e-3)), "1/learning_rate", 1e-4, gx.chain(gx.clip(1.0), gx.adamw(1e-4))),
        (gx.chain(gx.chain(gx.clip(1.0)), gx.sgd(1)), "0/0/max_delta", 2, gx.chain(gx.chain(gx.clip(2.0)), gx.sgd(1))),
        (
            gx.named_chain(("a", gx.sgd(0.1)), ("b/c", gx.sgd(0.1))),
            "b/c/learning_rate",
            0.2,
            gx.named_chain(("a", gx.sgd(0.1)), ("b/c", gx.sgd(0.2))),
        ),
        (
            gx.partition({1: gx.sgd(0.1), 2: gx.scale(1.0)}, {"x": 1}),
            "transforms/2/step_size",
            2,
            gx.partition({1: gx.sgd(0.1), 2: gx.scale(2.0)}, {"x": 1}),
        ),
        (
            gx.masked(gx.sgd(0.1), gx.ndim_at_least(2)),
            "inner/momentum",
            0.9,
            gx.masked(gx.sgd(0.1, 0.9), gx.ndim_at_least(2)),
        ),
        (gx.masked(gx.sgd(0.1), gx.ndim_at_least(2)), "mask/n", 1, gx.masked(gx.sgd(0.1), gx.ndim_at_least(1))),
        (
            gx.accumulate(gx.skip_nonfinite(gx.adam(0.1), 3), 2),
            "tx/tx/b1",
            0.5,
            gx.accumulate(gx.skip_nonfinite(gx.adam(0.1, 0.5), 3), 2),
        ),
        (gx.chain(gx.sgd(RATE)), "0/learning_rate/init_value", 0.3, gx.chain(gx.sgd(gx.schedules.cosine(0.3, 10)))),
        (gx.chain(gx.clip(1.0), gx.sgd(0.1)), "0", gx.scale(2.0), gx.chain(gx.scale(2.0), gx.sgd(0.1))),
        (
            gx.schedules.join([RATE, 0.1], [5]),
            "schedules/0/steps",
            4,
            gx.schedules.join([gx.schedules.cosine(0.1, 4), 0.1], [5]),
        ),
        (
            gx.augment.chain(gx.augment.invert(), gx.augment.sharpness(2.0)),
            "1/factor",
            3.0,
            gx.augment.chain(gx.augment.invert(), gx.augment.sharpness(3.0)),
        ),
    ],
)
def test_replace_takes_a_path(value: Any, path: str, new: Any, expected: Any) -> None:
    assert value.replace({path: new}) == value.replace(**{path: new}) == expected
    assert value != expected


def test_replace_takes_the_paths_that_hyperparams_prints() -> None:
    tx = gx.chain(
        gx.clip_by_global_norm(1.0),
        gx.named_chain(
            (
                "all",
                gx.partition(
                    {"a": gx.adamw(0.1), "b/c": gx.sgd(0.1, 0.9)},
                    {"dense": {"kernel": "a", "bias": "b/c"}, "scale": "b/c"},
                ),
            ),
            ("late", gx.accumulate(gx.skip_nonfinite(gx.masked(gx.trace(0.5), gx.ndim_at_least(1)), 3), 2)),
            ("spare", gx.selective_transform(gx.scale(1.0), freeze_mask=gx.ndim_at_least(2))),
        ),
    )
    before = gx.hyperparams(tx, tx.init(PARAMS))
    assert len(before) > 12
    for i, path in enumerate(before):
        changed = tx.replace({path: before[path] / 2 if isinstance(before[path], float) else before[path] + 1})
        after = gx.hyperparams(changed, changed.init(PARAMS))
        assert {name for name in after if after[name] != before[name]} == ({path} if before[path] else set()), i


def test_replace_changes_several_at_once() -> None:
    tx = gx.chain(gx.clip(1.0), gx.sgd(0.1))
    assert tx.replace({"0/max_delta": 2.0}, **{"1/momentum": 0.9, "1/learning_rate": 0.2}) == gx.chain(
        gx.clip(2.0), gx.sgd(0.2, 0.9)
    )
    # A new part, and a number in it.
    assert tx.replace({"1": gx.adam(0.1), "1/b1": 0.5}) == gx.chain(gx.clip(1.0), gx.adam(0.1, 0.5))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("1/lr", "chain() has no argument '1/lr'; did you mean '1/learning_rate'?"),
        ("1/learning_rat", "chain() has no argument '1/learning_rat'; did you mean '1/learning_rate'?"),
        ("learning_rate", "chain() has no argument 'learning_rate'; did you mean '1/learning_rate'?"),
        ("2/learning_rate", "chain() has no argument '2/learning_rate'; did you mean '1/learning_rate'?"),
        ("1/learning_rate/peak", "chain() has no argument '1/learning_rate/peak'; did you mean '1/learning_rate'?"),
    ],
)
def test_replace_of_an_unknown_path(path: str, message: str) -> None:
    with pytest.raises(TypeError) as error:
        gx.chain(gx.clip(1.0), gx.adamw(1e-3)).replace({path: 0.5})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("value", "name", "message"),
    [
        (
            gx.adam(1e-3),
            "learning_rate",
            "adam has no attribute 'learning_rate'; what it was made with is in .arguments['learning_rate']",
        ),
        (gx.adam(1e-3), "lr", "adam has no attribute 'lr'; what it was made with is in .arguments['learning_rate']"),
        (RATE, "steps", "schedules.cosine has no attribute 'steps'; what it was made with is in .arguments['steps']"),
        (
            gx.chain(gx.clip(1.0), gx.adam(1e-3)),
            "learning_rate",
            "chain has no attribute 'learning_rate'; '1/learning_rate' is inside of it: gx.hyperparams shows that, "
            ".replace({'1/learning_rate': ...}) changes it",
        ),
        (gx.clip(1.0), "zebra", "clip has no attribute 'zebra'"),
    ],
)
def test_an_argument_is_no_attribute(value: Any, name: str, message: str) -> None:
    with pytest.raises(AttributeError) as error:
        getattr(value, name)
    assert str(error.value) == message


def test_an_error_inside_a_property_is_not_taken_for_a_missing_attribute() -> None:
    @gx.transformation
    def broken() -> Any:
        return None.missing  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match=r"^'NoneType' object has no attribute 'missing'$"):
        broken()
    assert not hasattr(gx.clip(1.0), "__jax_array__")
