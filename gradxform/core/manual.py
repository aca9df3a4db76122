"""Arrays inside ``shard_map``, where JAX knows which differ from device to device."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax


def varying_like(reference: Any, arrays: Any) -> Any:
    """``arrays`` made to differ from device to device along all manual axes along which ``reference`` does.

    Inside ``shard_map`` JAX would do so where they meet; done before, the gradient of an array that all devices share
    is summed over devices in the size of that array, and not of what it is combined with.

    Args:
      reference: an array, or a tree of them.
      arrays: a tree of arrays.

    Returns:
      The same tree.
    """
    wanted = frozenset[str]().union(*map(_varying, jax.tree.leaves(reference)))

    def cast(array: jax.Array) -> jax.Array:
        missing = wanted - _varying(array)
        return lax.pcast(array, tuple(missing), to="varying") if missing else array

    return jax.tree.map(cast, arrays)


def _varying(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying
