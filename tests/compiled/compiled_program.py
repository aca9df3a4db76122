"""Run by the tests of this folder in a process of its own: compiles parts for v5e, and prints their figures as JSON."""

from __future__ import annotations

import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import compiled_catalog as catalog
import harness
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx
from benchmarks import norms, peers, trees
from benchmarks.compiled import programs_augment, programs_losses, programs_norms, programs_optimizers, report, target
from benchmarks.compiled import programs_sharded as sharded
from benchmarks.compiled.program import OURS, Call, shaped

A = gx.augment
Records = dict[str, Any]


@functools.cache
def mesh_of(topology: str, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return target.mesh_of(topology, sharded.AXIS, kind)


def figures(call: Call, mesh: jax.sharding.Mesh, told: bool = True) -> Records:
    """The record of a program."""
    compiled = target.compile_for(call.function, call.arguments, mesh, call.donate, told=told)
    made = report.report_of(compiled, target.CHIPS["v5e"])
    return made.record() | {
        "per": made.hbm_bytes / call.size if call.size else None,
        "sizes": sorted(size for _, _, size in made.work.collectives),
        "unknown": made.work.unknown_loops,
    }


def together(calls: Mapping[str, tuple[Any, ...]], mesh: jax.sharding.Mesh) -> Records:
    """Many small programs as one, which saves most of the time; where that fails, which of them fail alone."""
    functions, arguments = zip(*(call[:2] for call in calls.values()), strict=True)

    def all_of(arguments: Any) -> Any:
        return [function(*args) for function, args in zip(functions, arguments, strict=True)]

    try:
        return figures(Call(all_of, (arguments,)), mesh) | {"names": sorted(calls), "failed": {}}
    except Exception:
        failed = {}
        for name, call in calls.items():
            try:
                figures(Call(*call[:2]), mesh)
            except Exception as error:
                failed[name] = str(error)[:500]
        if not failed:
            raise
        return {"names": sorted(calls), "failed": failed}


def catalogued(calls: catalog.Calls) -> Records:
    return together(calls, mesh_of("v5e:1x1"))


def half(calls: catalog.Calls, which: int) -> catalog.Calls:
    return {name: calls[name] for name in sorted(calls)[which::2]}


def small_tree(like: Any = jnp.float32) -> Any:
    """A transformer of 20.8M params in 37 leaves: more than fits VMEM with its moments."""
    return jax.tree.map(
        lambda shape: shaped(shape, like),
        trees.transformer(layers=3, vocabulary=22000),
        is_leaf=lambda x: isinstance(x, tuple),
    )


def steps() -> Records:
    found = {
        name: figures(programs_optimizers.step_of(name, OURS, small_tree()), mesh_of("v5e:1x1"))
        for name in ("adamw", "clip_adamw")
    }
    params, wrapped = (
        small_tree(jnp.bfloat16),
        {"masters": gx.precision.master_weights, "stochastic rounding": gx.precision.stochastic_rounding},
    )
    for name, wrap in wrapped.items():
        tx = wrap(gx.adamw(1e-3, weight_decay=0.1))
        call = Call(
            peers.jax_update(tx, gx.apply_updates),
            (params, jax.eval_shape(tx.init, params), params),
            (0, 1),
            sum(leaf.size for leaf in jax.tree.leaves(params)),
        )
        found[name] = figures(call, mesh_of("v5e:1x1"))
    return found


def guarded() -> Records:
    """A guard and a loss scale around AdamW, alone and with a clip."""
    params, found = small_tree(), {}
    for name, inner in (
        ("adamw", gx.adamw(1e-3)),
        ("clip_adamw", gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-3))),
    ):
        for tx in (gx.skip_nonfinite(inner, 9), gx.precision.dynamic_loss_scale(inner)):
            call = Call(
                peers.jax_update(tx, gx.apply_updates),
                (params, jax.eval_shape(tx.init, params), params),
                (0, 1),
                sum(leaf.size for leaf in jax.tree.leaves(params)),
            )
            found[f"{tx.name} of {name}"] = figures(call, mesh_of("v5e:1x1"))
    return found


