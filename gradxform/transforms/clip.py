"""Clipping: by value, by the norm of all leaves, of a block, of a unit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.manual import AxisName, refuse_pieces, spread, total
from gradxform.core.numbers import abs_sq, cast, sqrt, widen
from gradxform.core.transformation import transformation
from gradxform.core.trees import refuse_integers
from gradxform.core.types import Axes, PyTree, Scalar, Updates
from gradxform.transforms.scale import block_rms


def global_norm(tree: PyTree, axis_name: AxisName = None) -> jax.Array:
    """The Euclidean norm of all leaves together, accumulated in float32 at least.

    Args:
      tree: a tree of arrays.
      axis_name: the named axes of ``shard_map`` along which leaves are in pieces, which are taken together. Leaves that
        are whole on each device count once; with ``check_vma=False`` nothing tells them apart, and each is taken for a
        piece. ``()`` is each device by itself. Under plain ``jit`` there are no pieces, and no axis is named.

    Returns:
      A real scalar; 0 for a tree without elements. Its derivative at 0 is 0.

    Raises:
      TypeError: a leaf of integers, with its path.
      ShardingError: a piece of a leaf without ``axis_name``, with its path.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.global_norm({"a": jnp.array([3.0]), "b": jnp.array(4.0, jnp.bfloat16)})
      Array(5., dtype=float32)
    """
    refuse_integers(tree, "tree")
    refuse_pieces("global_norm", axis_name, tree)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    sums: dict[tuple[str, ...], list[jax.Array]] = {}
    for leaf in leaves:
        sums.setdefault(spread(leaf, axis_name), []).append(_sum_of_squares(leaf))
    parts = [lax.psum(_added(own), along) if along else _added(own) for along, own in sums.items()]
    return sqrt(_added(parts)) if parts else jnp.zeros([], jnp.float32)


def _added(sums: list[jax.Array]) -> jax.Array:
    # Adding in pairs keeps the rounding error of thousands of leaves at a dozen roundings.
    dtype = functools.reduce(jnp.promote_types, [part.dtype for part in sums], jnp.dtype(jnp.float32))
    sums = [cast(part, dtype) for part in sums]
    while len(sums) > 1:
        sums = [functools.reduce(lax.add, sums[i : i + 2]) for i in range(0, len(sums), 2)]
    return sums[0]


@jax.jit
def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(abs_sq(widen(x)))


@transformation
def clip_by_global_norm(max_norm: Scalar, *, eps: Scalar = 0.0, axis_name: AxisName = None) -> Leafwise:
    """Scales all updates down together so that their norm is at most ``max_norm``.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (ICML 2013), algorithm 1:
    ``g * min(1, max_norm / (||g|| + eps))``. A norm of 0 leaves zeros; a norm that is NaN or infinite makes every
    update NaN, so that no step is half right and ``skip_nonfinite`` sees it. (optax divides and then multiplies, and
    keeps finite leaves as 0 beside an infinite one.)

    Args:
      max_norm: the largest norm, >= 0.
      eps: added to the norm, >= 0 (torch's ``clip_grad_norm_``: 1e-6).
      axis_name: as in ``global_norm``.

    Returns:
      A transformation without state.

    Raises:
      ValueError: a negative number.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.clip_by_global_norm(1.0)
      >>> tx.update({"w": jnp.array([3.0, 4.0])}, tx.init({"w": jnp.zeros(2)}))[0]
      {'w': Array([0.6, 0.8], dtype=float32)}
    """
    checks.real("max_norm", max_norm, at_least=0)
    checks.real("eps", eps, at_least=0)

    def at(updates: Updates) -> jax.Array:
        norm = global_norm(updates, axis_name)
        divisor = norm + eps
        within = jnp.where(divisor > max_norm, max_norm / jnp.where(divisor > 0, divisor, 1), 1)
        return jnp.where(jnp.isfinite(norm), within, jnp.nan)

    return Leafwise(lambda factor, g, p: g * factor, at=at, whole=True, elementwise=True, axis_name=axis_name)


@transformation
def clip(max_delta: Scalar) -> Leafwise:
    """Clips every element to [-max_delta, max_delta]; a complex one keeps its direction.

    Args:
      max_delta: the largest magnitude, >= 0.

    Returns:
      A transformation without state.

    Raises:
      ValueError: ``max_delta`` is negative.

    Example:
      >>> import gradxform as gx
      >>> gx.clip(1.0).update({"w": -3.0}, gx.clip(1.0).init({"w": 0.0}))[0]
      {'w': Array(-1., dtype=float32)}
    """
    checks.real("max_delta", max_delta, at_least=0)

    def leaf(now: object, g: jax.Array, p: object) -> jax.Array:
        if jnp.iscomplexobj(g):
            size = sqrt(abs_sq(g))
            return g * (jnp.minimum(size, max_delta) / jnp.where(size > 0, size, 1))
        return jnp.clip(g, -max_delta, max_delta)

    return Leafwise(leaf, elementwise=True)


@transformation
def clip_by_block_rms(threshold: Scalar, *, axis_name: AxisName = None) -> Leafwise:
    """Scales the update of each leaf down so that its root mean square is at most ``threshold``.

    Shazeer and Stern, "Adafactor" (2018), section 6: ``g / max(1, RMS(g) / threshold)``.

    Args:
      threshold: the largest root mean square, > 0.
      axis_name: as in ``global_norm``.

    Returns:
      A transformation without state.

    Raises:
      ValueError: ``threshold`` is not positive.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.clip_by_block_rms(1.0)
      >>> tx.update({"w": jnp.array([2.0, -2.0])}, tx.init({"w": jnp.zeros(2)}))[0]
      {'w': Array([ 1., -1.], dtype=float32)}
    """
    checks.real("threshold", threshold, above=0)
    return Leafwise(lambda now, g, p: g / jnp.maximum(1, block_rms(g, axis_name) / threshold), axis_name=axis_name)


@transformation
def adaptive_grad_clip(
    clipping: Scalar, eps: Scalar = 1e-3, axis: int | tuple[int, ...] | None = None, *, axis_name: AxisName = None
) -> Leafwise:
    """Scales the gradient of each unit down to a multiple of the norm of that unit's weights.

    Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization" (2021),
    equation 3. A unit is an output: the norm runs over all axes but the last (over all of a vector).

    Args:
      clipping: the largest ratio of gradient norm to weight norm, >= 0.
      eps: the least weight norm, so that weights of zero can move, >= 0.
      axis: the axes of the norm instead; needed for arrays of more than five axes.
      axis_name: as in ``global_norm``, with the axis of the leaves that it divides: ``{"data": 0}``.

    Returns:
      A transformation without state that needs params.

    Raises:
      ValueError: a negative number, an axis out of range, or an array of more than five axes without ``axis``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx, params = gx.adaptive_grad_clip(0.1), {"w": jnp.array([3.0, 4.0])}
      >>> tx.update({"w": jnp.array([0.0, 1.0])}, tx.init(params), params)[0]
      {'w': Array([0. , 0.5], dtype=float32)}
    """
    checks.real("clipping", clipping, at_least=0)
    for one in () if axis is None else axis if isinstance(axis, tuple) else (axis,):
        checks.integer("axis", one)
    checks.real("eps", eps, at_least=0)

    def leaf(now: object, g: jax.Array, p: jax.Array) -> jax.Array:
        axes = _unit_axes(g, axis)
        g_norm = sqrt(total(abs_sq(g), axis_name, axes, keepdims=True))
        p_norm = sqrt(total(abs_sq(p), axis_name, axes, keepdims=True))
        limit = clipping * jnp.maximum(p_norm, eps)
        return g * jnp.where(g_norm > limit, limit / jnp.maximum(g_norm, 1e-6), 1)

    return Leafwise(leaf, needs_params=True, axis_name=axis_name)


def _unit_axes(x: jax.Array, axis: int | tuple[int, ...] | None) -> Axes:
    if axis is not None:
        wanted = (axis,) if isinstance(axis, int) else tuple(axis)
        if any(not -x.ndim <= a < x.ndim for a in wanted):
            raise ValueError(f"axis: expected axes of an array of {x.ndim} axes, got {axis!r}")
        return wanted
    if sum(n != 1 for n in x.shape) <= 1:
        return None
    if x.ndim > 5:
        raise ValueError(f"axis: expected the axes of a unit for an array of shape {x.shape}, got None")
    # A multi-head projection (input, heads, width) has a unit for each of its last two axes.
    return (0,) if x.ndim <= 3 else tuple(range(x.ndim - 1))
