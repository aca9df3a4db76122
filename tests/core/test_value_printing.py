"""A value prints as the call that makes it."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from value_catalog import VALUES, WITH_ARRAYS

import gradxform as gx

WIDTH = 120

# stateless holds a function, which has no spelling that could be evaluated.
SPELLABLE = [name for name in VALUES if name not in {"stateless"} | WITH_ARRAYS]


@pytest.mark.parametrize("name", SPELLABLE)
def test_what_is_printed_makes_the_value(name: str) -> None:
    assert eval(repr(VALUES[name]), dict(vars(gx))) == VALUES[name]


@pytest.mark.parametrize("name", [name for name in SPELLABLE if isinstance(VALUES[name], gx.Transformation)])
def test_what_is_printed_makes_a_value_inside_a_chain(name: str) -> None:
    tx = gx.chain(gx.clip(1.0), VALUES[name])
    assert eval(repr(tx), dict(vars(gx))) == tx


@pytest.mark.parametrize("name", VALUES)
def test_lines_fit(name: str) -> None:
    text = repr(gx.chain(VALUES[name])) if isinstance(VALUES[name], gx.Transformation) else repr(VALUES[name])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text == "\n".join(line.rstrip() for line in text.splitlines())
    assert str(VALUES[name]) == repr(VALUES[name])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (gx.clip(1), "clip(max_delta=1.0)"),
        (gx.clip_by_global_norm(1.0, eps=1e-6), "clip_by_global_norm(max_norm=1.0, eps=1e-06)"),
        (gx.identity(), "identity()"),
        (gx.chain(), "chain()"),
        (
            gx.sgd(0.1),
            "sgd(learning_rate=0.1, momentum=None, nesterov=False, accumulator_dtype=None, weight_decay=None, "
            "mask=None)",
        ),
        (
            gx.chain(gx.clip_by_global_norm(1.0), gx.scale(-0.1)),
            "chain(clip_by_global_norm(max_norm=1.0), scale(step_size=-0.1))",
        ),
        (
            gx.named_chain(("clip", gx.clip(1.0)), ("rate", gx.scale(-0.1))),
            "named_chain(('clip', clip(max_delta=1.0)), ('rate', scale(step_size=-0.1)))",
        ),
        (
            gx.schedules.cosine(3e-4, 1000, 1e-5),
            "schedules.cosine(init_value=0.0003, steps=1000, end_value=1e-05, exponent=1.0)",
        ),
        (
            gx.scale_by_schedule(gx.schedules.linear(1, 0, 4)),
            "scale_by_schedule(step_size_fn=schedules.linear(init_value=1.0, end_value=0.0, steps=4))",
        ),
        (
            gx.schedules.piecewise(1.0, {2: 0.5, 4: 0.1}),
            "schedules.piecewise(init_value=1.0, boundaries_and_scales={2: 0.5, 4: 0.1})",
        ),
        (
            gx.trace(0.9, accumulator_dtype=jnp.bfloat16),
            "trace(decay=0.9, nesterov=False, accumulator_dtype='bfloat16')",
        ),
        (gx.path_matches(r"^head\b"), r"path_matches(pattern='^head\\b')"),
        (gx.ndim_at_least(2) & ~gx.path_matches("embed"), "(ndim_at_least(n=2) & ~path_matches(pattern='embed'))"),
        (~(gx.ndim_at_least(2) | gx.path_matches("a")), "~(ndim_at_least(n=2) | path_matches(pattern='a'))"),
        (gx.freeze({"a": True, "b": {"c": False}}), "freeze(mask={'a': True, 'b': {'c': False}})"),
        (gx.freeze(gx.path_matches("a")), "freeze(mask=path_matches(pattern='a'))"),
        (gx.adaptive_grad_clip(0.1, axis=(0, 1)), "adaptive_grad_clip(clipping=0.1, eps=0.001, axis=(0, 1))"),
        (gx.adaptive_grad_clip(0.1, axis=(0,)), "adaptive_grad_clip(clipping=0.1, eps=0.001, axis=(0,))"),
    ],
)
def test_on_one_line(value: object, text: str) -> None:
    assert repr(value) == text


def test_on_indented_lines() -> None:
    rate = gx.schedules.warmup(100, gx.schedules.cosine(3e-4, 1000, 1e-5))
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(rate, weight_decay=0.01, mask=gx.ndim_at_least(2)))
    assert (
        repr(tx)
        == """\
