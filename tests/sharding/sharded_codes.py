"""Codes on an Explicit mesh, whose blocks lie on one device or on several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

CODECS = {
    "row": gx.precision.int8_blockwise(),
    "whole blocks": gx.precision.int8_blockwise(8),
    "divided blocks": gx.precision.int4_blockwise(64),
    "a shorter last block": gx.precision.int8_blockwise(44),
    "dynamic": gx.precision.int8_blockwise(8, code="dynamic"),
}


def coded() -> Iterator[str]:
    """Bit for bit those of one device."""
    places = jnp.arange(256, dtype=jnp.float32)
    x = jnp.stack([jnp.sin(places), jnp.cos(places)]) * jnp.exp(places / 9)

    def both(x: jax.Array) -> Any:
        codes = {name: codec.encode(x) for name, codec in CODECS.items()}
        return codes, {name: CODECS[name].decode(code) for name, code in codes.items()}

    expected = jax.jit(both)(x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        found = jax.jit(both)(jax.device_put(x, NamedSharding(mesh, P(None, "data"))))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        if not np.array_equal(np.asarray(a), np.asarray(b)):
            yield f"codes: {jax.tree_util.keystr(path)}"
