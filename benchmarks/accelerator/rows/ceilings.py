"""What the device can do at most: bytes a second of a copy, operations a second of a product."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.build import Program
from benchmarks.accelerator.cases import COPY, Case, Session
from benchmarks.accelerator.measure import measured
from benchmarks.accelerator.timing import carried, repeated


def matmul_name(dtype: str) -> str:
    """The name of the case of products of a dtype."""
    return f"matmul, {dtype}"


def cases() -> list[Case]:
    """A copy and two products."""
    return [
        Case(COPY, "ceilings", _copy, weight=4.0),
        *(
            Case(matmul_name(dtype), "ceilings", functools.partial(_matmul, dtype), weight=4.0)
            for dtype in ("bfloat16", "float32")
        ),
    ]


def _copy(session: Session) -> dict[str, Any]:
    x = jax.random.uniform(jax.random.key(0), (session.sizes.copy,))
    nbytes = 2 * x.nbytes
    # In the memory of its argument, as an optimizer's step is.
    entry = measured(
        session, {COPY: (Program(lambda x: (x + 1.0,), (x,), donate=(0,)), lambda built: carried(built, (x,)))}
    )
    return entry | {"bytes_per_s": nbytes / entry["peers"][COPY]["median_s"]}


def _matmul(dtype: str, session: Session) -> dict[str, Any]:
    size = session.sizes.matmul
    # Not of ones: products of ones take less power, and a device may be faster with them.
    x, y = (jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0)))
    program = Program(lambda x, y: jnp.dot(x, y, precision="highest", preferred_element_type=jnp.float32), (x, y))
    entry = measured(session, {"matmul": (program, lambda built: repeated(built, x, y))})
    return entry | {"flops_per_s": 2 * size**3 / entry["peers"]["matmul"]["median_s"]}
