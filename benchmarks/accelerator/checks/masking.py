"""Masks and patches, which are the same to the bit on every platform."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradxform as gx
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.compare import compared


def _tokens(key: jax.Array) -> Any:
    x = jax.random.randint(key, (8, 49, 16), 0, 1000).astype(jnp.float32)
    drawn = gx.masking.random_masking(key, 8, 49, 12)
    visible = gx.masking.gather_tokens(x, drawn.ids_keep)
    return drawn, gx.masking.scatter_tokens(visible, drawn.ids_restore, 0.0)


MASKS: dict[str, Callable[[jax.Array], Any]] = {
    "random_masking": lambda key: gx.masking.random_masking(key, 8, 196, 49),
    "gather and scatter tokens": _tokens,
    "block_masking": lambda key: gx.masking.block_masking(key, 8, 14, 75),
    "grid_masking": lambda key: gx.masking.grid_masking(key, 8, 14, 2),
    "span_masking": lambda key: gx.masking.span_masking(key, 8, 128, 20),
    "mlm_corrupt": lambda key: gx.masking.mlm_corrupt(
        key, jax.random.randint(key, (8, 128), 5, 1000), mask_id=4, vocab_size=1000, special_ids=(0, 1, 2, 3)
    ),
    "patchify": lambda key: gx.masking.patchify(jax.random.bits(key, (2, 28, 28, 3), jnp.uint8), 7),
}


def cases() -> list[Case]:
    """A check of each."""
    return [
        Case(f"check: {name}", "masking", functools.partial(_check, make), weight=2.0, timed=False)
        for name, make in MASKS.items()
    ]


def _check(make: Callable[[jax.Array], Any], session: Session) -> dict[str, Any]:
    return compared(session, make, (jax.random.key(1),), 0.0)
