"""Looking inside a run: the hyperparameters of a step and what was recorded in it."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gradxform.core.stages import Around, Chain, count_of
from gradxform.core.transformation import Transformation
from gradxform.core.types import AnyTransformation, State
from gradxform.core.value import Value
from gradxform.transforms.nonfinite import SkipNonfiniteState
from gradxform.transforms.record import RecordNormsState


def hyperparams(tx: AnyTransformation, state: State) -> dict[str, Any]:
    """The current value of every numeric hyperparameter, schedules evaluated at the state's step.

    The step is the number of updates made, so a schedule shows the rate of the next one.

    Args:
      tx: a transformation; those of other libraries inside it show nothing.
      state: its state.

    Returns:
      A dict from the path of each hyperparameter (``learning_rate``; inside a chain ``1/learning_rate``; inside a
      named chain ``rate/learning_rate``) to a number or a scalar array.

    Raises:
      ValueError: ``state`` is not the state of ``tx``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(gx.schedules.linear(0.5, 0.0, 4), momentum=0.9))
      >>> gx.hyperparams(tx, tx.init({"w": 0.0}))
      {'0/max_norm': 1.0, '0/eps': 0.0, '1/learning_rate': Array(0.5, dtype=float32), '1/momentum': 0.9}
    """
    return dict(_hyperparams(tx, state, ""))


def metrics(state: State) -> dict[str, jax.Array]:
    """What recording transformations stored in a state.

    Args:
      state: the state of any transformation, optax's or flax's containers around it included.

    Returns:
      A dict of scalars by name: ``gradient_norm``, ``update_norm`` and ``param_norm`` of ``record_norms``,
      ``skipped_steps`` and ``consecutive_skips`` of ``skip_nonfinite``. A name that comes again is preceded by its
      path in the state.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.record_norms()
      >>> gx.metrics(tx.init({"w": 3.0}))["gradient_norm"]
      Array(0., dtype=float32)
    """
    found: dict[str, jax.Array] = {}
    for where, name, value in _metrics(state, ()):
        found[f"{where}/{name}" if name in found else name] = value
    return found


def _metrics(state: State, above: tuple[Any, ...]) -> Iterator[tuple[str, str, jax.Array]]:
    recorded = (RecordNormsState, SkipNonfiniteState)
    for path, part in jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, recorded)):
        path = (*above, *path)
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(part, RecordNormsState):
            for name, value in part._asdict().items():
                yield where, name, value
        elif isinstance(part, SkipNonfiniteState):
            yield where, "skipped_steps", part.skipped_steps
            yield where, "consecutive_skips", part.consecutive_skips
            yield from _metrics(part.inner_state, (*path, jax.tree_util.GetAttrKey("inner_state")))


def _hyperparams(tx: AnyTransformation, state: State, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tx, Transformation):
        return
    for name, value in tx.arguments.items():
        if callable(value) and name in tx._definition.schedules | {"step_size_fn", "every"}:
            step = count_of(tx.stage, state, tx.name)
            if step is None:
                raise ValueError(f"state: expected the state of {tx.name}, which counts its steps, got {state!r}")
            yield prefix + name, value(step)
        elif _is_numeric(value):
            yield prefix + name, value
    for key, (inner, part) in _inner(tx, state).items():
            yield from _hyperparams(inner, part, f"{prefix}{key}/")


def _inner(tx: Transformation, state: State) -> Mapping[str, tuple[Any, State]]:
    """The transformations that ``tx`` was given, each with its state; none for a recipe: it has its own."""
    built = tx.built
    if isinstance(built, Chain):
        return {key: (inner, own) for (key, inner), own in zip(
            built.inner.items(), built.states(state, tx.name), strict=False)}
    return built.inner(state) if isinstance(built, Around) and built.inner is not None else {}


def _is_numeric(value: Any) -> bool:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return False
    return isinstance(value, (numbers.Number, jax.Array, np.ndarray)) and not isinstance(value, (bool, Value))


