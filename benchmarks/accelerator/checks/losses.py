"""Contrastive losses and their gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradxform as gx
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.compare import compared

TOLERANCE = 1e-5
"""Of the largest number of a gradient: products are of float32 throughout."""


def _sup_con(a: jax.Array, b: jax.Array) -> jax.Array:
    return gx.losses.sup_con(jnp.concatenate([a, b]), jnp.tile(jnp.arange(len(a)) % 7, 2))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "nt_xent": lambda a, b: gx.losses.nt_xent(a, b, 0.1),
    "clip_loss": lambda a, b: gx.losses.clip_loss(a, b, 14.0),
    "sup_con": _sup_con,
    "siglip": lambda a, b: gx.losses.siglip(a, b, 10.0, -10.0),
}


def cases() -> list[Case]:
    """A check of each loss."""
    return [
        Case(f"check: {name}, value and gradients", "losses", functools.partial(_check, loss), weight=2.0, timed=False)
        for name, loss in LOSSES.items()
    ]


def _check(loss: Callable[..., jax.Array], session: Session) -> dict[str, Any]:
    views = tuple(np.random.default_rng(0).standard_normal((2, *session.sizes.vectors), np.float32))
    return compared(session, jax.value_and_grad(loss, (0, 1)), views, TOLERANCE)
