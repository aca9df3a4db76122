"""Recording norms on the way, and reading what was recorded."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core.stages import Around, Later
from gradxform.core.transformation import transformation
from gradxform.core.types import Params, Updates
from gradxform.transforms.clip import global_norm


class RecordNormsState(NamedTuple):
    """The norms of the last step: what came in at this place, what left the chain, and the params."""

    gradient_norm: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array


@transformation
def record_norms() -> Around:
    """Records three norms and changes nothing.

    ``gradient_norm`` is the norm of what comes in at its place: put first in a chain, the gradient before the clip.
    ``update_norm`` is the norm of what leaves the outermost chain (inside ``accumulate`` and the like, of what leaves
    the transformation in there), and ``param_norm`` that of the params, NaN where
    none were given. Read them with ``metrics(state)``.

    Returns:
      A transformation whose state holds the norms of the last step, 0 before the first.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.chain(gx.record_norms(), gx.clip_by_global_norm(1.0), gx.sgd(0.5))
      >>> _, state = tx.update({"w": 4.0}, tx.init({"w": 3.0}), {"w": 3.0})
      >>> {name: float(value) for name, value in gx.metrics(state).items()}
      {'gradient_norm': 4.0, 'update_norm': 0.5, 'param_norm': 3.0}
    """
    def init(params: Params) -> RecordNormsState:
        # Three arrays, not one in three places: a buffer can be donated once.
        return RecordNormsState(*(jnp.zeros_like(global_norm(params)) for _ in RecordNormsState._fields))

    def update(updates: Updates, state: RecordNormsState, params: Params | None = None,
               **extra: Any) -> tuple[Updates, Later]:
        def norm_of(tree: Any) -> jax.Array:
            return global_norm(tree).astype(state.param_norm.dtype)

        came_in = norm_of(updates)
        weights = jnp.full_like(state.param_norm, jnp.nan) if params is None else norm_of(params)
        return updates, Later(lambda left: RecordNormsState(came_in, norm_of(left), weights))

    return Around(init, update, state=RecordNormsState)
