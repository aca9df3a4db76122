"""What the state of an optimizer takes in fewer bits, and what that costs: bytes, memory traffic, time, loss.

Bytes are those of the state by its shapes, over whole models. Traffic is read from the program that a chip's own
compiler makes of a donated step, where that compiler is installed. Steps are timed in turns on this machine, ours and
those of optax, torch, torchao, bitsandbytes and FlashOptim, where they are installed and work on its processor; and a
mean of squares is followed whose gradient falls to a hundredth. With ``--train`` two small nets are trained from the
same batches with every codec, and with params of 16 bits.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradxform as gx
from benchmarks import harness, trees
from benchmarks.memory import codecs, peers, training

HELP = "optimizer state in fewer bits: bytes, memory traffic, time of a step, loss after training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument(
        "--topology",
        action="append",
        default=[],
        metavar="CHIP",
        help="a chip to compile for, such as v5e:1x1 or h100; may be repeated",
    )
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="train for so many steps (default: not)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        choices=list(training.TASKS),
        help="what to train; may be repeated (default: all)",
    )
    parser.add_argument("--kind", action="append", default=[], help="what to train beside float32 (default: all)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints and returns the record."""
    record: dict[str, Any] = {"state_bytes": _bytes(), "here": _here(args), "averages": _averages(args)}
    if args.topology:
        record["compiled"] = {topology: _compiled(topology) for topology in args.topology}
    if args.train:
        rows = training.measure(args.task or list(training.TASKS), args.train, args.seeds, args.kind)
        harness.table(
            f"held-out loss after {args.train} steps, mean of {args.seeds} seeds",
            ("task", "rate", "kept", "loss", "less float32", "spread"),
            [
                [
                    row["task"],
                    f"{row['rate']:g}",
                    row["kept"],
                    f"{row['loss']:.4f}",
                    f"{row['difference']:+.4f}",
                    f"{row['spread']:.4f}",
                ]
                for row in rows
            ],
        )
        record["training"] = {"steps": args.train, "seeds": args.seeds, "rows": rows}
    return record


def _bytes() -> dict[str, Any]:
    """Bytes of state a parameter, of two models."""
    found: dict[str, Any] = {}
    for tree in ("transformer", "resnet50"):
        params = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            trees.TREES[tree](),
            is_leaf=lambda x: isinstance(x, tuple),
        )
        found[tree] = codecs.state_bytes(params)
        narrow = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), params)
        for bits in (32, 24):
            tx = gx.precision.master_weights(codecs.stored(gx.adamw(1e-3), gx.precision.int8_blockwise()), bits)
            found[tree][f"bf16 params + {bits}-bit masters + int8 row, with the params"] = (
                2 + gx.precision.memory(jax.eval_shape(tx.init, narrow), narrow).per_param
            )
        rows = [
            [name, *(f"{size:.3f}" for size in sizes.values())]
            for name, sizes in found[tree].items()
            if isinstance(sizes, dict)
        ]
        harness.table(f"{tree}: bytes of state a parameter", ("optimizer", *codecs.CODECS), rows)
        for name, size in found[tree].items():
            if not isinstance(size, dict):
                print(f"{name}: {size:.3f} bytes a parameter")
    return found


def _here(args: argparse.Namespace) -> dict[str, Any]:
    """A step of AdamW by every codec and peer on this machine."""
    repeats = args.repeats or (10 if args.quick else 40)
    chosen = {name: codec for name, codec in codecs.CODECS.items() if not name.startswith("int4") or not args.quick}
    built = {name: codecs.temporaries(codecs.stored(gx.adamw(peers.RATE), codec)) for name, codec in chosen.items()}
    params = [
        np.random.default_rng(i).standard_normal(shape, np.float32) for i, shape in enumerate(codecs.SMALL.values())
    ]
    size = sum(p.size for p in params)
    found = {name: peers.start(peers.ours(codec), params) for name, codec in chosen.items()}
    found |= {name: peers.start(peers.PEERS[name], params) for name in peers.PEERS}
    runs = {name: peer for name, peer in found.items() if isinstance(peer, peers.Peer)}
    times, busy = harness.undisturbed(
        lambda: harness.in_turns({name: peer.step for name, peer in runs.items()}, repeats), args.patience
    )
    plain, first = times["float32"], built["float32"]["seconds"]
    record = {
        name: {
            "step": times[name].record(),
            "ratio": times[name].ratio(plain),
            "bytes": peer.size() / size,
            **built.get(name, {}),
        }
        for name, peer in runs.items()
    }
    harness.table(
        "a step of AdamW over 8.4M parameters on this machine",
        ("stored by", "state B/param", "ms", "x float32", "temp B/param", "build s", "x float32"),
        [
            [
                name,
                f"{one['bytes']:.3f}",
                f"{1e3 * times[name].median:.1f}",
                f"{one['ratio']:.2f}",
                *(
                    [f"{one['temp']:.2f}", f"{one['seconds']:.2f}", f"{one['seconds'] / first:.1f}"]
                    if name in built
                    else ["-"] * 3
                ),
            ]
            for name, one in record.items()
        ],
    )
    for name, why in found.items():
        if isinstance(why, str):
            print(f"{name}: {why}")
            record[name] = {"missing": why}
    if busy > harness.QUIET:
        print(f"WARNING: measured while other processes kept {busy:.1f} cores busy")
    return record | {"versions": peers.versions(), "others": busy}


def _averages(args: argparse.Namespace) -> dict[str, Any]:
    """Whether a mean of squares follows gradients that fall, by every codec and peer."""
    steps = 800 if args.quick else 8000
    found = {name: peers.averages(peers.ours(codec), steps) for name, codec in codecs.CODECS.items()}
    found |= {name: peers.averages(peers.PEERS[name], steps) for name in peers.PEERS}
    columns = ("fallen", "others", "spread", "fallen_mean", "others_mean")
    rows = [
        [name, *(f"{one[column]:.3f}" for column in columns)] for name, one in found.items() if not isinstance(one, str)
    ]
    harness.table(
        f"root of the mean of squares, by the exact one, after {steps} steps in which half of the gradients "
        "fell to a hundredth",
        ("stored by", "those", "others", "their spread", "those, of the mean", "others, of the mean"),
        rows,
    )
    for name, why in found.items():
        if isinstance(why, str):
            print(f"{name}: {why}")
    return {"steps": steps, **{name: {"missing": one} if isinstance(one, str) else one for name, one in found.items()}}


def _compiled(topology: str) -> dict[str, Any]:
    """Traffic and temporaries of the step compiled for a chip that is not here."""
    found = {
        name: codecs.compiled(codecs.stored(codecs.MAKERS["gx.adamw"](), codec), topology)
        for name, codec in codecs.CODECS.items()
    }
    harness.table(
        f"{topology}: a step of AdamW over 67M parameters, compiled",
        ("codec", "HBM B/param", "temp B/param", "compile s"),
        [[name, f"{one['hbm']:.2f}", f"{one['temp']:.2f}", f"{one['seconds']:.1f}"] for name, one in found.items()],
    )
    return found
