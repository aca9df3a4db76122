"""Checks of random keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def one_key(name: str, key: Any) -> jax.Array:
    """``key`` as a typed key, whether it is one already or the raw data of one.

    Raises:
      TypeError: it is no key, or several.
    """
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.ndim == 0:
                return jnp.asarray(key)
            raise TypeError(f"{name}: expected one key, got an array of keys of shape {key.shape}; vmap over it, or "
                            f"take one of them")
        if key.dtype == jnp.uint32 and key.ndim == 1:
            try:
                return jax.random.wrap_key_data(jnp.asarray(key))
            except (TypeError, ValueError):
                pass
        found = f"an array of dtype {key.dtype} and shape {key.shape}"
    else:
        found = repr(key)
    raise TypeError(f"{name}: expected a key from jax.random.key or jax.random.PRNGKey, got {found}")
