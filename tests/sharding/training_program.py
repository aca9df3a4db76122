"""Training on 8 devices of a CPU beside training on one, run by ``test_sharded_training.py``.

``python training_program.py CASES``: without it one layout each of some transformations, with ``each`` of all of them,
with ``all`` the whole product.
"""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_bytes import held, sent
from sharded_export import exported
from sharded_flax import with_flax
from sharded_network import COMPILED, KINDS, RATE, TOKENS, loss, params, whole

import gradxform as gx

LAYOUTS = ("replicated", "fsdp", "tensor", "zero1", "zero1 over one of two", "zero1 over both", "zero1 with tensor")


def transformations() -> dict[str, Any]:
    """Each rule of the library, alone or in a recipe, and wrappers."""
    rows = {"min_dim_size_to_factor": 4}
    pretrained = jax.tree.map(lambda x: x * 0.5, params())
    clipped = gx.chain(gx.clip_by_global_norm(0.1), gx.adamw(RATE, weight_decay=0.1))
    return {
        "sgd": gx.sgd(RATE, momentum=0.9),
        "rmsprop": gx.rmsprop(RATE, centered=True, momentum=0.9),
        "adagrad": gx.adagrad(RATE),
        "adam": gx.adam(RATE),
        "adamw": gx.adamw(RATE),
        "nadam": gx.nadam(RATE),
        "nadamw": gx.nadamw(RATE),
        "amsgrad": gx.amsgrad(RATE),
        "radam": gx.radam(RATE),
        "adabelief": gx.adabelief(RATE),
        "yogi": gx.yogi(RATE),
        "lion": gx.lion(RATE),
        "muon": gx.muon(RATE),
        "lars": gx.lars(RATE),
        "lamb": gx.lamb(RATE),
        "adafactor": gx.adafactor(RATE, **rows),
        "adafactor with momentum": gx.adafactor(RATE, **rows, momentum=0.9),
        "clip": clipped,
        "clip of values": gx.chain(gx.clip(0.01), gx.sgd(RATE)),
        "clip of blocks": gx.chain(gx.clip_by_block_rms(0.01), gx.sgd(RATE)),
        "adaptive clip": gx.chain(gx.adaptive_grad_clip(0.01), gx.sgd(RATE)),
        "centralize": gx.chain(gx.centralize(), gx.sgd(RATE)),
        "ema": gx.chain(gx.ema(0.9), gx.sgd(RATE)),
        "block rms of params": gx.chain(gx.scale_by_param_block_rms(), gx.sgd(RATE)),
        "norms": gx.chain(gx.record_norms(), gx.adam(RATE)),
        "schedule": gx.adam(gx.schedules.cosine(RATE, 10)),
        "accumulate": gx.accumulate(clipped, 2),
        "skip": gx.skip_nonfinite(clipped, 3),
        "masked": gx.masked(gx.adam(RATE), gx.ndim_at_least(2)),
        "freeze": gx.chain(gx.adam(RATE), gx.freeze("bias")),
        "partition": gx.partition({True: gx.adam(RATE), False: gx.sgd(RATE)}, gx.ndim_at_least(2)),
        "noise": gx.chain(gx.add_noise(0.1, 0.5, 0), gx.sgd(RATE)),
        "anchor": gx.chain(gx.transfer.add_l2_sp(pretrained, 0.1), gx.sgd(RATE)),
        "ewc": gx.chain(gx.transfer.add_ewc(pretrained, pretrained, 0.1), gx.sgd(RATE)),
        "loss scale": gx.precision.static_loss_scale(gx.adam(RATE), 8.0),
        "optax adamw": optax.adamw(RATE),
        "optax adafactor": optax.adafactor(RATE, **rows),
        "optax steps": optax.MultiSteps(optax.adamw(RATE), 2).gradient_transformation(),
        "optax around": optax.chain(optax.clip_by_global_norm(0.1), gx.adamw(RATE)),
    }


def meshes(layout: str, devices: int, kind: str) -> Mesh | None:
    names = {
        "tensor": ("data", "model"),
        "zero1 with tensor": ("data", "model"),
        "zero1 over one of two": ("replica", "data"),
        "zero1 over both": ("replica", "data"),
    }.get(layout, ("data",))
    if len(names) == 2 and devices < 2:
        return None
    shape = (devices,) if len(names) == 1 else (devices // 2, 2)
    return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * len(names), devices=jax.devices()[:devices])


def placed(layout: str, mesh: Mesh, p: Any) -> Any:
    if layout == "fsdp":
        return jax.device_put(p, gx.sharding.fsdp(p, mesh, min_size=0))
    if "tensor" in layout:
        rules = [("kernel", (None, "model")), ("bias", ("model",)), ("", None)]
        return jax.device_put(p, gx.sharding.fsdp(p, mesh, rules=rules))
    return jax.device_put(p, NamedSharding(mesh, P()))


def wrapped(layout: str, tx: Any) -> Any:
    if not layout.startswith("zero1"):
        return tx
    axis = ("replica", "data") if layout == "zero1 over both" else "data"
    return gx.sharding.zero1(tx, axis, min_size=0, rules=[("kernel", 0), ("bias", None)] if "tensor" in layout else ())


