"""What a training step sends between chips, read from the programs that the compilers for TPU and GPU make of it.

    python -m benchmarks sharding --topology h100:8 --topology h100:32
    python -m benchmarks sharding --topology v5e:4x4 --params 46

Nothing is run and none of the chips is needed: for ``v5e`` the ``tpu`` extra, for ``h100`` ``cuda-compiler``. A step of
clip and AdamW on a network of square layers, its batch divided over all chips: plain data parallel, ``zero1`` over
all chips or over one of the two axes of a square of them, and FSDP. Beside each what has to be sent at the least to sum
the gradients, ``2 (n - 1) / n`` of the params.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx
from benchmarks.compiled.target import H100, VARIABLES, missing

__all__ = ["HELP", "VARIABLES", "add_arguments", "run"]
HELP = "what data-parallel, ZeRO-1 and FSDP steps send between chips, by the compilers"
WAYS = ("data parallel", "zero1", "zero1 over one axis", "fsdp")
WIDTH, ROWS = 2048, 8
"""Of a layer, and examples a chip."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--topology", action="append", metavar="CHIPS",
                        help="h100:N for N in all, or v5e:AxB; may be given several times (default v5e:2x4)")
    parser.add_argument("--params", type=float, default=46.0, help="millions of params (default %(default)s)")
    parser.add_argument("--way", action="append", choices=WAYS, help="one of the layouts; default all")


def devices_of(topology: str) -> list[Any]:
    """The chips of a topology.

    Raises:
      RuntimeError: its compiler is not installed.
    """
    if problem := missing(topology):
        raise RuntimeError(problem)
    chip, _, size = topology.partition(":")
    if chip == "h100":
        hosts = max(int(size) // 8, 1)
        return list(topologies.get_topology_desc("h100", platform="cuda", target_config=H100,
                                                 topology=f"1x{hosts}x{int(size) // hosts}").devices)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def compiled_step(way: str, devices: list[Any], layers: int) -> tuple[Any, Any] | None:
    """The compiled step, and the params as they lie in it; None where a layout needs a square of chips."""
    square = math.isqrt(len(devices))
    if way == "zero1 over one axis":
        if square * square != len(devices):
            return None
        mesh = Mesh(np.array(devices).reshape(square, square), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    else:
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    shapes = {f"layer_{i:02d}": jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32) for i in range(layers)}
    lies = gx.sharding.fsdp(shapes, mesh, rules=() if way == "fsdp" else [("", None)])
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-3))
    tx = gx.sharding.zero1(tx) if way.startswith("zero1") else tx
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, lies)
    state_lies = gx.sharding.state_sharding(tx, params)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                         jax.eval_shape(tx.init, params), state_lies)
    spread = NamedSharding(mesh, P(mesh.axis_names))
    x = jax.ShapeDtypeStruct((ROWS * mesh.size, WIDTH), jnp.float32, sharding=spread)

    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            h = x
            for kernel in params.values():
                h = jax.nn.relu(h @ kernel)
            return jnp.mean(jnp.square(h))

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return gx.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(lies, state_lies))
    return jitted.lower(params, state, x).compile(), params


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compiles and prints a table for each topology and layout."""
    layers = max(round(args.params * 1e6 / WIDTH**2), 1)
    rows = []
    for topology in args.topology or ["v5e:2x4"]:
        devices = devices_of(topology)
        for way in args.way or WAYS:
            start = time.process_time()
            made = compiled_step(way, devices, layers)
            if made is None:
                continue
            compiled, params = made
            axes = ("replica", "data") if way == "zero1 over one axis" else ("data",)
            held = sum(x.size * 4 for x in jax.tree.leaves(params)) * 2 * (len(devices) - 1) / len(devices)
            found = gx.sharding.traffic(compiled, params, axes)
            print(f"\n{topology}, {way}, {layers * WIDTH**2 / 1e6:.0f}M params: {found.bytes / held:.3f} of the least")
            print(found, flush=True)
            rows.append({"topology": topology, "way": way, "params": layers * WIDTH**2, "least": held,
                         "bytes": found.bytes, "seconds": time.process_time() - start,
                         "sent": [vars(one) for one in found.sent]})
    return {"rows": rows}
