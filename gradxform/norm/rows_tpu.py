"""Norms of rows on a TPU: a block of rows is read once, and its statistics are taken in VMEM.

XLA goes through memory once for each reduction that waits for another: nine times, forward and backward, for an input
that VMEM does not hold. Here it is five: x and y, then x, the gradient of y and that of x. The second look at a row
that an exact variance takes, and the statistics again in the backward pass, are of what is on the chip.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.core.manual import varying_like
from gradxform.core.pallas import kernel_call, pl, pltpu

SUBLANES, LANES = 8, 128
"""Of a register of 32-bit elements."""
VMEM = 12 * 2**20
"""Bytes of VMEM that a call may take, of the 16 MiB that compilers let it have."""
MOST_ROWS = 512
"""In a block: more of them save nothing."""


def fits(x: jax.Array) -> bool:
    """Whether the kernel takes ``x``: rows of whole registers that lie in memory as a matrix of them does."""
    if x.dtype not in (jnp.float32, jnp.bfloat16) or x.ndim < 2 or not isinstance(x.size, int) or x.size == 0:
        return False
    step = _step(x.dtype)
    together = x.ndim == 2 or x.shape[-2] % step == 0
    return together and x.shape[-1] % LANES == 0 and _block(x.shape[-1], x.dtype) >= step


def normalized(
    centered: bool,
    dtype: DTypeLike,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias`` along the last axis.

    Args:
      centered: whether the mean is subtracted.
      dtype: of the result.
      x: the input.
      scale: a number for each place of the last axis, in any shape, or None.
      bias: likewise.
      epsilon: a number.
      interpret: whether to run it without a TPU.

    Returns:
      An array shaped like ``x``.
    """
    return _call(
        functools.partial(_forward, centered, scale is not None, bias is not None),
        interpret,
        epsilon,
        (x,),
        tuple(one for one in (scale, bias) if one is not None),
        (dtype,),
        0,
    )[0].reshape(x.shape)


def pulled_back(
    centered: bool,
    biased: bool,
    x: jax.Array,
    scale: jax.Array | None,
    epsilon: jax.Array,
    gradient: jax.Array,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """The gradients of x, scale and bias from that of the result; those of scale and bias in one row.

    Args:
      centered: whether the mean is subtracted.
      biased: whether there is a bias.
      x: the input.
      scale: as it was given.
      epsilon: a number.
      gradient: of the result.
      interpret: whether to run it without a TPU.

    Returns:
      An array shaped like ``x``, and one shaped like the last axis or None for each of the others.
    """
    rows = () if scale is None else (scale,)
    dx, *sums = _call(
        functools.partial(_backward, centered, scale is not None, biased),
        interpret,
        epsilon,
        (x, gradient),
        rows,
        (x.dtype,),
        len(rows) + biased,
    )
    found = iter([jnp.sum(one, 0) for one in sums])
    return dx.reshape(x.shape), None if scale is None else next(found), next(found) if biased else None


def _step(dtype: DTypeLike) -> int:
    """Rows of a register."""
    return SUBLANES * 4 // jnp.dtype(dtype).itemsize


def _block(width: int, dtype: DTypeLike) -> int:
    """Rows of a block: twice x, its gradient and y's, since the next come in meanwhile, and four in float32."""
    rows = VMEM // (width * (6 * jnp.dtype(dtype).itemsize + 16))
    return min(rows, MOST_ROWS) // _step(dtype) * _step(dtype)


def _call(
    kernel: Callable[..., None],
    interpret: bool,
    epsilon: jax.Array,
    arrays: tuple[jax.Array, ...],
    rows: tuple[jax.Array, ...],
    dtypes: tuple[DTypeLike, ...],
    sums: int,
) -> list[jax.Array]:
    """Runs a kernel over blocks of rows.

    Args:
      kernel: of the number of rows, epsilon, blocks of the arrays, rows, results and sums.
      interpret: whether to run it without a TPU.
      epsilon: a number.
      arrays: of one shape.
      rows: with a number for each place of the last axis.
      dtypes: of the results in the shape of the arrays.
      sums: how many rows of float32 are added up over all blocks, in eight parts each.

    Returns:
      The results and the sums.
    """
    width = arrays[0].shape[-1]
    count = math.prod(arrays[0].shape[:-1])
    block = min(_block(width, max((a.dtype for a in arrays), key=lambda d: d.itemsize)), -(-count // 32) * 32)
    arrays = tuple(array.reshape(count, width) for array in arrays)
    rows = tuple(row.reshape(1, width).astype(jnp.float32) for row in rows)
    # Inside ``shard_map`` all differ from device to device as any of them does.
    epsilon, arrays, rows = varying_like((arrays, rows), (epsilon.reshape(1, 1), arrays, rows))
    kind = jax.typeof(arrays[0]).manual_axis_type
    strip = pl.BlockSpec((block, width), lambda i: (i, 0))
    line, eight = (pl.BlockSpec((n, width), lambda i: (0, 0)) for n in (1, SUBLANES))
    found: list[jax.Array] = kernel_call(
        functools.partial(kernel, count),
        grid=(pl.cdiv(count, block),),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *[strip] * len(arrays), *[line] * len(rows)],
        out_specs=[*[strip] * len(dtypes), *[eight] * sums],
        out_shape=[
            *(jax.ShapeDtypeStruct((count, width), dtype, manual_axis_type=kind) for dtype in dtypes),
            *[jax.ShapeDtypeStruct((SUBLANES, width), jnp.float32, manual_axis_type=kind)] * sums,
        ],
        interpret=interpret,
        name="norm_of_rows",
    )(epsilon, *arrays, *rows)
    return found


def _hat(centered: bool, x: jax.Array, epsilon: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(x - mean) / sqrt(var + epsilon)`` of each row, and the factor."""
    x = x.astype(jnp.float32)
    if centered:
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x - jnp.mean(x, -1, keepdims=True)  # what the rounding of the mean left over
    factor = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon)
    return x * factor, factor


def _forward(
    centered: bool, scaled: bool, biased: bool, count: int, epsilon: jax.Ref, x: jax.Ref, *refs: jax.Ref
) -> None:
    *rows, y = refs
    value, _ = _hat(centered, x[...], epsilon[0, 0])
    if scaled:
        value = value * rows[0][...]
    if biased:
        value = value + rows[-1][...]
    y[...] = value.astype(y.dtype)


def _backward(
    centered: bool,
    scaled: bool,
    biased: bool,
    count: int,
    epsilon: jax.Ref,
    x: jax.Ref,
    gradient: jax.Ref,
    *refs: jax.Ref,
) -> None:
    rows, (dx, *sums) = refs[:scaled], refs[scaled:]
    hat, factor = _hat(centered, x[...], epsilon[0, 0])
    g = gradient[...].astype(jnp.float32)
    h = g * rows[0][...] if scaled else g
    slope = h - hat * jnp.mean(h * hat, -1, keepdims=True)
    if centered:
        slope = slope - jnp.mean(h, -1, keepdims=True)
    dx[...] = (slope * factor).astype(dx.dtype)

    block = pl.program_id(0)

    @pl.when(block == 0)
    def _() -> None:
        for one in sums:
            one[...] = jnp.zeros_like(one)

    # The last block may end beyond the last row, where there may be anything.
    there = block * x.shape[0] + lax.broadcasted_iota(jnp.int32, x.shape, 0) < count
    for one, part in zip(sums, [*[g * hat] * scaled, *[g] * biased], strict=True):
        one[...] += jnp.sum(jnp.where(there, part, 0).reshape(-1, SUBLANES, x.shape[1]), 0)