def train(tx: Any, p: Any, state: Any, tokens: Any, told: list[str] | None = None) -> Any:
    def step(p: Any, state: Any, tokens: Any) -> Any:
        grads = jax.grad(lambda p: loss(whole(p), tokens))(p)
        updates, state = tx.update(grads, state, p)
        return gx.apply_updates(p, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    for i in range(4):
        before = len(COMPILED)
        p, state = compiled(p, state, tokens)
        if i and len(COMPILED) > before and told is not None:
            told.append(f"step {i + 1} compiled again")
    return p, state


def failures(name: str, tx: Any, expected: Any, layout: str, kind: str, devices: int) -> Iterator[str]:
    mesh = meshes(layout, devices, kind)
    if mesh is None:
        return
    told: list[str] = []
    with jax.set_mesh(mesh), warnings.catch_warnings():
        warnings.simplefilter("error")
        p = placed(layout, mesh, params())
        laid = jax.tree.map(lambda x: x.sharding, p)
        tx = wrapped(layout, tx)
        state = gx.sharding.init(tx, p)
        lies = [x.sharding for x in jax.tree.leaves(state)]
        tokens = jax.device_put(TOKENS, NamedSharding(mesh, P(tuple(n for n in mesh.axis_names if n != "model"))))
        p, state = train(tx, p, state, tokens, told)
    for key in expected:
        if not p[key].sharding.is_equivalent_to(laid[key], p[key].ndim):
            told.append(f"{key} lies as {p[key].sharding.spec}, not {laid[key].spec}")
        error = np.abs(np.asarray(p[key]) - expected[key]).max()
        if not error < 1e-11:
            told.append(f"{key} is {error:.1e} off")
    moved = [
        str(a.sharding.spec)
        for a, b in zip(jax.tree.leaves(state), lies, strict=True)
        if not a.sharding.is_equivalent_to(b, a.ndim)
    ]
    told += [f"state lies elsewhere: {moved}"] if moved else []
    yield from (f"{name}, {layout}, {kind}, {devices}: {one}" for one in told)


def in_shard_map() -> Iterator[str]:
    """Gradients that differ from device to device are summed, pieces stepped and put together, with the clip's help."""
    axes = ("replica", "data")
    mesh = jax.make_mesh((4, 2), axes, axis_types=(AxisType.Auto,) * 2)
    for check_vma, clipped in itertools.product((True, False), (True, False)):
        inner = gx.chain(gx.clip_by_global_norm(0.1, axis_name=axes), gx.adamw(RATE)) if clipped else gx.sgd(RATE)
        some = {key: x for key, x in params().items() if check_vma or key != "odd"}  # untracked, all count as pieces

        def mean(p: Any, tokens: jax.Array) -> jax.Array:
            return loss({"odd": jnp.zeros((1, 1)), **p}, tokens)

        tx = gx.sharding.zero1(inner, axes, min_size=0)
        specs = jax.tree.map(
            lambda x: x.spec,
            gx.sharding.state_sharding(tx, some, jax.tree.map(lambda _: NamedSharding(mesh, P()), some)),
        )

        def step(p: Any, state: Any, tokens: Any, tx: Any = tx, check_vma: bool = check_vma, mean: Any = mean) -> Any:
            varying = jax.lax.pcast(p, axes, to="varying") if check_vma else p
            grads = jax.tree.map(lambda g: g / 8, jax.grad(mean)(varying, tokens))
            updates, state = tx.update(grads, state, p)
            return gx.apply_updates(p, updates), state

        mapped = jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=(P(), specs, P(axes)), out_specs=(P(), specs), check_vma=check_vma)
        )
        p, state = some, gx.sharding.init(tx, jax.device_put(some, NamedSharding(mesh, P())))
        whole_tx = gx.chain(gx.clip_by_global_norm(0.1), gx.adamw(RATE)) if clipped else gx.sgd(RATE)
        q, whole_state = some, whole_tx.init(some)
        for _ in range(3):
            p, state = mapped(p, state, TOKENS)
            updates, whole_state = whole_tx.update(jax.grad(mean)(q, TOKENS), whole_state, q)
            q = gx.apply_updates(q, updates)
        for key in some:
            if not (error := np.abs(np.asarray(p[key]) - np.asarray(q[key])).max()) < 1e-11:
                yield f"shard_map, check_vma={check_vma}: {key} is {error:.1e} off"


SOME = ("clip", "adafactor", "accumulate", "optax adafactor")


def main(cases: str = "some") -> Iterator[str]:
    auto, explicit = KINDS
    layouts = itertools.cycle(zip(2 * LAYOUTS[3:], 2 * (auto, explicit) + 2 * (explicit, auto), strict=True))
    for name, tx in transformations().items():
        if cases == "some" and name not in SOME:
            continue
        fresh = params()
        expected = jax.device_get(train(tx, fresh, jax.jit(tx.init)(fresh), TOKENS)[0])
        if cases == "all":
            some = [(a, b, c) for a in LAYOUTS for b in KINDS for c in (1, 2, 4, 8)]
        else:
            some = [(*next(layouts), 8)]
        for case in some:
            try:
                yield from failures(name, tx, expected, *case)
            except Exception as error:  # the next case is to be run too
                yield f"{name}, {', '.join(map(str, case))}: {type(error).__name__}: {str(error)[:400]}"


if __name__ == "__main__":
    print(json.dumps([*in_shard_map(), *sent(), *held(), *exported(), *with_flax(*sys.argv[1:]), *main(*sys.argv[1:])]))
