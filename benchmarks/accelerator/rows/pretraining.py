"""The step that the examples pretrain with: whole, and its parts one by one."""

from __future__ import annotations

import functools
import importlib
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gradxform as gx
from benchmarks.accelerator import inputs
from benchmarks.accelerator.build import Built, Program
from benchmarks.accelerator.cases import Case, Missing, Session
from benchmarks.accelerator.measure import measured
from benchmarks.accelerator.sizes import Sizes
from benchmarks.accelerator.timing import Call, carried, keyed, repeated

EXAMPLES = pathlib.Path(__file__).parents[3] / "examples"
AUGMENT, MODEL, LOSS, UPDATE, WHOLE = "augment", "model", "loss", "update", "whole step"


def cases(sizes: Sizes) -> list[Case]:
    """A case for each kind of images."""
    return [
        Case(f"pretraining step, {name}", "pretraining", functools.partial(_row, name), weight=4.0)
        for name in sizes.pretraining
    ]


def _row(name: str, session: Session) -> dict[str, Any]:
    simclr, (count, *shape) = _example(), session.sizes.pretraining[name]
    images = inputs.photographs(count, shape[0])[..., : shape[2]].astype(np.float32) / 255
    course, run = simclr.begin(images, epochs=10, seed=0)
    images, key = jnp.asarray(images), course.key

    def embed(params: Any, stats: Any, both: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(course.graph, params, stats, copy=True)
        return model(both), nnx.state(model, nnx.BatchStat)

    def views(key: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.concatenate(course.views(key, images))

    def model(params: Any, stats: Any, both: jax.Array, cotangent: jax.Array) -> Any:
        z, pull, stats = jax.vjp(lambda params: embed(params, stats, both), params, has_aux=True)
        return z, pull(cotangent), stats

    def loss(z1: jax.Array, z2: jax.Array) -> jax.Array:
        return gx.losses.nt_xent(z1, z2, simclr.TEMPERATURE)

    def update(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = course.tx.update(gradients, state, params)
        return gx.apply_updates(params, updates), state

    def whole(run: Any, images: jax.Array, key: jax.Array) -> tuple[Any]:
        return (simclr.train_step.__wrapped__(course.graph, course.tx, course.views, run, images, key),)

    both = jnp.concatenate([images, images])
    z = jax.eval_shape(embed, run.params, run.stats, both)[0]
    z1, z2 = jax.random.normal(key, (2, count, z.shape[1]), z.dtype)
    cotangent = jnp.concatenate([z1, z2])
    own, state, run = jax.tree.map(jnp.copy, (run.params, run.state, run))
    gradients = jax.tree.map(lambda x: 0.01 * x, own)
    params, stats = run.params, run.stats
    model_args = jax.tree.map(jnp.copy, (params, stats)) + (both, cotangent)

    def updating(built: Built) -> Call:
        return carried(built, (own, state), gradients)

    entry = measured(
        session,
        {
            WHOLE: (Program(whole, (run, images, key), donate=(0,)), lambda built: carried(built, (run,), images, key)),
            AUGMENT: (Program(views, (key, images)), lambda built: keyed(built, images)),
            MODEL: (Program(model, model_args), lambda built: repeated(built, *model_args)),
            LOSS: (Program(jax.value_and_grad(loss, (0, 1)), (z1, z2)), lambda built: repeated(built, z1, z2)),
            UPDATE: (Program(update, (own, state, gradients), donate=(0, 1)), updating),
        },
    )
    return entry | {"batch": count, "shape": shape}


def _example() -> Any:
    """The example, as Python imports one that it runs: with its neighbours at hand."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("pretrain_simclr")
    except ModuleNotFoundError as error:
        raise Missing(f"{error.name} is not installed: the example needs it") from error
    finally:
        sys.path.remove(str(EXAMPLES))