chain(
  clip_by_global_norm(max_norm=1.0),
  adamw(
    learning_rate=schedules.warmup(
      steps=100,
      schedule=schedules.cosine(init_value=0.0003, steps=1000, end_value=1e-05, exponent=1.0),
      init_value=0.0,
    ),
    b1=0.9,
    b2=0.999,
    eps=1e-08,
    eps_root=0.0,
    mu_dtype=None,
    weight_decay=0.01,
    mask=ndim_at_least(n=2),
  ),
)"""
    )


def test_options_print_where_they_are_not_the_default() -> None:
    """What can only be given by keyword is printed when it was given another value."""
    assert "nesterov" not in repr(gx.adamw(0.1))
    assert "nesterov=True" in repr(gx.adamw(0.1, nesterov=True))
    assert "base_learning_rate=0.5" in repr(gx.adamw(0.1, base_learning_rate=0.5))
    assert "eps" not in repr(gx.clip_by_global_norm(1.0))
    tx = gx.clip_by_global_norm(1.0, eps=-0.0)
    assert eval(repr(tx), dict(vars(gx))) == tx


def test_deep_nesting_prints_at_once() -> None:
    tx = gx.adamw(0.1)
    for _ in range(40):
        tx = gx.chain(tx)
    assert repr(tx).count("chain(") == 40


def test_long_masks_and_named_chains_are_indented() -> None:
    mask = {f"layer_{i}": {"kernel": True, "bias": False} for i in range(4)}
    assert (
        repr(gx.named_chain(("first", gx.freeze(mask)), ("second", gx.scale(0.5))))
        == """\
named_chain(
  (
    'first',
    freeze(
      mask={
        'layer_0': {'kernel': True, 'bias': False},
        'layer_1': {'kernel': True, 'bias': False},
        'layer_2': {'kernel': True, 'bias': False},
        'layer_3': {'kernel': True, 'bias': False},
      },
    ),
  ),
  ('second', scale(step_size=0.5)),
)"""
    )


@pytest.mark.parametrize("width", range(116, 125))
def test_the_last_line_that_fits_has_120_columns(width: int) -> None:
    pattern = "x" * (width - len(repr(gx.path_matches(""))))
    text = repr(gx.chain(gx.freeze(gx.path_matches(pattern))))
    one_line = len(f"chain(freeze(mask={gx.path_matches(pattern)!r}))")
    assert ("\n" in text) == (one_line > WIDTH)
    text = repr(gx.freeze(gx.path_matches("y" * (width - len(repr(gx.freeze(gx.path_matches(""))))))))
    assert ("\n" in text) == (width > WIDTH)


def test_long_selectors_are_indented() -> None:
    selector = gx.ndim_at_least(2)
    for i in range(6):
        selector = selector & ~gx.path_matches(f"a_rather_long_name_of_layer_{i}")
    text = repr(gx.freeze(selector))
    assert eval(text, dict(vars(gx))) == gx.freeze(selector)
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("number", [math.inf, -math.inf, 1e-300, 1e22, -0.0, 5e-324])
def test_any_float_can_be_read_back(number: float) -> None:
    tx = gx.scale(number)
    assert eval(repr(tx), dict(vars(gx))) == tx


def test_arrays_print_on_one_line() -> None:
    assert repr(gx.scale(jnp.float32(0.5))) == "scale(step_size=Array(0.5, dtype=float32))"
    assert repr(gx.scale(np.array([0.5, 0.25]))) == "scale(step_size=array([0.5 , 0.25]))"
    assert "\n" not in repr(gx.schedules.constant(jnp.ones((2, 2))))


def test_tracers_print() -> None:
    seen = []
    jax.jit(lambda tx: seen.append(repr(tx)))(gx.chain(gx.scale(0.5)))
    assert seen[0].startswith("chain(scale(step_size=")


@pytest.mark.parametrize(
    ("tx", "word"),
    [
        (optax.adam(1e-3), "optax"),
        (optax.clip(1.0), "clip"),
        (optax.scale_by_adam(), "scale_by_adam"),
        (optax.add_decayed_weights(0.1), "add_decayed_weights"),
        (optax.trace(0.9), "trace"),
        (optax.masked(optax.scale(0.5), True), "masked"),
    ],
)
def test_transformations_of_other_libraries_print_as_a_name(tx: optax.GradientTransformation, word: str) -> None:
    text = repr(gx.chain(tx))
    assert re.fullmatch(r"chain\(<[\w.]+>\)", text), text
    assert "optax" in text
    assert word in text


def my_rate(step: int) -> float:
    return 0.5


def test_functions_print_as_a_name() -> None:
    text = repr(gx.scale_by_schedule(my_rate))
    assert "my_rate" in text
    assert " at 0x" not in text
    text = repr(gx.scale_by_schedule(optax.cosine_decay_schedule(1.0, 10)))
    assert "optax" in text
    assert "cosine_decay_schedule" in text
    assert " at 0x" not in text
