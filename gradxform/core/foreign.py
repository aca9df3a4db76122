"""Another library's transformation as a stage: it sees the dtypes it knows, and its state keeps them."""

from __future__ import annotations

from typing import TypeGuard

import jax
import jax.numpy as jnp
import optax

from gradxform.core.numbers import cast
from gradxform.core.stages import Around, Stage
from gradxform.core.trees import align, flatten, is_inexact, structure
from gradxform.core.types import AnyTransformation, Params, State, Updates


def is_transformation(x: object) -> TypeGuard[AnyTransformation]:
    """Whether ``x`` has the two functions of a transformation."""
    return all(callable(getattr(x, name, None)) for name in ("init", "update"))


def stage_of(transformation: AnyTransformation, name: str = "tx") -> Stage:
    """The stage of any transformation, ours or another library's, given as the argument ``name``.

    Raises:
      TypeError: it has no ``init`` and ``update``.
    """
    stage: Stage | None = getattr(transformation, "stage", None)
    if isinstance(stage, Stage):
        return stage
    if not is_transformation(transformation):
        raise TypeError(f"{name}: expected a transformation, got {transformation!r}")
    tx = optax.with_extra_args_support(transformation)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: object) -> tuple[Updates, State]:
        if params is not None:
            # It expects updates in the dtype of the params, not in the one that ours compute in.
            leaves, treedef = flatten(updates)
            like = align(treedef, updates, params, "params")
            updates = treedef.unflatten(
                [cast(x, jnp.result_type(p)) if is_inexact(x) else x for x, p in zip(leaves, like, strict=True)]
            )
        updates, new = tx.update(updates, state, params, **extra)
        if structure(new) == structure(state):
            new = jax.tree.map(
                lambda x, old: cast(x, old.dtype) if is_inexact(x) and hasattr(old, "dtype") else x, new, state
            )
        return updates, new

    return Around(tx.init, update)
