"""The network that the programs of this folder train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

jax.config.update("jax_enable_x64", True)
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
TOKENS = jnp.arange(64, dtype=jnp.int32) % 16
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)


def params() -> Any:
    """An embedding that is used twice, a square kernel, biases, a leaf that 4 x 2 devices divide in both dimensions or
    not at all, and one that nothing divides.
    """
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = {"embed": (16, 8), "square": (8, 8), "kernel": (8, 32), "bias": (32,), "block": (4, 2), "odd": (3, 5)}
    return {name: 0.3 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def loss(p: Any, tokens: jax.Array) -> jax.Array:
    h = jnp.tanh(p["embed"].at[tokens].get(out_sharding=_out(p["embed"], tokens)) @ p["square"])
    hidden = jax.nn.softplus(h @ p["kernel"] + p["bias"])
    logits = (hidden @ p["kernel"].T + h) @ p["embed"].T
    own = jnp.mean((h[:, :4] @ p["block"]) ** 2) + jnp.sum(p["odd"] ** 2)
    return jnp.mean(jax.nn.logsumexp(logits, -1)) + 0.1 * jnp.mean(logits**2) + own


def _out(table: jax.Array, tokens: jax.Array) -> Any:
    mesh = jax.typeof(table).sharding.mesh
    explicit = not mesh.empty and AxisType.Explicit in mesh.axis_types
    return NamedSharding(mesh, P(*jax.typeof(tokens).sharding.spec, None)) if explicit else None


def whole(p: Any) -> Any:
    """Params as they are used: gathered, where types say that they are divided over the data."""

    def one(x: Any) -> Any:
        sharding = jax.typeof(x).sharding
        if sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
            return x
        return jax.sharding.reshard(x, NamedSharding(sharding.mesh, P()))

    return jax.tree.map(one, p)
