"""Choosing between two pieces of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def branch(condition: jax.Array, on_true: Callable[[], Any], on_false: Callable[[], Any]) -> Any:
    """``on_true()`` or ``on_false()``: by Python where the condition is known, by ``lax.cond`` in a trace.

    Outside of a trace ``lax.cond`` would compile both sides again in every call.
    """
    if isinstance(condition, jax.core.Tracer):
        return jax.lax.cond(condition, on_true, on_false)
    return on_true() if condition else on_false()
