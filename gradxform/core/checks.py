"""Argument checks: an error names the argument, what was found and what was expected.

A traced number is only known when the program runs, so ranges are checked for concrete numbers alone.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def is_concrete(value: object) -> TypeGuard[float]:
    """Whether ``value`` can be looked at now: a Python or NumPy number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def real(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    below: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    schedule: bool = False,
) -> None:
    """Refuses an argument that is not a real number (or, where allowed, a schedule) in its range.

    Raises:
      TypeError: ``value`` is no real number.
      ValueError: ``value`` is NaN or out of range.
    """
    if schedule and callable(value):
        return
    if isinstance(value, (jax.Array, np.ndarray)):
        if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
            raise TypeError(f"{name}: expected a real number, got an array of dtype {value.dtype}")
        if not isinstance(value, jax.core.Tracer):
            for item in np.asarray(value, np.float64).ravel().tolist():
                real(name, item, at_least=at_least, above=above, below=below, at_most=at_most)
        return
    if _is_placeholder(value):
        return
    if not is_concrete(value):
        wanted = "a real number or a schedule" if schedule else "a real number"
        raise TypeError(f"{name}: expected {wanted}, got {value!r}")
    _within(name, value, "a real number", at_least=at_least, above=above, below=below, at_most=at_most)


def integer(
    name: str, value: object, *, at_least: int | None = None, at_most: int | None = None, known: bool = False
) -> None:
    """Refuses an argument that is not an integer in its range.

    Args:
      name: the name of the argument.
      value: what was given.
      at_least: the least value.
      at_most: the largest value.
      known: whether it has to be known when the program is made, because shapes depend on it.

    Raises:
      TypeError: ``value`` is no integer, or an array where it has to be known.
      ValueError: ``value`` is out of range.
    """
    if known and isinstance(value, jax.Array):
        raise TypeError(
            f"{name}: expected an int, on which the shape of the state depends, got an array of dtype "
            f"{value.dtype}; optax.inject_hyperparams takes it with static_args={name!r}"
        )
    if isinstance(value, jax.Array):
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name}: expected an integer, got an array of dtype {value.dtype}")
        return
    if _is_placeholder(value):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    _within(name, value, "an integer", at_least=at_least, at_most=at_most)


def choice(name: str, value: object, options: tuple[str, ...]) -> None:
    """Refuses an argument that is not one of ``options``.

    Raises:
      ValueError: ``value`` is not among them.
    """
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")


def inexact_dtype(name: str, value: DTypeLike | None) -> None:
    """Refuses a dtype to store numbers in that is neither None nor floating-point nor complex.

    Raises:
      TypeError: for another dtype.
    """
    if value is not None and not jnp.issubdtype(jnp.dtype(value), jnp.inexact):
        raise TypeError(f"{name}: expected a floating-point dtype, got {value!r}")


def function(name: str, value: object) -> Callable[..., Any]:
    """Refuses an argument that cannot be called.

    Raises:
      TypeError: ``value`` is not callable.
    """
    if not callable(value):
        raise TypeError(f"{name}: expected a function, got {value!r}")
    return value


def _is_placeholder(value: object) -> bool:
    # jax fills a tree with shapes, None or bare objects while it works out axes and shardings.
    return type(value) is object or isinstance(value, jax.ShapeDtypeStruct)


_BOUNDS = {
    "at_least": (">=", operator.ge),
    "above": (">", operator.gt),
    "below": ("<", operator.lt),
    "at_most": ("<=", operator.le),
}


def _within(name: str, value: float | numbers.Integral, what: str, **bounds: float | None) -> None:
    """Refuses NaN and a number that is out of bounds."""
    limits = [(*_BOUNDS[side], bound) for side, bound in bounds.items() if bound is not None]
    if math.isnan(value) or not all(fits(value, bound) for _, fits, bound in limits):
        wanted = " and ".join(f"{sign} {bound}" for sign, _, bound in limits)
        raise ValueError(f"{name}: expected {what} {wanted}".rstrip() + f", got {value!r}")
