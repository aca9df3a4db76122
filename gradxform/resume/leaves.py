"""The leaves of a state as they are saved: arrays by path, whatever they were."""

from __future__ import annotations

from typing import Any, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from gradxform.core.trees import named_leaves, structure
from gradxform.core.types import PyTree

Leaf: TypeAlias = jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic | bool | int | float | complex
Stored: TypeAlias = jax.Array | np.ndarray
Target: TypeAlias = jax.ShapeDtypeStruct | np.ndarray


class Entry(TypedDict):
    """What the manifest says of a leaf."""

    shape: list[int]
    dtype: str


def entries(state: PyTree) -> dict[str, Entry]:
    """What the manifest says of each leaf: shape and dtype by path.

    Raises:
      TypeError: a leaf that cannot be saved, with its path.
      ValueError: two leaves have one path, or one was donated, with its path.
    """
    found: dict[str, Entry] = {}
    for path, leaf in named_leaves(state):
        if path in found:
            raise ValueError(f"state: expected paths that differ, got '{path}' twice")
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
            raise ValueError(f"state: expected an array at '{path}', got one whose memory was donated to a later step")
        found[path] = {"shape": list(np.shape(leaf)), "dtype": _dtype_name(path, leaf)}
    return found


def to_arrays(state: PyTree) -> dict[str, Stored]:
    """Arrays by the names they are stored under; keys as their data, and none that are empty: Orbax refuses those."""
    return {
        _stored_name(path): jax.random.key_data(leaf)
        if _is_key(leaf)
        else leaf
        if isinstance(leaf, jax.Array)
        else _native(np.asarray(leaf))
        for path, leaf in named_leaves(state)
        if np.size(leaf)
    }


def targets(state: PyTree, shardings: list[Sharding | None]) -> dict[str, Target]:
    """What is to be read: for each array its shape and dtype, and where it lies; on the host where that is open."""
    found: dict[str, Target] = {}
    for (path, leaf), sharding in zip(named_leaves(state), shardings, strict=True):
        if not np.size(leaf):
            continue
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if sharding is not None:
            found[_stored_name(path)] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
        elif hasattr(leaf, "dtype"):
            found[_stored_name(path)] = np.empty(data.shape, _native(data).dtype)
        else:
            found[_stored_name(path)] = np.asarray(leaf)
    return found


def where_it_lies(leaf: Leaf) -> Sharding | None:
    """The sharding of a leaf, None where jax may move it to whatever it is used with."""
    return None if isinstance(leaf, jax.Array) and not leaf.committed else getattr(leaf, "sharding", None)


def from_arrays(state: PyTree, arrays: dict[str, Stored]) -> PyTree:
    """A tree like ``state`` of what was read."""
    leaves: list[Leaf] = []
    for path, leaf in named_leaves(state):
        if np.size(leaf):
            array = arrays[_stored_name(path)]
        else:
            data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
            array = np.zeros(data.shape, data.dtype)
        if _is_key(leaf):
            leaves.append(jax.random.wrap_key_data(jnp.asarray(array), impl=_impl(leaf)))
        elif isinstance(leaf, np.ndarray):
            leaves.append(np.asarray(array))
        elif isinstance(leaf, np.generic):
            leaves.append(np.asarray(array)[()])
        elif not hasattr(leaf, "dtype"):
            leaves.append(type(leaf)(np.asarray(array).item()))
        else:
            leaves.append(jnp.asarray(array))
    return jax.tree.unflatten(structure(state), leaves)


def copied(arrays: dict[str, Stored]) -> dict[str, Stored]:
    """Copies of arrays of a CPU: what is read there in the background would be overwritten by a step that may."""

    def copy(x: Stored) -> Stored:
        if isinstance(x, np.ndarray):
            return x.copy()
        device: Any = next(iter(x.sharding.device_set))  # a type that the stubs of jax leave open
        return jnp.copy(x) if device.platform == "cpu" else x

    return {name: copy(x) for name, x in arrays.items()}


def _dtype_name(path: str, leaf: Leaf) -> str:
    """A leaf's dtype, or the kind of a number.

    Raises:
      TypeError: it cannot be saved.
    """
    wrong = TypeError(f"state: expected arrays and numbers, got a {type(leaf).__name__} at '{path}'")
    if isinstance(leaf, (bool, int, float, complex)) and not isinstance(leaf, np.generic):
        if np.asarray(leaf).dtype.hasobject:
            raise TypeError(f"state: expected numbers of 64 bits, got {leaf} at '{path}'")
        return type(leaf).__name__
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        raise wrong
    numeric = jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)
    if not (numeric or jnp.issubdtype(dtype, jax.dtypes.prng_key)) or dtype == jax.dtypes.float0:
        raise TypeError(f"{wrong} of dtype {dtype}")
    return str(_native(np.asarray(leaf)).dtype if isinstance(leaf, np.ndarray | np.generic) else dtype)


def _native(array: Any) -> Any:
    """An array of NumPy's in the byte order of this machine; another as it is."""
    return array.astype(array.dtype.newbyteorder("="), copy=False) if isinstance(array, np.ndarray) else array


def _impl(leaf: Leaf) -> Any:
    """The kind of keys, of a struct too: a name or what jax has in the place of one."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _stored_name(path: str) -> str:
    """A path with dots in it, which Orbax takes for a name; those that it had are written otherwise."""
    return path.replace("%", "%25").replace(".", "%2E").replace("/", ".")


def _is_key(leaf: Leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
