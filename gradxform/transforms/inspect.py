"""Looking inside a run: the hyperparameters of a step and what was recorded in it."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeGuard, cast

import jax
import numpy as np

from gradxform.core import inside, places
from gradxform.core.foreign import is_transformation
from gradxform.core.stages import Around, Chain, count_of
from gradxform.core.transformation import Transformation
from gradxform.core.types import AnyTransformation, KeyPath, Scalar, State
from gradxform.core.value import Value
from gradxform.transforms.nonfinite import check_finite


class Trainer(Protocol):
    """What has a transformation and its state: a train state of flax, an ``nnx.Optimizer``."""

    @property
    def tx(self) -> AnyTransformation:
        """The transformation."""

    @property
    def opt_state(self) -> State:
        """Its state."""


def hyperparams(tx: AnyTransformation | Trainer, state: State = None) -> dict[str, Any]:
    """The current value of every numeric hyperparameter, schedules evaluated at the state's step.

    The step is the number of updates made, so a schedule shows the rate of the next one.

    Another library's transformation shows nothing of its own, but what it has of ours inside: under the path of its
    state there (``0/learning_rate`` in ``optax.chain``, ``inner_opt_state/learning_rate`` in ``optax.MultiSteps``).
    Which and where they are its ``init`` tells, called with optax's placeholder for params. Nothing is shown where it
    fails on that (labels by a function that needs real params, ``optax.flatten``) or makes ours anew in each call.
    ``optax.inject_hyperparams`` of a factory of ours is known: it shows the numbers in its state, and of a schedule
    given to it the one that optax put there, the rate of the last update.

    Args:
      tx: a transformation, ours or one with ours inside; or, alone, what has ``tx`` and ``opt_state``: a train state
        of flax, an ``nnx.Optimizer``.
      state: its state, of arrays or of variables of Flax NNX.

    Returns:
      A dict from the path of each hyperparameter (``learning_rate``; inside a chain ``1/learning_rate``; inside a
      named chain ``rate/learning_rate``) to a number or a scalar array.

    Raises:
      TypeError: ``tx`` is not a transformation, or its state is missing.
      ValueError: ``state`` is not the state of ``tx``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(gx.schedules.linear(0.5, 0.0, 4), momentum=0.9))
      >>> gx.hyperparams(tx, tx.init({"w": 0.0}))
      {'0/max_norm': 1.0, '0/eps': 0.0, '1/learning_rate': Array(0.5, dtype=float32), '1/momentum': 0.9}
    """
    if state is None and _is_trainer(tx):
        trainer = tx
        tx, state = trainer.tx, trainer.opt_state
    if not callable(getattr(tx, "init", None)):
        raise TypeError(f"tx: expected a transformation, or alone what has tx and opt_state, got {type(tx).__name__}")
    if state is None:
        raise TypeError("state: expected the state of tx, got None")
    return dict(_hyperparams(cast(AnyTransformation, tx), _pure(state), ""))


def metrics(state: State | Trainer) -> dict[str, jax.Array]:
    """What recording transformations stored in a state.

    It is read on the host or in a trace. On the host it raises, as ``check_finite`` does, if ``skip_nonfinite`` had to
    skip too many steps in a row, for which it waits for the step to finish where there is one in the state.

    Args:
      state: the state of any transformation, optax's or flax's containers around it included; or what has one as its
        ``opt_state``, beside a ``tx``: a train state of flax, an ``nnx.Optimizer``.

    Returns:
      A dict of scalars by name: ``gradient_norm``, ``update_norm`` and ``param_norm`` of ``record_norms``,
      ``skipped_steps`` and ``consecutive_skips`` of ``skip_nonfinite``, ``loss_scale`` and ``skipped_steps`` of a
      loss scale. A name that comes again is preceded by its path in the state.

    Raises:
      NonfiniteError: ``skip_nonfinite`` passed its limit; outside of a trace only.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.record_norms()
      >>> gx.metrics(tx.init({"w": 3.0}))["gradient_norm"]
      Array(0., dtype=float32)
    """
    state = state_of(state)
    if not any(isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct)) for x in jax.tree.leaves(state)):
        check_finite(state)
    found: dict[str, jax.Array] = {}
    for where, name, value in _metrics(state, ()):
        found[f"{where}/{name}" if name in found else name] = value
    return found


def state_of(state: State | Trainer) -> State:
    """The state that is meant, where a trainer is given its ``opt_state``, with arrays for variables of Flax NNX."""
    return _pure(state.opt_state if _is_trainer(state) else state)


def _is_trainer(x: object) -> TypeGuard[Trainer]:
    return hasattr(x, "tx") and hasattr(x, "opt_state")


def _pure(state: State) -> State:
    """The state with arrays for variables of Flax NNX; who has a variable has imported it."""
    nnx = sys.modules.get("flax.nnx")
    return state if nnx is None else nnx.as_pure(state)


def _metrics(state: State, above: KeyPath) -> Iterator[tuple[str, str, jax.Array]]:
    for path, part in jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: hasattr(x, "recorded")):
        if hasattr(part, "recorded"):
            path = (*above, *path)
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            for name, value in part.recorded().items():
                yield where, name, value
            yield from _metrics(getattr(part, "inner_state", ()), (*path, jax.tree_util.GetAttrKey("inner_state")))


def _hyperparams(tx: AnyTransformation, state: State, prefix: str) -> Iterator[tuple[str, Scalar]]:
    if not isinstance(tx, Transformation):
        for path, inner, part in inside.parts(tx, state):
            yield from _hyperparams(inner, part, f"{prefix}{path}/" if path else prefix)
        return
    for name, value in tx.arguments.items():
        if callable(value) and name in tx._definition.schedules:
            step = count_of(tx.stage, state, tx.name)
            if step is None:
                raise ValueError(f"state: expected the state of {tx.name}, which counts its steps, got {state!r}")
            yield prefix + name, value(step)
        elif _is_numeric(value):
            yield prefix + name, value
    for key, (within, part) in _inner(tx, state).items():
        yield from _hyperparams(within, part, f"{prefix}{key}/")


def _inner(tx: Transformation, state: State) -> Mapping[str, tuple[AnyTransformation, State]]:
    """The transformations that ``tx`` was given, each with its state; none for a recipe: it has its own."""
    built = tx.built
    if isinstance(built, Chain):
        given = [(path, part) for path, part in places.parts(tx) if is_transformation(part)]
        return {path: (part, own) for (path, part), own in zip(given, built.states(state, tx.name), strict=False)}
    return built.inner(state) if isinstance(built, Around) and built.inner is not None else {}


def _is_numeric(value: object) -> TypeGuard[Scalar]:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return False
    return isinstance(value, (numbers.Number, jax.Array, np.ndarray)) and not isinstance(value, (bool, Value))
