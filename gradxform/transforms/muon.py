"""Muon: momentum whose matrices are made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.manual import AxisName, ShardingError, spread
from gradxform.core.numbers import abs_sq, debias, lerp, sqrt
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import DType, Scalar

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: the steepest rise from 0 that ends between 0.7 and 1.2 after five steps."""

Axes: TypeAlias = int | tuple[int, ...]


class MuonState(NamedTuple):
    """The momentum, and the updates made."""

    count: jax.Array  # type: ignore[assignment]
    mu: optax.Updates


@transformation
def scale_by_muon(
    ns_coeffs: Sequence[Any] = QUINTIC,
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    mu_dtype: DType = None,
    *,
    nesterov: bool = True,
    bias_correction: bool = True,
    consistent_rms: Scalar | None = None,
    reduction_axis: Axes = -2,
    output_axis: Axes = -1,
    axis_name: AxisName = None,
) -> Leafwise:
    """Replaces the momentum of each matrix by the nearest orthogonal one, nearly: ``U V'`` for ``U S V'``.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): ``X = M / ||M||``, then
    ``ns_steps`` times ``X = a X + (b A + c A A) X`` with ``A = X X'``, which takes every singular value near to 1. For
    a matrix of ``m`` inputs and ``n`` outputs the update is ``sqrt(max(1, n / m)) X``.

    Args:
      ns_coeffs: the ``a, b, c`` of every step, or a sequence of such triples, one for each.
      ns_steps: the number of steps, >= 1.
      beta: the decay of the momentum, in [0, 1).
      eps: added to the norm, >= 0.
      mu_dtype: dtype to store the momentum in; by default that of the leaf, float32 at least.
      nesterov: whether the momentum looks ahead.
      bias_correction: whether the momentum is corrected for its start at zero, the looking ahead as in Dozat's
        Nesterov Adam, as optax does; False is Jordan's and torch's ``beta m + (1 - beta) g``. (A matrix is normalized
        whatever its size: without looking ahead the two are one.)
      consistent_rms: the root mean square of an update, > 0, whatever its shape: the factor is ``consistent_rms *
        sqrt(max(m, n))`` (Liu et al., "Muon is Scalable for LLM Training", 2025, who take 0.2). None for the above.
      reduction_axis: the axes of a leaf that are the inputs, one or several.
      output_axis: the axes that are the outputs. Any others, as of stacked layers, count matrices of their own. An
        axis that a leaf has not is of length 1: a bias is a matrix of one input.
      axis_name: the named axes along which leaves are in pieces, as a dict from a name to the axis of a leaf that it
        divides: pieces of matrices are put together on each device. None where leaves are whole.

    Returns:
      A transformation; see ``muon`` for one that leaves what is no matrix to Adam.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a number out of its range; from ``update``, an axis that is both of the inputs and of the outputs.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx, params = gx.scale_by_muon(), {"w": jnp.ones((2, 2))}
      >>> tx.update({"w": jnp.array([[3.0, 0.0], [0.0, 0.02]])}, tx.init(params))[0]["w"].astype(jnp.float16)
      Array([[0.6963, 0.    ],
             [0.    , 0.915 ]], dtype=float16)
    """
    checks.integer("ns_steps", ns_steps, at_least=1, known=True)
    steps = _coefficients(ns_coeffs, ns_steps)
    checks.real("beta", beta, at_least=0, below=1)
    checks.real("eps", eps, at_least=0)
    checks.inexact_dtype("mu_dtype", mu_dtype)
    if consistent_rms is not None:
        checks.real("consistent_rms", consistent_rms, above=0)
    inputs, outputs = _several("reduction_axis", reduction_axis), _several("output_axis", output_axis)

    def at(count: jax.Array) -> Any:
        if not bias_correction:
            return 1, 1
        return 1 / debias(beta, count + 1 if nesterov else count), 1 / debias(beta, count)

    def leaf(now: Any, g: jax.Array, p: Any, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
        ahead, here = now
        mu = lerp(mu, g, 1 - beta)
        first = beta * ahead * mu + (1 - beta) * here * g if nesterov else ahead * mu
        rows, columns = _axes(g.shape, inputs, outputs)
        whole = _whole(first, axis_name, rows + columns)
        m, n = (math.prod(whole.shape[axis] for axis in axes) for axes in (rows, columns))
        factor = max(1, n / max(m, 1)) ** 0.5 if consistent_rms is None else consistent_rms * max(m, n) ** 0.5
        matrices, back = _matrices(whole, rows, columns)
        return _piece(back(factor * orthogonal(matrices, steps, eps)), g, axis_name, rows + columns), mu

    return Leafwise(leaf, {"mu": Slot(mu_dtype)}, at, MuonState, axis_name=axis_name)


def orthogonal(x: jax.Array, steps: Sequence[Sequence[Any]], eps: Scalar) -> jax.Array:
    """The Newton-Schulz iteration on matrices in the last two axes, divided by their norms first."""
    norm = sqrt(jnp.sum(abs_sq(x), axis=(-2, -1), keepdims=True)) + eps
    x = x / jnp.where(norm > 0, norm, 1)
    # X X' is made of the shorter side: the iteration of a transpose is the transpose of the iteration.
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.matrix_transpose(x) if tall else x
    for a, b, c in steps:
        square = x @ jnp.matrix_transpose(x).conj()
        x = a * x + (b * square + c * square @ square) @ x
    return jnp.matrix_transpose(x) if tall else x


def _coefficients(given: Any, steps: int) -> list[Sequence[Any]]:
    """The triple of each step."""
    several = isinstance(given, (tuple, list)) and any(isinstance(one, (tuple, list)) for one in given)
    triples = list(given) if several else [given] * steps
    if len(triples) != steps or not all(isinstance(one, (tuple, list)) and len(one) == 3 for one in triples):
        raise ValueError(f"ns_coeffs: expected three numbers, or three for each of {steps} steps, got {given!r}")
    for one in triples:
        for number in one:
            checks.real("ns_coeffs", number)
    return triples


def _several(name: str, axes: Any) -> tuple[int, ...]:
    several = axes if isinstance(axes, (tuple, list)) else (axes,)
    for axis in several:
        checks.integer(name, axis, known=True)
    return tuple(several)


def _axes(shape: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The axes of the inputs and of the outputs that there are, counted from the front."""
    rows, columns = (
        [axis % len(shape) for axis in axes if -len(shape) <= axis < len(shape)] for axes in (inputs, outputs)
    )
    if len({*rows, *columns}) != len(rows + columns):
        raise ValueError(
            f"reduction_axis, output_axis: expected different axes of each leaf, got {inputs} and "
            f"{outputs} for shape {shape}"
        )
    return rows, columns


def _matrices(x: jax.Array, rows: list[int], columns: list[int]) -> tuple[jax.Array, Any]:
    """A leaf as a stack of matrices, and what makes it the leaf again."""
    others = [axis for axis in range(x.ndim) if axis not in rows + columns]
    order = others + rows + columns
    moved = jnp.transpose(x, order)
    shape = [math.prod(x.shape[axis] for axis in axes) for axes in (others, rows, columns)]

    def back(matrices: jax.Array) -> jax.Array:
        return jnp.transpose(matrices.reshape(moved.shape), sorted(range(x.ndim), key=order.__getitem__))

    return moved.reshape(shape), back


def _divided(x: jax.Array, axis_name: AxisName, axes: list[int]) -> dict[str, int]:
    """Which axis of the matrices in a piece each named axis divides."""
    along = spread(x, axis_name, tuple(axes))
    if along and not isinstance(axis_name, Mapping):
        raise ShardingError(
            f"axis_name: expected which axis of a leaf {along[0]!r} divides, such as "
            f"{{{along[0]!r}: 0}}, got {axis_name!r} for a piece of shape {x.shape}"
        )
    return {name: axis_name[name] % x.ndim for name in along} if isinstance(axis_name, Mapping) else {}


def _whole(x: jax.Array, axis_name: AxisName, axes: list[int]) -> jax.Array:
    for name, axis in reversed(_divided(x, axis_name, axes).items()):
        x = lax.all_gather(x, name, axis=axis, tiled=True)
    # On a mesh of Explicit axes the type says how a leaf lies, and a product over a divided axis has no type.
    spec = _spec(x)
    whole = [None if axis in axes else part for axis, part in enumerate(spec)]
    return x if whole == spec else jax.sharding.reshard(x, PartitionSpec(*whole))


def _spec(x: jax.Array) -> list[Any]:
    """The axes of the mesh that divide each axis of an array, by its type."""
    spec = jax.typeof(x).sharding.spec
    return [*spec, *[None] * (x.ndim - len(spec))]


def _piece(x: jax.Array, like: jax.Array, axis_name: AxisName, axes: list[int]) -> jax.Array:
    """Of a whole leaf the piece that ``like`` is."""
    for name, axis in _divided(like, axis_name, axes).items():
        size = x.shape[axis] // lax.axis_size(name)
        x = lax.dynamic_slice_in_dim(x, lax.axis_index(name) * size, size, axis)
    return x if _spec(x) == _spec(like) else jax.sharding.reshard(x, PartitionSpec(*_spec(like)))
