"""Contrastive losses and their gradients, beside their dense forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import gradxform as gx
from benchmarks import contrastive
from benchmarks.compiled.program import OURS, Call, Program, shaped

HIGHEST, DEFAULT = "dense, HIGHEST", "dense, default precision"
LOGIT_SCALE, LOGIT_BIAS, TEMPERATURE = 10.0, -10.0, 0.5


def dense_clip(x: jax.Array, y: jax.Array) -> jax.Array:
    """CLIP's loss as its formula reads."""
    u, v = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    logits = LOGIT_SCALE * u @ v.T
    own = jnp.diagonal(logits)
    return jnp.mean((jax.nn.logsumexp(logits, 0) + jax.nn.logsumexp(logits, 1)) / 2 - own)


def at(precision: str, loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loss whose products have a precision."""

    def call(*args: Any) -> jax.Array:
        with jax.default_matmul_precision(precision):
            return loss(*args)

    return call


def _pairs(
    name: str,
    peer: str,
    n: int,
    d: int,
    loss: Callable[..., jax.Array],
    dtype: Any = jnp.float32,
    note: str = "",
    **how: Any,
) -> Program:
    x = shaped((n, d), dtype)
    return Program(
        "losses",
        f"{name} {n:,} pairs of {d}, {jnp.dtype(dtype).name}{note}",
        peer,
        lambda _: Call(jax.value_and_grad(loss, (0, 1)), (x, x)),
        **how,
    )


def nt_xent(temperature: float = TEMPERATURE, **how: Any) -> Callable[..., jax.Array]:
    return lambda x, y: gx.losses.nt_xent(x, y, temperature, **how)


def dense(x: jax.Array, y: jax.Array) -> jax.Array:
    return contrastive.dense(x, y, TEMPERATURE)


def clip(x: jax.Array, y: jax.Array) -> jax.Array:
    return gx.losses.clip_loss(x, y, LOGIT_SCALE)


def siglip(x: jax.Array, y: jax.Array) -> jax.Array:
    return gx.losses.siglip(x, y, LOGIT_SCALE, LOGIT_BIAS)


def _sup_con(vectors: int, d: int) -> Program:
    arguments = shaped((vectors, d)), shaped((vectors,), jnp.int32)
    return Program(
        "losses",
        f"sup_con {vectors:,} vectors of {d}, float32",
        OURS,
        lambda _: Call(jax.value_and_grad(gx.losses.sup_con), arguments),
    )


def programs() -> Iterator[Program]:
    """The room's programs."""
    yield _pairs("nt_xent", OURS, 4096, 128, nt_xent())
    for peer, precision in ((HIGHEST, "highest"), (DEFAULT, "default")):
        yield _pairs("nt_xent", peer, 4096, 128, at(precision, dense))
    yield _pairs("nt_xent", OURS, 4096, 128, nt_xent(block_size=2048), note=", block_size=2048")
    yield _pairs("nt_xent", OURS, 4096, 128, nt_xent(), jnp.bfloat16)
    yield _pairs("nt_xent", DEFAULT, 4096, 128, at("default", dense), jnp.bfloat16)
    yield _pairs("nt_xent", OURS, 4096, 256, nt_xent(0.01), note=", temperature 0.01")
    yield _pairs("clip_loss", OURS, 4096, 256, clip)
    yield _pairs("clip_loss", HIGHEST, 4096, 256, at("highest", dense_clip))
    yield _sup_con(8192, 128)
    yield _pairs("siglip", OURS, 4096, 256, siglip)
    for dtype in (jnp.float32, jnp.bfloat16):
        yield _pairs("nt_xent", OURS, 65536, 256, nt_xent(), dtype)