def passes() -> Records:
    return {
        name: figures(
            programs_norms.both_of(norms.CASES[name], OURS, programs_norms.LARGE[name], jnp.float32), mesh_of("v5e:1x1")
        )
        for name in programs_norms.LARGE
    }


def losses() -> Records:
    x, mesh = shaped((4096, 128)), mesh_of("v5e:1x1")
    both = functools.partial(jax.value_and_grad, argnums=(0, 1))
    return {
        name: figures(Call(both(loss), (x, x)), mesh)
        for name, loss in (
            ("nt_xent", programs_losses.nt_xent()),
            ("clip_loss", programs_losses.clip),
            ("siglip", programs_losses.siglip),
        )
    }


POINTWISE = ("posterize", "solarize", "invert", "brightness", "saturation", "hue", "grayscale", "contrast", "cutout 56")


def images() -> Records:
    batch, mesh = shaped(programs_augment.IMAGES, jnp.uint8), mesh_of("v5e:1x1")
    stages = programs_augment.STAGES
    small = shaped((64, 64, 64, 3), jnp.uint8)
    return {
        "pointwise": together({name: programs_augment.call_of(stages[name], batch) for name in POINTWISE}, mesh),
        "moved": together(
            {name: programs_augment.call_of(stages[name], batch) for name in ("flip", "random_crop 192", "sharpness")},
            mesh,
        ),
        "looked up": {
            name: figures(programs_augment.call_of(stages[name], batch), mesh)
            for name in ("rotation", "affine", "elastic", "equalize", "autocontrast")
        },
        "rand_augment": figures(programs_augment.call_of(A.rand_augment(), small), mesh),
    }


def replicated_steps() -> Records:
    """A step of every recipe, behind a clip, with all that it has on every chip."""
    params = {"kernel": shaped((256, 256)), "bias": shaped((256,))}
    calls = {}
    for name in harness.RECIPES:
        tx = gx.chain(gx.clip_by_global_norm(1.0), harness.recipe(name))
        calls[name] = (
            lambda grads, state, params, tx=tx: tx.update(grads, state, params),
            (params, jax.eval_shape(tx.init, params), params),
        )
    return together(calls, mesh_of("v5e:2x2"))


def data_parallel() -> Records:
    mesh = mesh_of("v5e:2x2")
    call = sharded.train_step(mesh, OURS, fsdp=False)
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(call.arguments[0]))
    return figures(call, mesh, told=False) | {"params_bytes": size}


def divided_step() -> Records:
    """What ``traffic`` says of a step whose state is divided over the chips."""
    mesh = mesh_of("v5e:2x2")
    tx = gx.sharding.zero1(gx.sgd(0.1, momentum=0.9), sharded.AXIS, min_size=0)
    params = {"w": shaped((512, 512), sharding=NamedSharding(mesh, P()))}
    lies = gx.sharding.state_sharding(tx, params)
    state = jax.tree.map(lambda x, s: shaped(x.shape, x.dtype, s), jax.eval_shape(tx.init, params), lies)
    x = shaped((64, 512), sharding=NamedSharding(mesh, P(sharded.AXIS)))

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        updates, state = tx.update(jax.grad(lambda p: jnp.mean(jnp.sin(x @ p["w"])))(params), state, params)
        return gx.apply_updates(params, updates), state

    jitted = jax.jit(step, out_shardings=({"w": params["w"].sharding}, lies))
    found = gx.sharding.traffic(jitted.lower(params, state, x).compile(), params, sharded.AXIS)
    return {
        "sent": sorted([one.kind, list(one.axes), one.count, one.bytes] for one in found.sent),
        "least": found.least,
    }


def spread_images() -> Records:
    """Images on a mesh, and nothing said to the augmentation: each chip has its own."""
    named = {
        AxisType.Explicit: {
            "flip": A.random_flip_left_right(),
            "random_resized_crop": A.random_resized_crop(32),
            "color_jitter": A.color_jitter(0.4, 0.4, 0.4, 0.1),
        },
        AxisType.Auto: {
            "random_crop": A.random_crop(32),
            "rotation": A.random_rotation(30),
            "color_jitter": A.color_jitter(0.4, 0.4),
            "rand_augment": A.rand_augment(),
        },
    }
    found = {}
    for kind, augmentations in named.items():
        mesh = mesh_of("v5e:2x2", kind)
        found[kind.name] = together(
            {name: sharded.augmented(mesh, augmentation, 8, 64) for name, augmentation in augmentations.items()}, mesh
        )
    return found


