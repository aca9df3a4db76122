"""Every public factory refuses what is not an argument for it, and says which one."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from value_catalog import CASES, TRANSFORMATIONS

import gradxform as gx
from gradxform.core import checks


@pytest.mark.parametrize("name", CASES)
def test_bad_arguments_are_refused_by_name(name: str) -> None:
    case, wrong = CASES[name], []
    for argument, options in case.arguments.items():
        for bad in options.refused:
            try:
                case(**{argument: bad})
            except (TypeError, ValueError) as error:
                if not re.search(rf"\b{argument}\b", str(error)):
                    wrong.append(f"{argument}={bad!r}: does not name it: {error}")
            except Exception as error:
                wrong.append(f"{argument}={bad!r}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{argument}={bad!r}: accepted")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "learning_rate" in case.arguments])
def test_none_is_no_learning_rate(name: str) -> None:
    if name in ("adafactor", "scale_by_learning_rate"):
        assert CASES[name](learning_rate=None).arguments["learning_rate"] is None
    else:
        with pytest.raises(TypeError, match="learning_rate"):
            CASES[name](learning_rate=None)


@pytest.mark.parametrize("name", CASES)
def test_each_message_says_what_was_found_and_expected(name: str) -> None:
    for argument, options in CASES[name].arguments.items():
        for bad in options.refused if type(options.other) in (int, float) else ():
            if isinstance(bad, float) and not math.isnan(bad):
                with pytest.raises((TypeError, ValueError), match=rf"(?s)expected .* got .*{re.escape(repr(bad))}"):
                    CASES[name](**{argument: bad})


@pytest.mark.parametrize(
    "make",
    [
        gx.chain,
        lambda tx: gx.named_chain(("a", tx)),
        lambda tx: gx.masked(tx, True),
        lambda tx: gx.partition({"a": tx}, "a"),
        lambda tx: gx.accumulate(tx, 2),
    ],
)
@pytest.mark.parametrize("tx", [None, 0.1, "sgd", gx.sgd, (1, 2), gx.schedules.constant(0.1), gx.ndim_at_least(1)])
def test_what_is_no_transformation_is_refused(make: Any, tx: Any) -> None:
    with pytest.raises(TypeError, match="expected a transformation, got"):
        make(tx)


def test_a_chain_says_which_argument() -> None:
    with pytest.raises(TypeError, match=r"chain: argument 1: expected a transformation, got 0\.1"):
        gx.chain(gx.clip(1.0), 0.1)
    with pytest.raises(TypeError, match="named_chain: argument 1: expected a pair"):
        gx.named_chain(("a", gx.clip(1.0)), gx.clip(1.0))
    with pytest.raises(ValueError, match="named_chain: expected unique names, got 'a'"):
        gx.named_chain(("a", gx.clip(1.0)), ("a", gx.clip(1.0)))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_arrays_are_checked_as_numbers_are(name: str) -> None:
    """A concrete array is looked at; a traced one is not, and a key or a bool is no number."""
    case = TRANSFORMATIONS[name]
    for argument, options in case.arguments.items():
        if not isinstance(options.other, float) or argument == "key":
            continue
        for array in (jnp.array([True]), jnp.array(1j), jax.random.key(0)):
            with pytest.raises((TypeError, ValueError), match=argument):
                case(**{argument: array})
        good = case(**{argument: jnp.float32(options.other)})
        assert good.arguments[argument].dtype == jnp.float32
        jax.jit(lambda x, case=case, argument=argument: case(**{argument: x}))(-1.0)


def test_ranges_of_arrays() -> None:
    for bad in (jnp.float32(1.5), jnp.float32(jnp.nan), jnp.array([0.5, 1.5]), np.array([0.5, -0.5])):
        with pytest.raises(ValueError, match="b1: expected a real number >= 0 and < 1"):
            gx.adam(0.1, b1=bad)
    # In bfloat16 the usual b2 is 1.
    with pytest.raises(ValueError, match="b2"):
        gx.adam(0.1, b2=jnp.bfloat16(0.999))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.real("x", "1"), "x: expected a real number, got '1'"),
        (lambda: checks.real("x", "1", schedule=True), "x: expected a real number or a schedule, got '1'"),
        (lambda: checks.real("x", 2, at_least=0, below=1), "x: expected a real number >= 0 and < 1, got 2"),
        (lambda: checks.real("x", 0.0, above=0), "x: expected a real number > 0, got 0.0"),
        (lambda: checks.real("x", 2.0, at_most=1), "x: expected a real number <= 1, got 2.0"),
        (lambda: checks.real("x", math.nan), "x: expected a real number, got nan"),
        (lambda: checks.integer("n", 1.0), "n: expected an integer, got 1.0"),
        (lambda: checks.integer("n", True), "n: expected an integer, got True"),
        (lambda: checks.integer("n", 0, at_least=1), "n: expected an integer >= 1, got 0"),
        (lambda: checks.integer("n", 9, at_most=8), "n: expected an integer <= 8, got 9"),
        (lambda: checks.choice("mode", "c", ("a", "b")), "mode: expected one of 'a', 'b', got 'c'"),
        (lambda: checks.function("f", 3), "f: expected a function, got 3"),
    ],
)
def test_messages(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value) == message


def test_what_is_in_range_passes() -> None:
    for value in (0, 0.5, np.float32(0.5), np.float64(0.5), np.int64(0), jnp.float32(0.5), math.nextafter(1, 0)):
        checks.real("x", value, at_least=0, below=1)
    checks.real("x", math.inf, at_least=0)
    checks.real("x", lambda step: step, schedule=True)
    checks.integer("n", np.int64(3), at_least=3, at_most=3)


def test_a_step_out_of_range() -> None:
    schedule = gx.schedules.constant(0.5)
    for bad in (True, 1j):
        with pytest.raises(TypeError, match="step"):
            schedule(bad)
    with pytest.raises(ValueError, match=r"step: expected at most 2\*\*31 - 1"):
        schedule(2**31)
