"""Bytes that a device holds and sends, known by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_network import params
from sharded_transformations import RATE

import gradxform as gx


def sent() -> Iterator[str]:
    """Bytes that a device holds and sends: known by hand."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x = jax.device_put(jnp.ones((16, 8)), NamedSharding(mesh, P("data", "model")))

    def program(x: jax.Array) -> jax.Array:
        def body(i: jax.Array, total: jax.Array) -> jax.Array:
            return total + jax.lax.psum(x * i, "data")

        along = jax.lax.fori_loop(0, 3, body, jax.lax.psum(x, "data"))
        return jax.lax.all_gather(along, "model", tiled=True)

    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=P("data", "model"), out_specs=P("data", "model"), check_vma=False
    )
    found = {(one.kind, one.axes): one.bytes for one in gx.sharding.traffic(jax.jit(mapped).lower(x).compile()).sent}
    piece = 4 * 4 * 8
    if found != {("all-reduce", ("data",)): 4 * 2 * 3 / 4 * piece, ("all-gather", ("model",)): piece}:
        yield f"traffic: {found}"


def held() -> Iterator[str]:
    """Of a divided state a device holds an equal part and what does not divide, and hardly more while it is made."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    whole = params()
    p, largest = jax.device_put(whole, NamedSharding(mesh, P())), max(x.nbytes for x in jax.tree.leaves(whole))
    odd = whole["odd"].nbytes
    # With what is whole: numbers, what is kept of the leaf that does not divide, Adafactor's other halves.
    cases = {
        "adamw": (gx.adamw(RATE), 4 + 2 * odd),
        "amsgrad": (gx.amsgrad(RATE), 4 + 3 * odd),
        "accumulate": (gx.accumulate(gx.adamw(RATE), 2), 20 + 3 * odd),
        "adafactor": (gx.adafactor(RATE, min_dim_size_to_factor=4, factored_axes="last"), 4 + odd + 8 * (3 * 8 + 9)),
        "ewc": (gx.chain(gx.transfer.add_ewc(whole, whole, 0.1), gx.adamw(RATE)), 8 + 4 * odd),
    }
    for (name, (inner, full)), (axis, parts) in itertools.product(
        cases.items(), (("model", 2), ("data", 4), (("data", "model"), 8))
    ):
        tx = gx.sharding.zero1(inner, axis, min_size=0)
        before = {id(x) for x in jax.live_arrays()}
        state = gx.sharding.init(tx, p)
        first = sum(
            piece.data.nbytes
            for x in jax.live_arrays()
            if id(x) not in before
            for piece in x.addressable_shards
            if piece.device == jax.devices()[0]
        )
        total = sum(x.nbytes for x in jax.tree.leaves(state))
        if not gx.sharding.layout(state).bytes == first == (total - full) / parts + full:
            yield f"{name}, {parts}: {first} of {total} bytes\n{gx.sharding.layout(state)}"
        if parts < 8:
            continue
        memory = (
            jax.jit(tx.init, out_shardings=jax.tree.map(lambda x: x.sharding, state))
            .lower(p)
            .compile()
            .memory_analysis()
        )
        if not memory.output_size_in_bytes + memory.temp_size_in_bytes <= total / parts + largest:
            yield f"{name}, {parts}: {memory}"
