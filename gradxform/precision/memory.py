"""What a state takes, and where its codes are at their top."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.core.trees import named_leaves
from gradxform.core.types import Params, State
from gradxform.precision.coded import Coded, is_coded
from gradxform.precision.fields import fields


@dataclasses.dataclass(frozen=True)
class Memory:
    """The bytes of a state; it prints as a table.

    Attributes:
      bytes: those of each field of the state, such as ``mu``; what is in none is under ``(other)``.
      params: the number of parameters.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> params = {"w": jnp.ones((64, 64))}
      >>> print(gx.precision.memory(gx.adam(0.1).init(params), params))
      field  bytes  bytes a parameter
      count      4               0.00
      mu     16384               4.00
      nu     16384               4.00
      all    32772               8.00
    """

    bytes: Mapping[str, float]
    params: int

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.bytes.values())

    @property
    def per_param(self) -> float:
        """Bytes a parameter."""
        return self.total / self.params if self.params else math.nan

    def __str__(self) -> str:
        rows = [("field", "bytes", "bytes a parameter")]
        for name, size in (*self.bytes.items(), ("all", self.total)):
            rows.append((name, f"{size:.0f}", f"{size / self.params:.2f}" if self.params else "-"))
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows)


def memory(state: State, params: Params) -> Memory:
    """The bytes of a state by field, counted in bits: an array of int4 says that a number takes a byte.

    Args:
      state: of any transformation; its leaves are arrays or ``jax.ShapeDtypeStruct``.
      params: the params that it is for.

    Returns:
      The bytes, as a table where it is printed.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> params = {"w": jnp.ones((256, 256))}
      >>> tx = gx.precision.compress_state(gx.adam(0.1), "int4_blockwise")
      >>> round(gx.precision.memory(tx.init(params), params).per_param, 2)
      1.02
    """
    found: dict[str, float] = collections.defaultdict(float)
    for name, leaf in zip(fields(state, params), jax.tree.leaves(state, is_leaf=is_coded), strict=True):
        found[name or "(other)"] += sum(map(_bits, jax.tree.leaves(leaf))) / 8
    return Memory(dict(found), sum(math.prod(jnp.shape(p)) for p in jax.tree.leaves(params)))


def saturated(state: State) -> dict[str, float]:
    """Where the codes of a state are at their top, as ``fp8`` has one: what was above it was stored as it.

    Args:
      state: of ``compress_state``, or any tree with such states in it; it is read on the host.

    Returns:
      By the paths of leaves, the share of the codes that are the largest there is, where it is not 0. A codec with a
      scale in the state is never at its top.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.precision.compress_state(gx.trace(0.9), gx.precision.fp8(top=3.5))
      >>> params = {"w": jnp.ones((64, 64))}
      >>> _, state = tx.update({"w": 5 * params["w"].at[:, 32:].set(0)}, tx.init(params))
      >>> gx.precision.saturated(state)
      {'trace/w': 0.5}
    """
    shares = {path: _share_at_top(leaf) for path, leaf in named_leaves(state, is_coded) if is_coded(leaf)}
    return {path: share for path, share in shares.items() if share}


def _share_at_top(coded: Coded) -> float:
    arrays = jax.tree.leaves(coded.code)
    if len(arrays) != 1 or not arrays[0].size:
        return 0.0
    largest = jnp.array([1.0, 1.0 if coded.how.nonnegative else -1.0]) * jnp.finfo(jnp.float32).max
    ends = jax.tree.leaves(coded.how.codec.encode(largest, nonnegative=coded.how.nonnegative))[0]
    return float(np.mean(np.isin(_raw(arrays[0]), _raw(ends))))


def _raw(x: ArrayLike) -> np.ndarray:
    array = np.asarray(x)
    return array if array.dtype.kind in "iu" else array.view(f"u{array.dtype.itemsize}")


def _bits(x: ArrayLike) -> int:
    dtype = jnp.result_type(x)
    size = math.prod(jnp.shape(x))
    if jnp.issubdtype(dtype, jnp.integer):
        return size * jnp.iinfo(dtype).bits
    if jnp.issubdtype(dtype, jnp.floating):
        return size * jnp.finfo(dtype).bits
    return size * 8 * dtype.itemsize
