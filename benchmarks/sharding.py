"""What a training step sends between chips, read from the programs that the compilers for TPU and GPU make of it.

    python -m benchmarks sharding --topology h100:8 --topology h100:1024
    python -m benchmarks sharding --topology v5e:16x16 --size 350 --way zero1

Nothing is run and none of the chips is needed: for ``v5e`` the ``tpu`` extra, for ``h100`` ``cuda-compiler``. A step of
clip and AdamW on a transformer whose layers are a loop (its head is a matrix of its own, its norms have no params), the
batch divided over all chips: plain data parallel, ``zero1`` over all chips in a row, on a mesh of two axes like the
chips' own over one of them or both, or over both inside ``shard_map``, and FSDP. Beside each what has to be sent at the
least to sum the gradients, ``2 (n - 1) / n`` of the params; less is possible where a chip has few tokens, for the
gradient of an embedding may be sent as theirs. A row takes the place of the one of the same program in the record, so
that runs add up to one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx
from benchmarks import harness
from benchmarks.compiled.target import H100, VARIABLES, missing

__all__ = ["HELP", "VARIABLES", "add_arguments", "run"]
HELP = "what data-parallel, ZeRO-1 and FSDP steps send between chips, by the compilers"
TWO_AXES = ("zero1 over one axis", "zero1 over both axes", "zero1 in shard_map")
WAYS = ("data parallel", "zero1", *TWO_AXES, "fsdp")
RECORD = harness.RESULTS / "sharding.json"
TOKENS, ROWS, HEAD = 128, 2, 64
"""Of an example, examples a chip, and the size of a head of attention."""


class Size(NamedTuple):
    """Of a transformer."""

    layers: int
    width: int
    vocabulary: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its params; those of all layers are stacked."""
        n, d, v = self
        return {
            "embed": (v, d),
            "qkv": (n, d, 3 * d),
            "out": (n, d, d),
            "up": (n, d, 4 * d),
            "down": (n, 4 * d, d),
            "head": (d, v),
        }


