"""A value goes to a dict that JSON can hold, and back."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from value_catalog import CASES, VALUES

import gradxform as gx
from gradxform.core.definition import DEFINITIONS


def through_json(value: Any) -> Any:
    # No NaN or Infinity: they are not JSON, and other readers refuse them.
    return gx.from_config(json.loads(json.dumps(gx.to_config(value), allow_nan=False)))


@gx.transformation
def anything(item, *, number: float = 1.0):  # type: ignore[no-untyped-def]
    """A user's factory, which takes anything."""
    return lambda params: (), lambda updates, state, params=None: (updates, state)


@gx.schedule
def halving(init_value: float):  # type: ignore[no-untyped-def]
    """A user's schedule."""
    return lambda step: init_value / 2**step


WRITABLE = {name: value for name, value in VALUES.items() if name != "stateless"} | {
    "nested": gx.chain(
        gx.chain(),
        gx.chain(gx.chain(gx.clip(1.0)), gx.named_chain(("a", gx.sgd(0.1)), ("b", gx.chain()))),
        gx.accumulate(gx.skip_nonfinite(gx.adam(0.1), 3), 2),
    ),
    "partition": gx.partition(
        {"a": gx.adamw(gx.schedules.one_cycle(0.1, 10)), "b": gx.freeze(True)}, {"x": "a", "y": {"z": "b"}}
    ),
    "partition by number": gx.partition({1: gx.sgd(0.1), 2: gx.freeze(True)}, {"x": 1, "y": {"z": 2}}),
    "tuple mask": gx.masked(gx.scale(0.5), (True, {"a": False})),
    "list mask": gx.masked(gx.scale(0.5), [True, {"a": [False]}]),
    "selectors": gx.freeze(~(gx.path_matches("a|b") & gx.ndim_at_least(1)) | gx.path_matches("é\n\"'\\\\")),
    "array": gx.sgd(jnp.array([0.1, 0.2, jnp.inf])),
    "scalar array": gx.sgd(jnp.float32(0.1)),
    "bfloat16": gx.sgd(jnp.bfloat16(0.1)),
    "float16": gx.sgd(jnp.float16(0.1)),
    "complex array": anything(jnp.array([1 + 2j, 3])),
    "integer array": gx.sgd(gx.schedules.cosine(0.1, jnp.int32(10))),
    "bool array": anything(jnp.array([True, False])),
    "matrix": anything(jnp.arange(6, dtype=jnp.float32).reshape(2, 3)),
    "empty": anything(jnp.zeros((0, 3))),
    "nan array": anything(jnp.array([jnp.nan, -jnp.inf])),
    "numpy": anything(np.arange(4.0).reshape(2, 2)),
    "numpy float64": anything(np.array(0.1)),
    "numpy bfloat16": anything(np.array([0.1], ml_dtypes.bfloat16)),
    "fortran order": anything(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "key": gx.add_noise(0.1, 0.5, jax.random.key(3)),
    "other key": gx.add_noise(0.1, 0.5, jax.random.key(3, impl="rbg")),
    "old key": gx.add_noise(0.1, 0.5, jax.random.PRNGKey(3)),
    "inf": gx.clip(math.inf),
    "nan": anything(math.nan, number=-math.inf),
    "tiny": gx.scale(5e-324),
    "digits": gx.scale(0.1 + 0.2),
    "minus zero": gx.scale(-0.0),
    "complex": anything(1 + math.inf * 1j),
    "bools and ints": anything((True, 1, 1.0, None, "1", 2**70)),
    "dict of numbers": anything({1: True, 2: (1, 1.0), 3: {"call": "clip"}}),
    "looks like a config": anything({"call": "clip", "arguments": {"max_delta": 1.0}}),
    "looks like a float": anything({"float": "nan"}),
    "empty containers": anything(({}, ())),
    "user's schedule": gx.adamw(gx.schedules.warmup(5, halving(0.5))),
    "user's with a value": anything(gx.clip(1.0)),
}


@pytest.mark.parametrize("name", WRITABLE)
def test_there_and_back(name: str) -> None:
    value = WRITABLE[name]
    back = through_json(value)
    assert back == value
    assert hash(back) == hash(value)
    assert type(back) is type(value)
    assert repr(back) == repr(value)
    assert jax.tree.structure(back) == jax.tree.structure(value)
    assert gx.to_config(back) == gx.to_config(value) or name == "nan"


@pytest.mark.parametrize("name", CASES)
def test_every_argument_there_and_back(name: str) -> None:
    for argument, options in CASES[name].arguments.items():
        value = CASES[name](**{argument: options.other})
        if argument not in ("f", "decay_rate_fn"):
            assert through_json(value) == value, argument


def test_arrays_come_back_as_they_were() -> None:
    back = through_json(gx.sgd(jnp.bfloat16(0.1))).arguments["learning_rate"]
    assert isinstance(back, jax.Array)
    assert back.dtype == jnp.bfloat16
    back = through_json(anything(np.array([0.1]))).arguments["item"]
    assert isinstance(back, np.ndarray)
    assert back.dtype == np.float64
    assert back[0] == 0.1
    back = through_json(gx.add_noise(0.1, 0.5, jax.random.key(3))).arguments["key"]
    assert jax.random.normal(back) == jax.random.normal(jax.random.key(3))


def test_what_a_config_looks_like() -> None:
    tx = gx.masked(gx.trace(0.9, accumulator_dtype=jnp.bfloat16), gx.ndim_at_least(2))
    assert gx.to_config(tx) == {
        "gradxform": 1,
        "call": "masked",
        "arguments": {
            "inner": {"call": "trace", "arguments": {"decay": 0.9, "nesterov": False, "accumulator_dtype": "bfloat16"}},
            "mask": {"call": "ndim_at_least", "arguments": {"n": 2}},
            "mask_compatible_extra_args": False,
        },
    }
    assert gx.to_config(gx.schedules.constant(0.5)) == {
        "gradxform": 1,
        "call": "schedules.constant",
        "arguments": {"value": 0.5},
    }


def test_arguments_with_defaults_may_be_left_out() -> None:
    assert gx.from_config({"gradxform": 1, "call": "sgd", "arguments": {"learning_rate": 0.5}}) == gx.sgd(0.5)
    config = {"gradxform": 1, "call": "adam", "arguments": {"nesterov": True, "learning_rate": 1}}
    assert gx.from_config(config) == gx.adam(1.0, nesterov=True)


def test_a_users_factory_is_known_by_its_module() -> None:
    name = gx.to_config(anything(1))["call"]
    assert name.endswith("test_value_config.anything")
    assert through_json(gx.chain(anything((1, 2)), gx.clip(1.0))) == gx.chain(anything((1, 2)), gx.clip(1.0))


def test_a_users_factory_does_not_take_the_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may have a ``clip`` of its own; a config of ours still means ours."""
    monkeypatch.delitem(DEFINITIONS, "__main__.clip", raising=False)  # and afterwards it is as it was
    config = gx.to_config(gx.clip(1.0))
    script = """
@gx.transformation
def clip(max_delta: float):
    return lambda params: (), lambda updates, state, params=None: (updates, state)
"""
    namespace: dict[str, Any] = {"__name__": "__main__", "gx": gx}
    exec(script, namespace)
    own = namespace["clip"](1.0)
    assert own != gx.clip(1.0)
    assert gx.from_config(config) == gx.clip(1.0)
    assert gx.from_config(gx.to_config(own)) == own


def a_function(step: Any) -> Any:
    return step


@pytest.mark.parametrize(
    ("value", "where", "instead"),
    [
        (gx.sgd(a_function), "learning_rate", "made under gx.schedule, a mask if"),
        (gx.stateless(lambda u, p: u), "f", "made under gx.schedule, a mask if"),
        (gx.chain(gx.clip(1.0), optax.adam(1e-3)), "1", "; decorate the factory that makes it with gx.transformation$"),
        (gx.chain(gx.clip(1.0), gx.chain(gx.sgd(a_function))), "1/0/learning_rate", "under gx.schedule, a mask if"),
        (gx.named_chain(("clip", gx.clip(1.0)), ("sgd", gx.sgd(a_function))), "sgd/learning_rate", "under gx.schedule"),
        (gx.masked(gx.clip(1.0), lambda p: True), "mask", "made of gx.path_matches and gx.ndim_at_least$"),
        (gx.partition({"a": optax.sgd(0.1)}, {"x": "a"}), "transforms/a", "with gx.transformation$"),
        (anything({1, 2}), "item", "{1, 2}$"),
    ],
)
def test_what_cannot_be_written_says_where_and_what_can(value: Any, where: str, instead: str) -> None:
    with pytest.raises(ValueError, match=f"^value: expected what a config can hold at '{where}', got .*{instead}"):
        gx.to_config(value)


@pytest.mark.parametrize("value", [optax.adam(1e-3), {"gradxform": 1}, None, "sgd", gx.sgd])
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^value: expected a transformation"):
        gx.to_config(value)


def test_a_traced_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at 'learning_rate', got .*Tracer"):
        jax.jit(lambda rate: gx.to_config(gx.sgd(rate)))(0.1)


def nested(inner: Any) -> dict[str, Any]:
    return {
        "gradxform": 1,
        "call": "chain",
        "arguments": {"transformations": [{"call": "clip", "arguments": {"max_delta": 1.0}}, inner]},
    }


CLIP = {"gradxform": 1, "call": "clip", "arguments": {"max_delta": 1.0}}
PLACE = "config at '1'"
RATE = "config at '1/max_delta'"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "^config: expected a dict"),
        ([], "^config: expected a dict"),
        ("clip", "^config: expected a dict"),
        ({}, "^config: expected a dict"),
        ({"call": "clip", "arguments": {"max_delta": 1.0}}, "'gradxform'"),
        (CLIP | {"gradxform": 2}, "^config: expected version 1, got 2"),
        (CLIP | {"gradxform": "1"}, "^config: expected version 1, got '1'"),
        (CLIP | {"gradxform": True}, "^config: expected version 1, got True"),
        (CLIP | {"gradxform": None}, "^config: expected version 1"),
        (CLIP | {"call": "clop"}, r"^config: unknown name 'clop'; did you mean 'clip'\?"),
        (CLIP | {"call": 3}, "^config: unknown name 3"),
        (CLIP | {"call": ["clip"]}, "^config: unknown name"),
        (CLIP | {"call": "os.system"}, "^config: unknown name 'os.system'"),
        (CLIP | {"call": "Transformation"}, "^config: unknown name"),
        ({"gradxform": 1, "call": "clip"}, "^config: .*arguments"),
        (CLIP | {"arguments": [1.0]}, "^config: .*arguments"),
        (CLIP | {"arguments": {}}, "^config.*max_delta"),
        (
            CLIP | {"arguments": {"max_delta": 1.0, "max": 1.0}},
            r"^config: clip\(\) has no argument 'max'; did you mean 'max_delta'\?",
        ),
        (CLIP | {"arguments": {"max_delta": -1.0}}, "max_delta: expected"),
        (CLIP | {"arguments": {"max_delta": "1"}}, "max_delta: expected"),
        ({"gradxform": 1}, "^config: expected"),
        (nested({"call": "clop", "arguments": {}}), f"^{PLACE}: unknown name 'clop'"),
        (
            nested({"call": "clip", "arguments": {"min": 1}}),
            rf"^{PLACE}: clip\(\) has no argument 'min'; it has max_delta",
        ),
        (nested({"call": "clip", "arguments": {}}), f"^{PLACE}.*max_delta"),
        (nested({"call": "clip", "arguments": {"max_delta": -1.0}}), f"{PLACE}.*max_delta: expected"),
        (nested(None), r"argument 1: expected a transformation"),
        (nested({"what": 1}), f"^{PLACE}: expected an encoded value"),
        (nested({"call": "clip", "arguments": {"max_delta": {"float": "much"}}}), f"^{RATE}: "),
        (nested({"call": "clip", "arguments": {"max_delta": {"float": [1]}}}), f"^{RATE}: "),
        (nested({"call": "clip", "arguments": {"max_delta": {"dict": 3}}}), f"^{RATE}: "),
        (nested({"call": "clip", "arguments": {"max_delta": {"dict": [[1, 2, 3]]}}}), f"^{RATE}: "),
        (nested({"call": "clip", "arguments": {"max_delta": {"array": "00"}}}), f"^{RATE}: "),
        (
            nested(
                {
                    "call": "clip",
                    "arguments": {"max_delta": {"array": "zz", "dtype": "float32", "shape": [], "numpy": True}},
                }
            ),
            f"^{RATE}: ",
        ),
        (
            nested(
                {
                    "call": "clip",
                    "arguments": {"max_delta": {"array": "00000000", "dtype": "float32", "shape": [2], "numpy": True}},
                }
            ),
            f"^{RATE}: ",
        ),
        (
            nested(
                {
                    "call": "clip",
                    "arguments": {"max_delta": {"array": "00000000", "dtype": "object", "shape": [], "numpy": True}},
                }
            ),
            f"^{RATE}: ",
        ),
        (
            nested(
                {"call": "add_noise", "arguments": {"eta": 0.1, "gamma": 0.1, "key": {"key": [0, 1], "impl": "none"}}}
            ),
            "^config at '1/key': ",
        ),
    ],
)
def test_what_is_no_config_says_where(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gx.from_config(config)


def test_from_config_does_not_change_the_config() -> None:
    config = gx.to_config(VALUES["partition"])
    text = json.dumps(config)
    gx.from_config(config)
    assert json.dumps(config) == text
