"""What a number is here: hyperparameters and accumulation in float32 at least, one cast at the end."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from gradxform.core.types import Scalar

MAX_STEP = 2**31 - 1


def float_dtype() -> np.dtype:
    """The dtype of a number that is counted with or set: float32, or float64 where jax has 64-bit types on."""
    return jnp.result_type(float)


def wide_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype to compute in: float32 for anything narrower, the dtype itself otherwise."""
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype  # type: ignore[return-value]  # that of keys, which NumPy has not
    wide = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if jnp.issubdtype(wide, jnp.floating) and jnp.finfo(wide).bits < 32 else wide


def as_wide(gradient: DTypeLike, param: DTypeLike | None) -> DTypeLike:
    """Updates leave in the dtype they are computed in, whatever the dtypes of the gradient and the param are."""
    return wide_dtype(gradient)


def as_stored(gradient: DTypeLike, param: DTypeLike | None) -> DTypeLike:
    """Updates leave in the dtype of the param they are for, or of the gradient where no params were given."""
    if param is not None and any(
        jnp.issubdtype(gradient, kind) and jnp.issubdtype(param, kind) for kind in (jnp.floating, jnp.complexfloating)
    ):
        return param
    return gradient


def real_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype of ``abs(x)`` for an ``x`` of ``dtype``, no narrower than float32."""
    return wide_dtype(jnp.finfo(dtype).dtype)


def widen(x: jax.Array) -> jax.Array:
    """``x`` in the dtype it is computed in."""
    return cast(x, wide_dtype(x.dtype))


def cast(x: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """``x`` as an array of ``dtype``; a complex value keeps its real part when ``dtype`` is real."""
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    # convert_element_type also drops a weak type, which would make a second call retrace.
    return x if x.dtype == dtype and not x.weak_type else lax.convert_element_type(x, dtype)


def scalar(x: Scalar | np.ndarray) -> Any:
    """A hyperparameter ready for arithmetic.

    A Python number is returned as it is, so that ``1 - b2`` is exact; an array is widened to float32, because a
    ``b2`` of 0.999 rounds to 1 in bfloat16.
    """
    if isinstance(x, jax.Array):
        return widen(x)
    if isinstance(x, np.ndarray) and x.ndim > 0:
        return x.astype(wide_dtype(x.dtype), copy=False)
    return float(x) if jnp.ndim(x) == 0 and not isinstance(x, int) else x


def no_update(like: ArrayLike) -> jax.Array:
    """The update of a leaf that is to stay as it is, bit for bit: -0, since -0 + 0 is 0 and -0 + -0 is -0."""
    like = like if hasattr(like, "dtype") else jnp.asarray(like)
    if not jnp.issubdtype(like.dtype, jnp.inexact):
        return jnp.zeros_like(like)
    zero = complex(-0.0, -0.0) if jnp.issubdtype(like.dtype, jnp.complexfloating) else -0.0
    return jnp.full_like(like, zero, dtype=like.dtype)


def increment(count: jax.Array) -> jax.Array:
    """The next step count; it stays at the largest value of its dtype instead of wrapping around."""
    limit = jnp.iinfo(count.dtype).max
    return jnp.where(count < limit, count + jnp.ones_like(count), count)


def debias(decay: Scalar, count: jax.Array) -> jax.Array:
    """``1 - decay**count``, without the cancellation that loses four digits at ``decay=0.999, count=1``."""
    steps = count.astype(float_dtype())
    if isinstance(decay, (int, float)):
        return -jnp.expm1(steps * (math.log(decay) if decay > 0 else -math.inf))
    return _debias(jnp.asarray(scalar(decay)), steps)


@jax.custom_jvp
def _debias(decay: jax.Array, steps: jax.Array) -> jax.Array:
    return -jnp.expm1(steps * jnp.log(decay))


@_debias.defjvp
def _debias_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The logarithm has no slope at a decay of 0; the power has.
    (decay, steps), (d_decay, _) = primals, tangents
    return _debias(decay, steps), -steps * decay ** (steps - 1) * d_decay


def abs_sq(x: jax.Array) -> jax.Array:
    """``|x|**2`` as a real array."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0.

    A weight whose gradient is always zero has a second moment of zero; the infinite slope there would turn every
    hypergradient into NaN.
    """
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    root = sqrt(x)
    positive = root > 0
    slope = jnp.where(positive, 0.5 / jnp.where(positive, root, 1), jnp.zeros_like(root))
    return root, slope * dx


def lerp(old: jax.Array, new: jax.Array, weight: Scalar) -> jax.Array:
    """``(1 - weight) * old + weight * new``, in the form whose fixed point is ``new`` to the last bit."""
    return old + weight * (new - old)
