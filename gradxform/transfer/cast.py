"""Casts that keep what numbers mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

SIXTY_FOUR_BITS = ("float64", "int64", "uint64", "complex128")


def why_not(stored: np.dtype, wanted: np.dtype, *, on_host: bool = False) -> str:
    """Why numbers of one dtype cannot become those of another; '' where they can.

    Args:
      stored: the dtype in the file.
      wanted: the dtype of the param.
      on_host: whether the param is an array of NumPy, which may have 64 bits at any time.
    """
    if jax.dtypes.issubdtype(wanted, jax.dtypes.extended):
        return "keys come from no file; name it in new"
    if not on_host and np.dtype(wanted).name in SIXTY_FOUR_BITS and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return "jax has it only with jax_enable_x64"
    if stored == wanted or _kind(stored) == _kind(wanted) or (_kind(stored), _kind(wanted)) == ("real", "complex"):
        return ""
    return f"a cast from {_kind(stored)} to {_kind(wanted)} numbers would change what they mean"


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray | str:
    """An array of its own with another dtype, or what keeps its numbers from being held by it."""
    if array.dtype == dtype:
        return np.array(array, order="C")
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(dtype, order="C")
        lost = (
            made.astype(array.dtype) != array if _kind(dtype) == "integer" else np.isfinite(array) & ~np.isfinite(made)
        )
    if _kind(dtype) == "integer":
        # Modulo 2**n a number may come back from another sign.
        lost |= (made < 0) != (array < 0)
    count = np.count_nonzero(lost)
    return f"has {count} numbers of {array.dtype} that {dtype} cannot hold" if count else made


def _kind(dtype: DTypeLike) -> str:
    kinds = {"integer": jnp.integer, "real": jnp.floating, "complex": jnp.complexfloating}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)), "logical")
