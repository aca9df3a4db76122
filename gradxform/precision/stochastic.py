"""Params of 16 bits alone, rounded at random so that small steps are not lost on average."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import checks, stages
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import increment, widen
from gradxform.core.run import run
from gradxform.core.stages import Around
from gradxform.core.transformation import transformation
from gradxform.core.trees import align, check_shapes, flatten, named_leaves
from gradxform.core.types import AnyTransformation, Params, State, Updates
from gradxform.precision import words
from gradxform.precision.noise import noise

NAME = "precision.stochastic_rounding"


class StochasticRoundingState(NamedTuple):
    """The updates made, and the state of the transformation inside."""

    step: jax.Array
    inner_state: State


@transformation
def stochastic_rounding(tx: AnyTransformation, seed: int = 0) -> Around:
    """Rounds the new bfloat16 params up or down at random, so that they move as float32 would on average.

    ``q = (bits(p + u) + noise) >> 16`` with 16 uniform random bits: of a step that is a tenth of the distance between
    two params, one in ten is made whole. Plain bfloat16 params lose each step below half of it: at a rate of 1e-4 most.
    It is ``master_weights`` without its two bytes of state; what was rounded off is gone. ``tx`` sees the params in
    float32; float32 and wider params are not rounded.

    The random bits are a hash of the seed, the step, and the place of the element in the tree: the same on any mesh.
    Inside ``shard_map`` each device counts places in its own shard, and gives the same bits to the same place.

    Args:
      tx: the transformation of the params.
      seed: of the random bits.

    Returns:
      A transformation that needs params. Its updates are float32 and nothing may change them, as with
      ``master_weights``.

    Raises:
      TypeError: ``tx`` is not a transformation or ``seed`` not an integer; from ``init``, a param of another dtype
        below 32 bits than bfloat16, with its path.
      ValueError: from ``update``, params are missing.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx, params = gx.precision.stochastic_rounding(gx.sgd(1.0)), {"w": jnp.ones(10_000, jnp.bfloat16)}
      >>> updates, state = tx.update({"w": jnp.full(10_000, 0.001)}, tx.init(params), params)
      >>> round(float(1 + jnp.mean(updates["w"])), 4)
      0.999
    """
    checks.integer("seed", seed)
    stage = stage_of(tx, "tx")

    def init(params: Params) -> StochasticRoundingState:
        for path, leaf in named_leaves(params):
            dtype = jnp.result_type(leaf)
            if jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.bfloat16 and jnp.finfo(dtype).bits < 32:
                raise TypeError(
                    f"{NAME}: expected params of bfloat16 or float32, got {dtype} at '{path}'; "
                    "precision.master_weights takes it"
                )
        wide = jax.tree.map(words.widened, params)
        return StochasticRoundingState(jnp.zeros([], jnp.int32), stages.init(stage, wide))

    def update(
        updates: Updates, state: StochasticRoundingState, params: Params | None = None, **extra: object
    ) -> tuple[Updates, StochasticRoundingState]:
        if params is None:
            raise ValueError(f"{NAME}: expected params, got None: call update(updates, state, params)")
        leaves, treedef = flatten(updates)
        own = align(treedef, updates, params, "params")
        check_shapes(updates, leaves, own, "updates", "params")
        new, inner_state = run(stage, updates, state.inner_state, jax.tree.map(words.widened, params), extra, NAME)
        step = increment(state.step)
        rounded = [
            _round(jnp.asarray(p), u, seed, step, i) if jnp.result_type(p) == jnp.bfloat16 else u
            for i, (p, u) in enumerate(zip(own, jax.tree.leaves(new), strict=True))
        ]
        return treedef.unflatten(rounded), StochasticRoundingState(step, inner_state)

    return Around(init, update, lambda state: {"tx": (tx, state.inner_state)}, StochasticRoundingState, final=True)


@jax.jit
def _round(p: jax.Array, update: jax.Array, seed: int, step: jax.Array, leaf: int) -> jax.Array:
    return words.between(p, words.truncate(widen(p) + update, noise(seed, step, leaf, p.shape, 16)))