SIZES = {46: Size(8, 512, 20480), 350: Size(20, 1024, 48128)}
"""By millions of params."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument(
        "--topology",
        action="append",
        metavar="CHIPS",
        help="h100:N for N in all, or v5e:AxB; v5e:AxBxN for N slices (default v5e:2x4)",
    )
    parser.add_argument(
        "--size", type=int, action="append", choices=sorted(SIZES), help="millions of params; default all"
    )
    parser.add_argument("--way", action="append", choices=WAYS, help="one of the layouts; default all")


def devices_of(topology: str) -> tuple[list[Any], tuple[int, ...]]:
    """The chips of a topology, and the shape in which they lie.

    Raises:
      RuntimeError: its compiler is not installed.
    """
    if problem := missing(topology):
        raise RuntimeError(problem)
    chip, _, size = topology.partition(":")
    if chip == "h100":
        hosts = max(int(size) // 8, 1)
        shape = (hosts, int(size) // hosts)
        return list(
            topologies.get_topology_desc(
                "h100", platform="cuda", target_config=H100, topology=f"1x{hosts}x{shape[1]}"
            ).devices
        ), shape
    rows, columns, *slices = map(int, size.split("x"))
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{chip}:{rows}x{columns}", **({"num_slices": slices[0]} if slices else {})
    )
    return list(found.devices), (*slices, rows, columns)


def loss_of(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """Of the next token."""

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)

    def layer(x: jax.Array, own: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        q, k, v = (y.reshape(*y.shape[:2], -1, HEAD) for y in jnp.split(norm(x) @ own["qkv"], 3, -1))
        x += jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ own["out"]
        return x + jax.nn.gelu(norm(x) @ own["up"]) @ own["down"], None

    layers = {name: x for name, x in params.items() if name not in ("embed", "head")}
    x, _ = jax.lax.scan(jax.checkpoint(layer), params["embed"][tokens], layers)
    logits = norm(x) @ params["head"]
    right = jnp.take_along_axis(logits, tokens[..., None], -1)
    return jnp.mean(jax.nn.logsumexp(logits, -1)[:, :-1] - right[:, 1:, 0])


def compiled_step(way: str, mesh: Mesh, size: Size) -> tuple[Any, Any]:
    """The compiled step, and the params as they lie in it."""
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in size.shapes().items()}
    lies = gx.sharding.fsdp(shapes, mesh, mesh.axis_names, rules=() if way == "fsdp" else [("", None)])
    inside = way == "zero1 in shard_map"
    tx = gx.chain(gx.clip_by_global_norm(1.0, axis_name=mesh.axis_names if inside else None), gx.adamw(1e-3))
    if way.startswith("zero1"):
        tx = gx.sharding.zero1(tx, "data" if way == "zero1 over one axis" else mesh.axis_names)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, lies)
    state_lies = gx.sharding.state_sharding(tx, params)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(tx.init, params), state_lies
    )
    tokens = jax.ShapeDtypeStruct(
        (ROWS * mesh.size, TOKENS), jnp.int32, sharding=NamedSharding(mesh, P(mesh.axis_names))
    )

    def step(params: Any, state: Any, tokens: jax.Array) -> tuple[Any, Any]:
        own = jax.lax.pcast(params, mesh.axis_names, to="varying") if inside else params
        grads = jax.grad(lambda params: loss_of(params, tokens) / (mesh.size if inside else 1))(own)
        updates, state = tx.update(grads, state, params)
        return gx.apply_updates(params, updates), state

    if inside:
        specs = jax.tree.map(lambda lies: lies.spec, state_lies)
        step = jax.shard_map(step, mesh=mesh, in_specs=(P(), specs, P(mesh.axis_names)), out_specs=(P(), specs))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(lies, state_lies))
    return jitted.lower(params, state, tokens).compile(), params


def row_of(topology: str, way: str, millions: int) -> dict[str, Any]:
    """Compiles one program."""
    devices, shape = devices_of(topology)
    start, two = time.process_time(), way in TWO_AXES
    # The one axis over which the state is divided lies along the longer side of the chips.
    mesh = jax.make_mesh(
        (len(devices) // max(shape[-2:]), max(shape[-2:])) if two else (len(devices),),
        ("replica", "data") if two else ("data",),
        devices=devices,
        axis_types=(AxisType.Auto,) * (1 + two),
    )
    compiled, params = compiled_step(way, mesh, SIZES[millions])
    found = gx.sharding.traffic(compiled, params, mesh.axis_names)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    least = 4 * count * 2 * (len(devices) - 1) / len(devices)
    name = "jax-cuda12-plugin" if topology.startswith("h100") else "libtpu"
    print(f"\n{topology}, {way}, {count / 1e6:.1f}M params: {found.bytes / least:.3f} of the least")
    print(found, flush=True)
    return {
        "topology": topology,
        "way": way,
        "millions": millions,
        "params": count,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "least": least,
        "bytes": found.bytes,
        "over_the_least": found.bytes / least,
        "sent": [vars(one) for one in found.sent],
        "loops_counted_once": list(found.unknown_loops),
        "seconds": time.process_time() - start,
        "compiler": {key: importlib.metadata.version(key) for key in ("jax", name)},
    }


def keep(path: pathlib.Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record with this one among them, in place of the one of the same program."""
    record = json.loads(path.read_text()) if path.exists() else {"suite": "sharding", "rows": []}
    same = ("topology", "way", "millions")
    record["rows"] = [one for one in record["rows"] if any(one[key] != row[key] for key in same)] + [row]
    path.write_text(json.dumps(record, indent=2) + "\n")
    return list(record["rows"])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compiles, prints what each program sends, and keeps it."""
    args.output = args.output or RECORD
    rows: list[dict[str, Any]] = []
    for topology in args.topology or ["v5e:2x4"]:
        for millions in args.size or sorted(SIZES):
            for way in args.way or WAYS:
                rows = keep(args.output, row_of(topology, way, millions))
    rows.sort(key=lambda row: (row["topology"][:3], row["millions"], row["chips"], WAYS.index(row["way"])))
    _table(rows)
    return {"rows": rows}


def _table(rows: Sequence[dict[str, Any]]) -> None:
    by: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        by.setdefault((row["topology"], row["millions"]), {})[row["way"]] = row["over_the_least"]
    harness.table(
        "Sent by a device, over the least",
        ("chips, millions of params", *WAYS),
        [
            (f"{topology}, {millions}", *(f"{found[way]:.3f}" if way in found else "" for way in WAYS))
            for (topology, millions), found in by.items()
        ],
    )
