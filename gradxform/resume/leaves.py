"""The leaves of a state as they are saved: arrays by path, whatever they were."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core.trees import flatten, named_leaves, structure
from gradxform.core.types import PyTree

Entry = dict[str, Any]


def entries(state: PyTree) -> dict[str, Entry]:
    """What the manifest says of each leaf: shape and dtype by path.

    Raises:
      TypeError: a leaf that cannot be saved, with its path.
      ValueError: two leaves have one path.
    """
    found: dict[str, Entry] = {}
    for path, leaf in named_leaves(state):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
            raise TypeError(f"state: expected arrays and numbers, got a {type(leaf).__name__} at '{path}'")
        if path in found:
            raise ValueError(f"state: expected paths that differ, got '{path}' twice")
        dtype = getattr(leaf, "dtype", None)
        kind = type(leaf).__name__ if dtype is None else str(dtype)
        found[path] = {"shape": list(np.shape(leaf)), "dtype": kind}
    return found


def to_arrays(state: PyTree) -> dict[str, Any]:
    """Arrays by the names they are stored under; keys as their data."""
    return {_stored_name(path): jax.random.key_data(leaf) if _is_key(leaf) else
            leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for path, leaf in named_leaves(state)}


def targets(state: PyTree, shardings: list[Any]) -> dict[str, Any]:
    """What is to be read: for each array its shape and dtype, and where it is to lie."""
    found: dict[str, Any] = {}
    for (path, leaf), sharding in zip(named_leaves(state), shardings, strict=True):
        if _is_key(leaf):
            data = jax.eval_shape(jax.random.key_data, leaf)
            found[_stored_name(path)] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
        elif hasattr(leaf, "dtype"):
            found[_stored_name(path)] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        else:
            found[_stored_name(path)] = np.asarray(leaf)
    return found


def from_arrays(state: PyTree, arrays: dict[str, Any]) -> PyTree:
    """A tree like ``state`` of what was read."""
    leaves = []
    for path, leaf in named_leaves(state):
        array = arrays[_stored_name(path)]
        if _is_key(leaf):
            array = jax.random.wrap_key_data(array, impl=_impl(leaf))
        elif isinstance(leaf, np.ndarray):
            array = np.asarray(array)
        elif not hasattr(leaf, "dtype"):
            array = type(leaf)(np.asarray(array).item())
        leaves.append(array)
    return jax.tree.unflatten(structure(state), leaves)


def copied(arrays: dict[str, Any]) -> dict[str, Any]:
    """Copies of arrays of a CPU: what is read there in the background would be overwritten by a step that may."""
    leaves, treedef = flatten(arrays)


    def copy(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return x.copy()
        device: Any = next(iter(x.sharding.device_set))
        return jnp.copy(x) if device.platform == "cpu" else x

    return treedef.unflatten(list(map(copy, leaves)))


def _impl(leaf: Any) -> Any:
    """The kind of keys, of a struct too."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _stored_name(path: str) -> str:
    return path.replace("/", ".")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
