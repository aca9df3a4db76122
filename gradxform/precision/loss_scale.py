"""Loss scaling: gradients that float16 would round to 0 are scaled up where they arise, and down before anything else.

Scales are powers of two, which change the exponent of a number and no other bit of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core import checks, stages
from gradxform.core.bricks import Leafwise
from gradxform.core.foreign import stage_of
from gradxform.core.manual import AxisName, check_axis_name, refuse_pieces, varying_like
from gradxform.core.numbers import cast, increment, widen
from gradxform.core.run import guarded
from gradxform.core.stages import Around, Chain, is_final
from gradxform.core.transformation import transformation
from gradxform.core.trees import is_inexact
from gradxform.core.types import AnyTransformation, Params, Scalar, State, Updates
from gradxform.transforms.inspect import Trainer, state_of
from gradxform.transforms.nonfinite import all_finite

LARGEST = 2.0**126
"""Of scales: its inverse is still a normal float32."""
P = ParamSpec("P")
T = TypeVar("T")
NextScale: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class LossScaleState(NamedTuple):
    """The scale of the next loss, good steps since it last changed, skipped steps, and the state inside."""

    scale: jax.Array
    good_steps: jax.Array
    skipped_steps: jax.Array
    inner_state: State

    def recorded(self) -> dict[str, jax.Array]:
        """What ``metrics`` shows."""
        return {"loss_scale": self.scale, "skipped_steps": self.skipped_steps}


@transformation
def dynamic_loss_scale(
    tx: AnyTransformation,
    initial: Scalar = 2.0**15,
    growth_factor: Scalar = 2.0,
    backoff_factor: Scalar = 0.5,
    growth_interval: int = 2000,
    min_scale: Scalar = 1.0,
    max_scale: Scalar = 2.0**24,
    axis_name: AxisName = None,
) -> Around:
    """Takes gradients of a scaled loss, and finds the largest scale at which they do not overflow.

    Micikevicius et al., "Mixed Precision Training" (ICLR 2018), section 3.2. Gradients are divided by the scale in
    float32 before anything in ``tx`` sees them. With NaN or inf among them the step is skipped, as by
    ``skip_nonfinite``: params and state stay bit for bit, and the scale is multiplied by ``backoff_factor``. After
    ``growth_interval`` good steps in a row it is multiplied by ``growth_factor``. Around ``accumulate`` each
    micro-batch has the scale of its own time, and one that overflows is not counted. It costs what a clip costs.

    Compute the gradients by ``value_and_grad(fun, state)``, or of the loss times ``loss_scale(state)``, of a loss in
    float32: one in float16 cannot be scaled by more than 2**15. Put ``skip_nonfinite`` around it, or inside, to be told
    of a run that overflows at every scale.

    Args:
      tx: the transformation that sees the true gradients.
      initial: the scale of the first step, between the least and the largest; all scales and factors are powers of two.
      growth_factor: > 1.
      backoff_factor: > 0 and < 1.
      growth_interval: good steps before the scale grows, >= 1.
      min_scale: the least scale, > 0.
      max_scale: the largest scale, <= 2**126.
      axis_name: the named axes of ``shard_map`` along which leaves are in pieces; see ``skip_nonfinite``.

    Returns:
      A transformation.

    Raises:
      TypeError: ``tx`` is not a transformation, a scale not a number, ``growth_interval`` not an integer or
        ``axis_name`` no axis.
      ValueError: a number out of its range or not a power of two; from ``init``, a loss scale inside.
      ShardingError: from ``update``, a piece of a leaf without ``axis_name``, with its path.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.precision.dynamic_loss_scale(gx.sgd(0.5), initial=8)
      >>> updates, state = tx.update({"w": 16.0}, tx.init({"w": 0.0}))
      >>> updates
      {'w': Array(-1., dtype=float32)}
      >>> _, state = tx.update({"w": float("inf")}, state)
      >>> {name: float(value) for name, value in gx.metrics(state).items()}
      {'loss_scale': 4.0, 'skipped_steps': 1.0}
    """
    _power_of_two("growth_factor", growth_factor, above=1)
    _power_of_two("backoff_factor", backoff_factor, above=0, below=1)
    _power_of_two("min_scale", min_scale, above=0, at_most=LARGEST)
    _power_of_two("max_scale", max_scale, above=0, at_most=LARGEST)
    _power_of_two(
        "initial",
        initial,
        above=0,
        at_least=min_scale if checks.is_concrete(min_scale) else None,
        at_most=max_scale if checks.is_concrete(max_scale) else LARGEST,
    )
    checks.integer("growth_interval", growth_interval, at_least=1)

    def following(fine: jax.Array, scale: jax.Array, good: jax.Array) -> tuple[jax.Array, jax.Array]:
        good = jnp.where(fine, increment(good), jnp.zeros_like(good))
        grows = good >= growth_interval
        larger = jnp.where(grows, jnp.minimum(scale * growth_factor, max_scale), scale)
        scale = jnp.where(fine, larger, jnp.maximum(scale * backoff_factor, min_scale))
        return scale, jnp.where(grows, jnp.zeros_like(good), good)

    return _scaled(tx, initial, following, axis_name, "dynamic_loss_scale")


@transformation
def static_loss_scale(tx: AnyTransformation, scale: Scalar, axis_name: AxisName = None) -> Around:
    """Takes gradients of a loss with a scale that stays the same.

    A step whose gradients overflow is skipped and counted, as in ``dynamic_loss_scale``.

    Args:
      tx: the transformation that sees the true gradients.
      scale: a power of two, > 0 and <= 2**126. It is kept in the state, which is what counts in a run that goes on.
      axis_name: the named axes of ``shard_map`` along which leaves are in pieces; see ``skip_nonfinite``.

    Returns:
      A transformation.

    Raises:
      TypeError: ``tx`` is not a transformation, ``scale`` not a number or ``axis_name`` no axis.
      ValueError: ``scale`` is out of its range or not a power of two; from ``init``, a loss scale inside.
      ShardingError: from ``update``, a piece of a leaf without ``axis_name``, with its path.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.precision.static_loss_scale(gx.sgd(0.5), 1024)
      >>> tx.update({"w": 1024.0}, tx.init({"w": 0.0}))[0]
      {'w': Array(-0.5, dtype=float32)}
    """
    _power_of_two("scale", scale, above=0, at_most=LARGEST)
    return _scaled(tx, scale, lambda fine, scale, good: (scale, good), axis_name, "static_loss_scale")


def _scaled(tx: AnyTransformation, start: Scalar, following: NextScale, axis_name: AxisName, name: str) -> Around:
    inner = stage_of(tx, "tx")
    check_axis_name(axis_name)

    def init(params: Params) -> LossScaleState:
        state = stages.init(inner, params)
        if _scales(state):
            raise ValueError(
                f"{name}: expected a transformation without a loss scale, got one with one inside; "
                "gradients are scaled once"
            )
        mine = jnp.array(start, jnp.float32), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        scale, good, skipped = varying_like(params, mine) if axis_name == () else mine
        return LossScaleState(scale, good, skipped, state)

    def update(
        updates: Updates,
        state: LossScaleState,
        params: Params | None = None,
        *,
        fine: bool | jax.Array = True,
        **extra: object,
    ) -> tuple[Updates, LossScaleState]:
        refuse_pieces(name, axis_name, updates)
        # A brick of its own, so that it is fused with those inside.
        unscale = Leafwise(
            lambda factor, g, p: g * factor if is_inexact(g) else g,
            at=lambda: 1 / state.scale,
            elementwise=True,
            any_dtype=True,
            name=name,
        )
        new, (_, inner_state), fine = guarded(
            Chain((unscale, inner)),
            updates,
            (unscale.init(params), state.inner_state),
            params,
            extra,
            name,
            fine & all_finite(updates, axis_name),
            axis_name,
        )
        scale, good = following(fine, state.scale, state.good_steps)
        skipped = jnp.where(fine, state.skipped_steps, increment(state.skipped_steps))
        return new, LossScaleState(cast(scale, state.scale.dtype), good, skipped, inner_state)

    return Around(
        init, update, lambda state: {"tx": (tx, state.inner_state)}, LossScaleState, final=is_final(inner), guarded=True
    )


def loss_scale(state: State | Trainer) -> jax.Array:
    """What the next loss is to be multiplied by.

    Args:
      state: the state of a transformation with a loss scale in it, at any depth; or what has one as its ``opt_state``,
        beside a ``tx``: a train state of flax, an ``nnx.Optimizer``.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: there is no loss scale in ``state``, or more than one.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.chain(gx.precision.dynamic_loss_scale(gx.adam(1e-3)), gx.scale(0.5))
      >>> gx.precision.loss_scale(tx.init({"w": 0.0}))
      Array(32768., dtype=float32)
    """
    found = _scales(state_of(state))
    if len(found) != 1:
        raise ValueError(
            f"state: expected one with one loss scale, got a {type(state).__name__} with {len(found)}; "
            "wrap the transformation in dynamic_loss_scale(...) or static_loss_scale(...)"
        )
    return found[0].scale


def value_and_grad(
    fun: Callable[P, T], state: State | Trainer, has_aux: bool = False
) -> Callable[P, tuple[T, Updates]]:
    """``jax.value_and_grad``, with gradients of the scaled loss for the transformation that ``state`` is of.

    Args:
      fun: ``fun(params, ...)`` returns the loss, a real scalar; with ``has_aux``, the pair of it and anything.
      state: as for ``loss_scale``.
      has_aux: whether ``fun`` returns such a pair.

    Returns:
      A function of the arguments of ``fun``. It returns the true value, or the pair, and the scaled gradients with
      respect to the first argument.

    Raises:
      ValueError: there is no loss scale in ``state``, or more than one.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.precision.static_loss_scale(gx.sgd(1.0), 8)
      >>> gx.precision.value_and_grad(lambda w: w**2, tx.init(3.0))(3.0)
      (Array(9., dtype=float32, weak_type=True), Array(48., dtype=float32, weak_type=True))
    """
    checks.function("fun", fun)
    scale = loss_scale(state)

    def scaled(*args: P.args, **kwargs: P.kwargs) -> tuple[jax.Array, T]:
        result = fun(*args, **kwargs)
        value: Any = result
        value = value[0] if has_aux else value
        return (widen(value) if isinstance(value, jax.Array) else value) * scale, result

    def call(*args: P.args, **kwargs: P.kwargs) -> tuple[T, Updates]:
        (_, result), gradients = jax.value_and_grad(scaled, has_aux=True)(*args, **kwargs)
        return result, gradients

    return call


def _scales(state: State) -> list[LossScaleState]:
    is_scale = lambda x: isinstance(x, LossScaleState)  # noqa: E731
    return list(filter(is_scale, jax.tree.leaves(state, is_leaf=is_scale)))


def _power_of_two(
    name: str,
    value: Scalar,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuses what is not a power of two in its range.

    Raises:
      TypeError: ``value`` is no real number.
      ValueError: ``value`` is NaN, out of range or not a power of two.
    """
    checks.real(name, value, at_least=at_least, above=above, below=below, at_most=at_most)
    if isinstance(value, jax.core.Tracer) or not (checks.is_concrete(value) or hasattr(value, "__array__")):
        return
    for x in np.asarray(value, np.float64).ravel().tolist():
        if math.frexp(x)[0] != 0.5:
            raise ValueError(
                f"{name}: expected a power of two, by which only the exponents of gradients change and no "
                f"digit is lost; got {x!r}"
            )
