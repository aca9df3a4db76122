"""AdamW by every codec: bytes of its state, bytes to and from HBM as compilers make them, temporaries here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradxform as gx
from benchmarks.compiled import report, target

P = gx.precision
CODECS: dict[str, gx.precision.Codec | None] = {
    "float32": None,
    "bf16": P.bf16(),
    "fp8": P.fp8(),
    "int8 row": P.int8_blockwise(),
    "int8 32": P.int8_blockwise(32),
    "int8 256": P.int8_blockwise(256),
    "int4 row": P.int4_blockwise("row"),
    "int4 128": P.int4_blockwise(),
}
MAKERS: dict[str, Callable[[], Any]] = {
    "gx.adamw": lambda: gx.adamw(1e-3),
    "optax.adamw": lambda: optax.adamw(1e-3),
    "clip + adamw": lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-3)),
    "lamb": lambda: gx.lamb(1e-3),
    "lion": lambda: gx.lion(1e-4),
    "adafactor": lambda: gx.adafactor(1e-3),
}
Shapes = Mapping[str, tuple[int, ...]]
LARGE: Shapes = {"w": (8192, 8192)}
"""67M parameters, of which arrays do not fit a chip's fast memory."""
SMALL: Shapes = {f"w{i}": (1024, 1024) for i in range(8)}


def stored(tx: Any, codec: gx.precision.Codec | None) -> Any:
    """The transformation with its state in codes, or as it is."""
    return tx if codec is None else P.compress_state(tx, codec)


def abstract(shapes: Shapes) -> Any:
    """Params to come."""
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def step_of(tx: Any) -> Callable[..., Any]:
    """``step(params, state, grads)``, the new params and state."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return gx.apply_updates(params, updates), state

    return step


def state_bytes(params: Any) -> dict[str, dict[str, float]]:
    """Bytes of state a parameter, of every transformation by every codec; params may be shapes."""
    return {
        name: {
            by: P.memory(jax.eval_shape(stored(make(), codec).init, params), params).per_param
            for by, codec in CODECS.items()
        }
        for name, make in MAKERS.items()
    }


def compiled(tx: Any, topology: str, shapes: Shapes = LARGE) -> dict[str, float]:
    """Bytes a parameter to and from HBM, and of temporaries, in a donated step compiled for a chip that is not there.

    Raises:
      RuntimeError: the compiler is not installed.
    """
    params, size = abstract(shapes), sum(map(math.prod, shapes.values()))
    arguments = (params, jax.eval_shape(tx.init, params), params)
    made = target.compile_for(step_of(tx), arguments, target.mesh_of(topology), (0, 1))
    seen = report.report_of(made, target.chip_of(topology))
    return {"hbm": seen.hbm_bytes / size, "temp": made.temp / size, "seconds": made.seconds}


def temporaries(tx: Any, shapes: Shapes = SMALL) -> dict[str, float]:
    """Bytes a parameter of temporaries of a donated step on this machine, and the seconds to build it."""
    params, start = abstract(shapes), time.process_time()
    program = (
        jax.jit(step_of(tx), donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params), params).compile()
    )
    return {
        "temp": program.memory_analysis().temp_size_in_bytes / sum(map(math.prod, shapes.values())),
        "seconds": time.process_time() - start,
    }
