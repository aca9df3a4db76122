"""Kernels for a TPU are lowered whatever types a program around them has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import pytest

import gradxform as gx

ROTATION = gx.augment.random_rotation(15)
PROGRAMS: dict[str, tuple[Callable[..., Any], Any]] = {
    "tiles": (jax.grad(lambda z: gx.losses.nt_xent(z[0], z[1], 0.5)), ((2, 2048, 128), jnp.float32)),
    "rows": (jax.grad(lambda x: jnp.sum(gx.norm.layer_norm(x) ** 2)), ((4096, 1024), jnp.float32)),
    "look-ups": (lambda image: ROTATION(jax.random.key(0), image), ((4, 64, 64, 3), jnp.uint8)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_with_types_of_64_bits(name: str) -> None:
    program, (shape, dtype) = PROGRAMS[name]
    with harness.precision(64):
        traced = jax.jit(program).trace(jax.ShapeDtypeStruct(shape, dtype))
        assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
