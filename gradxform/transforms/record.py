"""Recording norms on the way, and reading what was recorded."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core.manual import AxisName, check_axis_name, refuse_pieces, varying_like
from gradxform.core.numbers import real_dtype, wide_dtype
from gradxform.core.stages import Around, Later
from gradxform.core.transformation import transformation
from gradxform.core.trees import refuse_integers
from gradxform.core.types import Params, Updates
from gradxform.transforms.clip import global_norm


class RecordNormsState(NamedTuple):
    """The norms of the last step: what came in at this place, what left the chain, and the params."""

    gradient_norm: jax.Array
    update_norm: jax.Array
    param_norm: jax.Array

    def recorded(self) -> dict[str, jax.Array]:
        """What ``metrics`` shows."""
        return self._asdict()


@transformation
def record_norms(*, axis_name: AxisName = None) -> Around:
    """Records three norms and changes nothing.

    ``gradient_norm`` is the norm of what comes in at its place: put first in a chain, the gradient before the clip.
    ``update_norm`` is the norm of what leaves the outermost chain (inside ``accumulate`` and the like, of what leaves
    the transformation in there), and ``param_norm`` that of the params, NaN where none were given. Read them with
    ``metrics(state)``.

    Args:
      axis_name: as in ``global_norm``.

    Returns:
      A transformation whose state holds the norms of the last step, 0 before the first.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.chain(gx.record_norms(), gx.clip_by_global_norm(1.0), gx.sgd(0.5))
      >>> _, state = tx.update({"w": 4.0}, tx.init({"w": 3.0}), {"w": 3.0})
      >>> {name: float(value) for name, value in gx.metrics(state).items()}
      {'gradient_norm': 4.0, 'update_norm': 0.5, 'param_norm': 3.0}
    """
    check_axis_name(axis_name)

    def init(params: Params) -> RecordNormsState:
        # Three arrays, not one in three places: a buffer can be donated once.
        refuse_integers(params, "params")
        # By dtype alone, so that shapes without values will do.
        dtypes = [real_dtype(wide_dtype(jnp.result_type(leaf))) for leaf in jax.tree.leaves(params)]
        zeros = [jnp.zeros([], jnp.result_type(jnp.float32, *dtypes)) for _ in RecordNormsState._fields]
        return RecordNormsState(*(varying_like(params, zeros) if axis_name == () else zeros))

    def update(
        updates: Updates, state: RecordNormsState, params: Params | None = None, **extra: object
    ) -> tuple[Updates, Later]:
        def norm_of(tree: Updates) -> jax.Array:
            return global_norm(tree, axis_name).astype(state.param_norm.dtype)

        refuse_pieces("record_norms", axis_name, updates)
        came_in = norm_of(updates)
        weights = jnp.full_like(state.param_norm, jnp.nan) if params is None else norm_of(params)
        return updates, Later(lambda left: RecordNormsState(came_in, norm_of(left), weights))

    return Around(init, update, state=RecordNormsState)
