"""Bricks that read whole leaves, on pieces of them inside ``shard_map``: used by ``sharded_program.py``."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

PARAMS = {"w": jnp.cos(jnp.arange(48.0)).reshape(8, 6), "b": jnp.arange(1.0, 4.0)}
GRADS = {"w": jnp.sin(2 * jnp.arange(48.0)).reshape(8, 6) * 3, "b": jnp.ones(3)}
SPECS = {"w": P("x"), "b": P()}

# Each in terms of ``axis_name``, with the name its message has.
BRICKS: dict[str, Callable[[Any], gx.Transformation]] = {
    "clip_by_global_norm": lambda axis: gx.clip_by_global_norm(1.0, axis_name=axis),
    "clip_by_block_rms": lambda axis: gx.clip_by_block_rms(0.5, axis_name=axis),
    "adaptive_grad_clip": lambda axis: gx.adaptive_grad_clip(0.1, axis_name=axis),
    "centralize": lambda axis: gx.centralize(-1, axis_name=axis),
    "scale_by_param_block_rms": lambda axis: gx.scale_by_param_block_rms(axis_name=axis),
    "scale_by_trust_ratio": lambda axis: gx.scale_by_trust_ratio(axis_name=axis),
    "scale_by_factored_rms": lambda axis: gx.adafactor(0.1, 2, factored_axes="last", axis_name=axis),
    "record_norms": lambda axis: gx.chain(gx.record_norms(axis_name=axis), gx.sgd(0.5)),
    "skip_nonfinite": lambda axis: gx.skip_nonfinite(gx.adam(0.1), 3, axis_name=axis),
    "dynamic_loss_scale": lambda axis: gx.precision.dynamic_loss_scale(gx.adam(0.1), 2.0, axis_name=axis),
    "static_loss_scale": lambda axis: gx.precision.static_loss_scale(gx.adam(0.1), 2.0, axis_name=axis),
    "lamb": lambda axis: gx.lamb(0.1, axis_name=axis),
    "lars": lambda axis: gx.lars(0.1, axis_name=axis),
    "muon": lambda axis: gx.muon(0.1, axis_name=axis),
}
NORMS = ("clip_by_global_norm", "record_norms")
GUARDS = ("skip_nonfinite", "dynamic_loss_scale", "static_loss_scale")


def two_steps(tx: gx.Transformation, params: Any, grads: Any) -> Any:
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        params = gx.apply_updates(params, updates)
    return params, gx.metrics(state)


def on_pieces(tx: gx.Transformation, params: Any, grads: Any, *, check_vma: bool = True) -> Any:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    specs = {name: SPECS[name] for name in params}
    # That what is whole leaves as P() is itself a check: it may not differ from device to device.
    mapped = jax.shard_map(
        lambda p, g: two_steps(tx, p, g),
        mesh=mesh,
        in_specs=(specs, specs),
        out_specs=(specs, P()),
        check_vma=check_vma,
    )
    placed = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in params.items()}
    return jax.jit(mapped)(placed, grads)


def together() -> Iterator[str]:
    """With ``axis_name`` pieces give what the whole gives, beside leaves that are whole.

    Under ``check_vma=False`` JAX does not tell these: a norm of all would count them on each device, a flag may, and
    what works leaf by leaf is parted.
    """
    for (name, brick), check_vma in itertools.product(BRICKS.items(), (True, False)):
        tx, keys = brick({"x": 0}), ("w", "b")
        if not check_vma and name in NORMS:
            keys = ("w",)
        elif not check_vma and name not in GUARDS:
            tx = gx.partition({"piece": tx, "whole": brick(None)}, {"w": "piece", "b": "whole"})
        params, grads = ({key: tree[key] for key in keys} for tree in (PARAMS, GRADS))
        expected = jax.jit(two_steps)(brick(None), params, grads)
        found = on_pieces(tx, params, grads, check_vma=check_vma)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            if not np.allclose(a, b, rtol=1e-5, atol=1e-6):
                yield f"{name}, check_vma={check_vma}: {a} is not {b}"


def of_explicit_type() -> Iterator[str]:
    """On a mesh of Explicit axes a matrix that is divided by its type gives what the whole gives, and stays divided."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    params, grads = ({"w": tree["w"]} for tree in (PARAMS, GRADS))
    whole = two_steps(BRICKS["muon"](None), params, grads)[0]["w"]
    with jax.set_mesh(mesh):
        put = lambda tree: {"w": jax.device_put(tree["w"], NamedSharding(mesh, P("x")))}  # noqa: E731
        moved = jax.jit(lambda p, g: two_steps(BRICKS["muon"](None), p, g))(put(params), put(grads))[0]["w"]
    if moved.sharding.spec[0] != "x" or not np.allclose(whole, moved, rtol=1e-5, atol=1e-6):
        yield f"muon, Explicit: {moved} of {moved.sharding} is not {whole}"


def refused() -> Iterator[str]:
    """Without it, pieces are refused by the name of the brick, the path and the axis."""
    for name, brick in BRICKS.items():
        try:
            on_pieces(brick(None), PARAMS, GRADS)
            yield f"{name}: nothing was raised"
        except gx.ShardingError as error:
            expected = {"lamb": "scale_by_trust_ratio", "lars": "scale_by_trust_ratio", "muon": "scale_by_muon"}.get(
                name, name
            )
            if not str(error).startswith(f"{expected}: ") or "along 'x' at 'w'" not in str(error):
                yield f"{name}: {error}"
    for name in ("adaptive_grad_clip", "centralize", "scale_by_factored_rms", "muon"):
        try:
            on_pieces(BRICKS[name]("x"), PARAMS, GRADS)
            yield f"{name}: nothing was raised"
        except gx.ShardingError as error:
            if "such as {'x': 0}" not in str(error):
                yield f"{name}: {error}"


