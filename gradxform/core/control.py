"""Choosing between two pieces of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax

T = TypeVar("T")


def branch(condition: jax.Array, on_true: Callable[[], T], on_false: Callable[[], T]) -> T:
    """``on_true()`` or ``on_false()``: by Python where the condition is known, by ``lax.cond`` in a trace.

    Outside of a trace ``lax.cond`` would compile both sides again in every call.
    """
    if isinstance(condition, jax.core.Tracer):
        made: T = jax.lax.cond(condition, on_true, on_false)
        return made
    return on_true() if condition else on_false()