def spread_losses() -> Records:
    """Losses of pairs on a mesh, and nothing said to them; with the bytes of the vectors that each compares."""
    cases = {
        "nt_xent, 4 chips": ("v5e:2x2", AxisType.Auto, programs_losses.nt_xent(), 2),
        "clip_loss, 4 chips": ("v5e:2x2", AxisType.Explicit, programs_losses.clip, 1),
        "siglip, 16 chips": ("v5e:4x4", AxisType.Auto, programs_losses.siglip, 1),
    }
    found = {}
    for name, (topology, kind, loss, views) in cases.items():
        mesh = mesh_of(topology, kind)
        call = sharded.pairs_loss(mesh, loss)
        found[name] = figures(call, mesh, told=False) | {
            "vectors": views * call.arguments[0].size * 4,
            "chips": mesh.size,
        }
    mesh = mesh_of("v5e:2x2")
    return found | {"batch_norm": figures(sharded.batch_normed(mesh), mesh, told=False)}


def spread_init() -> list[str]:
    """The leaves of a state whose array is not placed as its param is."""
    mesh = mesh_of("v5e:2x2")
    spread, tx = NamedSharding(mesh, P(sharded.AXIS)), gx.adamw(1e-3)
    params = {"kernel": shaped((256, 128), sharding=spread), "bias": shaped((128,), sharding=spread)}
    program = jax.jit(tx.init).lower(params).compile()
    shapes, placed = jax.eval_shape(tx.init, params), program.output_shardings
    return [
        f"{jax.tree_util.keystr(path)}: {sharding}"
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(placed), strict=True
        )
        if leaf.ndim and not sharding.is_equivalent_to(spread, leaf.ndim)
    ]


def walk() -> Records:
    """Programs whose figures are known."""
    one, four = mesh_of("v5e:1x1"), mesh_of("v5e:2x2")
    square = shaped((512, 512))
    x, place = shaped((64, 2**20)), shaped((4096, 1), jnp.int32)
    rows = NamedSharding(four, P(sharded.AXIS))
    return {
        "x + 1": figures(Call(lambda x: x + 1, (x,)), one),
        "loop": figures(Call(lambda x: lax.fori_loop(0, 7, lambda _, x: jnp.sin(x @ x), x), (square,)), one),
        "gather": figures(Call(lambda x, i: x[i[:, 0]], (shaped((100_000,)), place)), one),
        "all-reduce": figures(Call(lambda x: x.sum(0), (shaped((8, 1024), sharding=rows),)), four),
    }


RUNS: dict[str, dict[str, Callable[[], Any]]] = {
    "names": {
        "transformations": lambda: catalogued(catalog.transformations()),
        "schedules": lambda: catalogued(catalog.schedules()),
        "kernels": lambda: catalogued(catalog.kernels()),
    },
    "augmentations": {
        "first": lambda: catalogued(half(catalog.augmentations(), 0)),
        "second": lambda: catalogued(half(catalog.augmentations(), 1)),
    },
    "one chip": {
        "walk": walk,
        "steps": steps,
        "guarded": guarded,
        "passes": passes,
        "losses": losses,
        "images": images,
    },
    "four chips": {
        "replicated": replicated_steps,
        "data-parallel": data_parallel,
        "divided": divided_step,
        "images": spread_images,
        "losses": spread_losses,
        "init": spread_init,
    },
}
"""The parts of a process; a part that fails does not keep the others from compiling."""


def done(part: Callable[[], Any]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        found: dict[str, Any] = {"found": part()}
    except Exception:
        found = {"error": traceback.format_exc(limit=-4)[-3000:]}
    jax.clear_caches()
    return found | {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps({name: done(part) for name, part in RUNS[sys.argv[1]].items()}))