def by_itself() -> Iterator[str]:
    """``axis_name=()`` is each device by itself: a member of a population on each."""
    params, grads = {"w": PARAMS["w"]}, {"w": GRADS["w"]}
    for name, brick in BRICKS.items():
        if name in ("record_norms", *GUARDS):
            continue  # its metrics differ from device to device, and leave as such
        whole = [
            two_steps(brick(None), {"w": params["w"][i : i + 2]}, {"w": grads["w"][i : i + 2]})[0]["w"]
            for i in range(0, 8, 2)
        ]
        pieces = on_pieces(brick(()), params, grads)[0]["w"]
        if not np.allclose(np.concatenate(whole), pieces, rtol=1e-5, atol=1e-6):
            yield name


def noise() -> Iterator[str]:
    """Each piece has noise of its own, a whole leaf the same everywhere."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for check_vma, keys in ((True, ("w", "b")), (False, ("w",))):
        some, tx = {key: zeros[key] for key in keys}, gx.add_noise(1.0, 0.5, key=0, axis_name="x")
        moved = np.asarray(on_pieces(tx, some, some, check_vma=check_vma)[0]["w"])
        if len({row.tobytes() for row in moved}) != 8:
            yield f"check_vma={check_vma}: rows of two pieces have the same noise"


def one_bad_piece() -> Iterator[str]:
    """NaN on one device: none makes the step, or with ``axis_name=()`` that one alone does not."""
    bad = GRADS | {"w": GRADS["w"].at[5, 2].set(jnp.nan)}
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    for check_vma in (True, False):
        clipped = gx.chain(gx.clip_by_global_norm(1.0, axis_name="x"), gx.sgd(0.1, 0.9))
        for name, inner in {"adam": gx.adam(0.1), "clip": clipped}.items():
            for tx in (
                gx.skip_nonfinite(inner, 3, axis_name="x"),
                gx.precision.dynamic_loss_scale(inner, 8.0, axis_name="x"),
            ):
                params, told = on_pieces(tx, PARAMS, bad, check_vma=check_vma)
                same = all(
                    np.asarray(a).tobytes() == np.asarray(b).tobytes()
                    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True)
                )
                if not same or int(told["skipped_steps"]) != 2 or told.get("loss_scale", 2.0) != 2.0:
                    yield f"{tx.name} of {name}, check_vma={check_vma}: {params}, {told}"
    alone = gx.skip_nonfinite(gx.sgd(0.1), 3, axis_name=())

    def step(p: Any, g: Any) -> Any:
        updates, state = alone.update(g, alone.init(p), p)
        return updates, state.skipped_steps[None]

    updates, skips = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P("x"), out_specs=(P("x"), P("x"))))(
        PARAMS["w"], bad["w"]
    )
    if skips.tolist() != [0, 0, 1, 0] or np.asarray(updates[4:6]).any() or not np.asarray(updates[:4]).any():
        yield f"alone: {skips}, {updates}"


def past_the_limit() -> Iterator[str]:
    """A program on a mesh never raises: the state tells the host; where a mesh is known it may not be asked to."""
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
        params = jax.device_put({"w": PARAMS["w"]}, NamedSharding(mesh, P("x")))
        bad = jax.device_put({"w": GRADS["w"].at[5, 2].set(jnp.nan)}, NamedSharding(mesh, P("x")))
        tx = gx.skip_nonfinite(gx.adam(0.1), 0)
        updates, state = jax.jit(tx.update)(bad, jax.jit(tx.init)(params), params)
        if np.asarray(updates["w"]).any():
            yield f"{kind}: moved"
        scaled = gx.precision.dynamic_loss_scale(gx.adam(0.1), 8.0)
        updates, after = jax.jit(scaled.update)(bad, jax.jit(scaled.init)(params), params)
        if np.asarray(updates["w"]).any() or gx.precision.loss_scale(after) != 4:
            yield f"{kind}: a scale of {gx.precision.loss_scale(after)}"
        try:
            gx.check_finite(state)
            yield f"{kind}: nothing was raised"
        except gx.NonfiniteError:
            pass
        loud = gx.skip_nonfinite(gx.adam(0.1), 0, raise_in_jit=True)
        with jax.set_mesh(mesh) if kind == AxisType.Auto else contextlib.nullcontext():
            try:
                jax.jit(loud.update)(bad, jax.jit(tx.init)(params), params)
                yield f"{kind}: raise_in_jit was not refused"
            except ValueError as error:
                if "on a mesh of 8" not in str(error):
                    yield f"{kind}: {error}"
    try:
        on_pieces(gx.skip_nonfinite(gx.adam(0.1), 0, raise_in_jit=True, axis_name="x"), PARAMS, GRADS)
        yield "shard_map: raise_in_jit was not refused"
    except ValueError as error:
        if "on a mesh of 4" not in str(error):
            yield f"shard_map: {error}"


def all_pieces() -> dict[str, list[str]]:
    """What is wrong, by check."""
    checks = (together, of_explicit_type, refused, by_itself, noise, one_bad_piece, past_the_limit)
    return {f"pieces {check.__name__}": list(check()) for check in checks}
