"""Run by ``test_norm_sharding.py`` in a process of its own with eight CPU devices; prints what is wrong as JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
import traceback
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx
from gradxform.core.platform import by_platform
from gradxform.norm import normalize, rows, rows_tpu

MOMENTUM = 0.9
TOLERANCE = 1e-5
COUNTS = (2, 8)
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
SHAPE = (16, 3, 8)  # batch, position, channel
RUNNING: Any = (np.linspace(-0.5, 0.5, 8).astype(np.float32), np.linspace(0.5, 2, 8).astype(np.float32))

KERNEL = ("explicit mesh", "auto mesh", "arrays alone", "by hand, check_vma=True", "by hand, check_vma=False")

Arrays = dict[str, Any]


def data(offset: float = 0.0, seed: int = 0) -> Arrays:
    """An input, the gradient that reaches the output, scale and bias."""
    random = np.random.RandomState(seed)
    return {
        "x": np.float32(random.standard_normal(SHAPE) * np.linspace(0.5, 2, 8) + offset),
        "g": np.float32(random.standard_normal(SHAPE)),
        "scale": np.float32(random.uniform(0.5, 1.5, 8)),
        "bias": np.float32(random.standard_normal(8)),
    }


def mask_for(shards: int) -> np.ndarray:
    """Another count in every shard, and none at all in the second of them."""
    mask = np.random.RandomState(shards).uniform(size=(*SHAPE[:2], 1)) < np.linspace(0.3, 0.9, 16)[:, None, None]
    if shards > 1:
        mask[16 // shards : 2 * 16 // shards] = False
    return mask


def mesh_of(count: int, kind: AxisType) -> Mesh:
    return jax.make_mesh((count,), ("d",), axis_types=(kind,), devices=jax.devices()[:count])


# What is expected, in float64 NumPy.


def expected(
    x: Any,
    g: Any,
    scale: Any,
    bias: Any,
    mask: Any = None,
    *,
    axes: tuple[int, ...] = (0, 1),
    epsilon: float = 1e-5,
    centered: bool = True,
) -> Arrays:
    """The output, the statistics and the gradients of ``sum(y * g)`` of a norm over ``axes``.

    Without ``centered`` the mean counts as 0, as in an RMS norm.
    """
    x, g, scale, bias = (np.asarray(a, np.float64) for a in (x, g, scale, bias))
    m = np.broadcast_to(1.0 if mask is None else np.asarray(mask, np.float64), x.shape)
    n = m.sum(axes, keepdims=True)
    mean = (x * m).sum(axes, keepdims=True) / n if centered else np.zeros_like(n)
    var = (np.square(x - mean) * m).sum(axes, keepdims=True) / n
    r = 1 / np.sqrt(var + epsilon)
    xh = (x - mean) * r
    h = g * scale
    total = h.sum(axes, keepdims=True) if centered else 0
    dx = r * (h - m / n * (total + xh * (h * xh).sum(axes, keepdims=True)))
    lost = tuple(range(x.ndim - scale.ndim)) + tuple(
        x.ndim - scale.ndim + i for i, size in enumerate(scale.shape) if size == 1
    )
    keep = scale.shape
    return {
        "y": xh * scale + bias,
        "mean": mean,
        "var": var,
        "dx": dx,
        "dscale": (g * xh).sum(lost).reshape(keep),
        "dbias": g.sum(lost).reshape(keep),
    }


def expected_batch_norm(arrays: Arrays, mask: Any = None) -> Arrays:
    want = expected(**arrays, mask=mask)
    for name, old in zip(("mean", "var"), RUNNING, strict=True):
        want[name] = MOMENTUM * np.float64(old) + (1 - MOMENTUM) * want[name].reshape(-1)
    return want


def wrong(got: Arrays, want: Arrays, what: str = "", tolerance: float = TOLERANCE) -> list[str]:
    """The names of what differs by more than ``tolerance``, beside 1 or beside the largest entry."""
    found = []
    for name, value in want.items():
        value, seen = np.asarray(value, np.float64), np.asarray(got[name], np.float64)
        if seen.shape != value.shape:
            found.append(f"{what} {name}: shape {seen.shape} instead of {value.shape}")
            continue
        error = np.max(np.abs(seen - value)) / max(1.0, np.max(np.abs(value)))
        if not error <= tolerance:
            found.append(f"{what} {name}: off by {error:.1e}")
    return found


# Cross-device batch norm.


def batch_norm(x: Any, scale: Any, bias: Any, stats: Any, mask: Any = None, **options: Any) -> tuple[Any, Any]:
    return gx.norm.batch_norm(
        x, gx.norm.BatchStats(*stats), scale, bias, use_running_average=False, momentum=MOMENTUM, mask=mask, **options
    )


def plain_batch_norm(
    x: Any, scale: Any, bias: Any, stats: Any, mask: Any = None, *, axis_name: Any = None, axis_index_groups: Any = None
) -> tuple[Any, Any]:
    """The same in plain ``jnp``, for what JAX itself makes of its gradients inside ``shard_map``."""

    def total(values: Any) -> Any:
        values = jnp.sum(values, (0, 1))
        return values if axis_name is None else lax.psum(values, axis_name, axis_index_groups=axis_index_groups)

    m = jnp.broadcast_to(1.0 if mask is None else mask.astype(x.dtype), x.shape)
    n = total(m)
    mean = total(x * m) / n
    var = total(jnp.square(x - mean) * m) / n
    running = [
        MOMENTUM * old + (1 - MOMENTUM) * lax.stop_gradient(new) for old, new in zip(stats, (mean, var), strict=True)
    ]
    return (x - mean) * lax.rsqrt(var + 1e-5) * scale + bias, gx.norm.BatchStats(*running)


def with_gradients(norm: Callable[..., Any], x: Any, g: Any, scale: Any, bias: Any, stats: Any, mask: Any) -> Arrays:
    def loss(x: Any, scale: Any, bias: Any) -> Any:
        y, new = norm(x, scale, bias, stats, mask)
        return jnp.sum(y * g), (y, new)

    (dx, dscale, dbias), (y, new) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return {"y": y, "mean": new.mean, "var": new.var, "dx": dx, "dscale": dscale, "dbias": dbias}


def under_jit(kind: str, sharded: str) -> Iterator[str]:
    """One array over all devices, and nothing in the code that knows it."""
    x_spec = P("d") if sharded == "batch" else P(None, None, "d")
    row_spec = P() if sharded == "batch" else P("d")
    run = jax.jit(functools.partial(with_gradients, batch_norm))
    for count in COUNTS:
        mesh = mesh_of(count, KINDS[kind])
        place = lambda value, spec: jax.device_put(value, NamedSharding(mesh, spec))  # noqa: E731
        with jax.set_mesh(mesh):
            for offset, mask in ((0.0, mask_for(count)), (1e4, mask_for(count)), *[(1e4, None)] * (count == 4)):
                arrays = data(offset)
                placed = [place(arrays[name], x_spec if name in "xg" else row_spec) for name in arrays]
                stats = tuple(place(a, row_spec) for a in RUNNING)
                got = run(*placed, stats, None if mask is None else place(mask, P("d") if sharded == "batch" else P()))
                yield from wrong(got, expected_batch_norm(arrays, mask), f"{count} devices, mean {offset:g}:")
                for name, spec in (("y", x_spec), ("dx", x_spec), ("mean", row_spec)):
                    if kind == "explicit" and not got[name].sharding.is_equivalent_to(
                        NamedSharding(mesh, spec), got[name].ndim
                    ):
                        yield f"{count} devices: {name} is placed as {got[name].sharding.spec} and not as {spec}"


def in_shard_map(
    norm: Callable[..., Any], mesh: Mesh, *, check_vma: bool, inside: bool, masked: bool = True
) -> Callable[..., Arrays]:
    """Output, statistics and gradients of the sum over shards of ``sum(y * g)``, whoever takes them."""
    mask_spec = P("d") if masked else None
    if inside:

        def local(x: Any, g: Any, scale: Any, bias: Any, stats: Any, mask: Any) -> Arrays:
            got = with_gradients(norm, x, g, scale, bias, stats, mask)
            # Without types that vary, the gradients of what all devices share are those of the local loss.
            return got if check_vma else got | {name: got[name][None] for name in ("dscale", "dbias")}

        row = P() if check_vma else P("d")
        out = {"y": P("d"), "mean": P(), "var": P(), "dx": P("d"), "dscale": row, "dbias": row}
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(P("d"), P("d"), P(), P(), P(), mask_spec), out_specs=out, check_vma=check_vma
        )

        def run(*args: Any) -> Arrays:
            got = mapped(*args)
            return got if check_vma else got | {name: got[name].sum(0) for name in ("dscale", "dbias")}

        return jax.jit(run)
    mapped_norm = jax.shard_map(
        norm, mesh=mesh, in_specs=(P("d"), P(), P(), P(), mask_spec), out_specs=(P("d"), P()), check_vma=check_vma
    )
    return jax.jit(functools.partial(with_gradients, mapped_norm))


def by_hand(check_vma: bool, inside: bool) -> Iterator[str]:
    """``axis_name`` inside ``shard_map``: plain autodiff defines the gradients, the formula says that it is right."""
    for count in COUNTS:
        mesh = mesh_of(count, AxisType.Auto)
        make = functools.partial(in_shard_map, mesh=mesh, check_vma=check_vma, inside=inside)
        ours = make(functools.partial(batch_norm, axis_name="d"))
        arrays, mask = data(), mask_for(count)
        got = ours(*arrays.values(), RUNNING, mask)
        if count == 4:
            plain = make(functools.partial(plain_batch_norm, axis_name="d"))(*arrays.values(), RUNNING, mask)
            yield from wrong(plain, expected_batch_norm(arrays, mask), "plain autodiff:")
            yield from wrong(got, plain, "beside plain autodiff:")
        yield from wrong(got, expected_batch_norm(arrays, mask), f"{count} devices:")
        arrays = data(1e4)
        yield from wrong(
            ours(*arrays.values(), RUNNING, mask), expected_batch_norm(arrays, mask), f"{count} devices, mean 1e4:"
        )
    arrays = data(seed=2)
    ours = in_shard_map(
        functools.partial(batch_norm, axis_name="d"),
        mesh_of(4, AxisType.Auto),
        check_vma=check_vma,
        inside=inside,
        masked=False,
    )
    yield from wrong(ours(*arrays.values(), RUNNING, None), expected_batch_norm(arrays), "without a mask:")


def nothing_counted(check_vma: bool) -> Iterator[str]:
    """No shard has a value: the running statistics stay and normalize, in every shard."""
    ours = in_shard_map(
        functools.partial(batch_norm, axis_name="d"), mesh_of(2, AxisType.Auto), check_vma=check_vma, inside=False
    )
    arrays = data()
    got = ours(*arrays.values(), RUNNING, np.zeros((16, 3, 1), bool))
    mean, var = (np.float64(a) for a in RUNNING)
    factor = arrays["scale"] / np.sqrt(var + 1e-5)
    yield from wrong(
        got,
        {
            "mean": mean,
            "var": var,
            "y": (arrays["x"] - mean) * factor + arrays["bias"],
            "dx": arrays["g"] * factor,
            "dscale": (arrays["g"] * (arrays["x"] - mean) / np.sqrt(var + 1e-5)).sum((0, 1)),
            "dbias": np.float64(arrays["g"]).sum((0, 1)),
        },
    )


def over_two_axes() -> Iterator[str]:
    """Statistics over both axes of a mesh, and over one of them."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    arrays, mask = data(), mask_for(8)
    rows = P(("a", "b"))

    def run(axis_name: Any, stats_spec: Any) -> Arrays:
        norm = functools.partial(batch_norm, axis_name=axis_name)
        mapped = jax.shard_map(norm, mesh=mesh, in_specs=(rows, P(), P(), P(), rows), out_specs=(rows, stats_spec))
        return jax.jit(functools.partial(with_gradients, mapped))(*arrays.values(), RUNNING, mask)

    yield from wrong(run(("a", "b"), P()), expected_batch_norm(arrays, mask), "both:")
    got = run("b", P("a"))
    halves = [
        expected_batch_norm({k: v[rows] if k in "xg" else v for k, v in arrays.items()}, mask[rows])
        for rows in (slice(8), slice(8, 16))
    ]
    join = {
        name: (sum if name in ("dscale", "dbias") else np.concatenate)([half[name] for half in halves])
        for name in halves[0]
    }
    yield from wrong(got, join, "one:")


def partly_by_hand(kind: str) -> Iterator[str]:
    """One axis of a mesh by name in ``shard_map``, and channels over another one that is left to the compiler."""
    mesh = jax.make_mesh((2, 4), ("d", "m"), axis_types=(KINDS[kind],) * 2)
    rows, channels = NamedSharding(mesh, P("d", None, "m")), NamedSharding(mesh, P("m"))
    with jax.set_mesh(mesh):
        for masked in (True, False):
            mapped = jax.shard_map(
                functools.partial(batch_norm, axis_name="d"),
                mesh=mesh,
                axis_names={"d"},
                in_specs=(P("d"), P(), P(), P(), P("d") if masked else None),
                out_specs=(P("d"), P()),
            )
            arrays, mask = data(), mask_for(2) if masked else None
            placed = jax.device_put((*arrays.values(), RUNNING), (rows, rows, *[channels] * 2, (channels,) * 2))
            placed_mask = None if mask is None else jax.device_put(mask, NamedSharding(mesh, P("d")))
            got = jax.jit(functools.partial(with_gradients, mapped))(*placed, placed_mask)
            yield from wrong(got, expected_batch_norm(arrays, mask), "masked:" if masked else "without a mask:")


def grouped(inside: bool) -> Iterator[str]:
    """``axis_index_groups``: two groups of devices with statistics of their own."""
    groups = [[0, 2], [1, 3]]
    mesh = mesh_of(4, AxisType.Auto)
    arrays, mask = data(), mask_for(4)
    norm = functools.partial(batch_norm, axis_name="d", axis_index_groups=groups)
    if inside:

        def local(*args: Any) -> Arrays:
            got = with_gradients(norm, *args)
            return {name: value if name in ("y", "dx") else value[None] for name, value in got.items()}

        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(P("d"), P("d"), P(), P(), P(), P("d")), out_specs=P("d"), check_vma=False
        )
        got = jax.jit(mapped)(*arrays.values(), RUNNING, mask)
        got |= {name: got[name].sum(0) for name in ("dscale", "dbias")}
    else:

        def forward(*args: Any) -> Any:
            y, new = norm(*args)
            return y, jax.tree.map(lambda a: a[None], new)

        mapped = jax.shard_map(
            forward, mesh=mesh, in_specs=(P("d"), P(), P(), P(), P("d")), out_specs=P("d"), check_vma=False
        )
        got = jax.jit(functools.partial(with_gradients, mapped))(*arrays.values(), RUNNING, mask)
    want: Arrays = (
        {name: np.zeros(SHAPE) for name in ("y", "dx")}
        | {name: np.zeros((4, 8)) for name in ("mean", "var")}
        | {name: np.zeros(8) for name in ("dscale", "dbias")}
    )
    for group in groups:
        rows = np.concatenate([np.arange(4 * i, 4 * i + 4) for i in group])
        part = expected_batch_norm({k: v[rows] if k in "xg" else v for k, v in arrays.items()}, mask[rows])
        for name, value in part.items():
            if name in ("y", "dx"):
                want[name][rows] = value
            elif name in ("mean", "var"):
                want[name][group] = value
            else:
                want[name] += value
    yield from wrong(got, want)


def in_vmap() -> Iterator[str]:
    """``axis_name`` of a ``vmap``, the statistics shared; gradients taken outside and inside."""
    arrays = data()
    split = {k: v.reshape(4, 4, *SHAPE[1:]) if k in "xg" else v for k, v in arrays.items()}
    norm = jax.vmap(
        functools.partial(batch_norm, axis_name="d"),
        in_axes=(0, None, None, None, 0),
        out_axes=(0, None),
        axis_name="d",
    )
    for offset in (0.0, 1e4):
        split["x"] = data(offset)["x"].reshape(split["x"].shape)
        mask = mask_for(4)
        got = jax.jit(functools.partial(with_gradients, norm))(*split.values(), RUNNING, mask.reshape(4, 4, 3, 1))
        got |= {name: got[name].reshape(SHAPE) for name in ("y", "dx")}
        yield from wrong(got, expected_batch_norm(arrays | data(offset), mask), f"mean {offset:g}:")
    # Inside, the loss is that of one member, and so are the gradients of what they share.
    member = functools.partial(with_gradients, functools.partial(batch_norm, axis_name="d"))
    plain = functools.partial(with_gradients, functools.partial(plain_batch_norm, axis_name="d"))
    split["x"] = arrays["x"].reshape(split["x"].shape)
    args = (*split.values(), RUNNING, mask_for(4).reshape(4, 4, 3, 1))
    got, want = (
        jax.jit(jax.vmap(f, in_axes=(0, 0, None, None, None, 0), axis_name="d"))(*args) for f in (member, plain)
    )
    yield from wrong(got, want, "inside, beside plain autodiff:")


def running_options(check_vma: bool) -> Iterator[str]:
    """The other running statistics: unbiased, bias-corrected, and pooled over calls."""
    mesh = mesh_of(4, AxisType.Auto)
    arrays, mask = data(), mask_for(4)
    want = expected(**arrays, mask=mask)
    n = float(mask.sum())

    def run(stats: Any, calls: int = 1, **options: Any) -> Any:
        @jax.jit
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("d"), P("d"), P()), out_specs=P(), check_vma=check_vma)
        def update(x: Any, mask: Any, stats: Any) -> Any:
            for part in range(calls):
                size = x.shape[0] // calls
                rows = slice(part * size, (part + 1) * size)
                _, stats = gx.norm.batch_norm(
                    x[rows],
                    stats,
                    use_running_average=False,
                    momentum=MOMENTUM,
                    mask=mask[rows],
                    axis_name="d",
                    **options,
                )
            return stats

        return update(arrays["x"], mask, stats)

    mean, var = want["mean"].reshape(-1), want["var"].reshape(-1)
    new = run(gx.norm.init_batch_stats(8), running_var="unbiased")
    yield from wrong(new._asdict(), {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var * n / (n - 1)}, "unbiased:")
    new = run(gx.norm.init_batch_stats(8, bias_corrected=True))
    yield from wrong(new._asdict(), {"mean": mean, "var": var}, "bias-corrected:")
    new = run(gx.norm.init_batch_stats(8, update_every=2), calls=2, update_every=2)
    yield from wrong(new._asdict(), {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var}, "every second call:")


# The other norms, with what they reduce over spread over devices.

FEATURES = {"x": 16, "groups": 4}


def feature_data(offset: float = 0.0) -> Arrays:
    random = np.random.RandomState(5)
    return {
        "x": np.float32(random.standard_normal((4, 8, 16)) + offset),
        "g": np.float32(random.standard_normal((4, 8, 16))),
        "scale": np.float32(random.uniform(0.5, 1.5, 16)),
        "bias": np.float32(random.standard_normal(16)),
    }


def feature_mask(name: str) -> np.ndarray:
    """A mask that counts nothing in the second of four shards, of channels or positions, and some of each mean."""
    mask = np.random.RandomState(6).uniform(size=(4, 8, 16)) < 0.8
    if name in ("layer_norm", "rms_norm", "group_norm 1"):
        mask[:, :, 4:8] = False
    else:
        mask[:, 2:4] = False
    return mask


def expected_group_norm(x: Any, g: Any, scale: Any, bias: Any, mask: Any, groups: int) -> Arrays:
    split = lambda a: None if a is None else a.reshape(*a.shape[:-1], groups, -1)  # noqa: E731
    want = expected(*map(split, (x, g, scale, bias, mask)), axes=(1, 3), epsilon=1e-6)
    whole = {name: want[name].reshape(x.shape) for name in ("y", "dx")}
    return whole | {name: want[name].reshape(-1) for name in ("dscale", "dbias")}


def picked(want: Arrays) -> Arrays:
    return {name: want[name] for name in ("y", "dx", "dscale", "dbias")}


def expected_layer_norm(x: Any, g: Any, scale: Any, bias: Any, mask: Any) -> Arrays:
    return picked(expected(x, g, scale, bias, mask, axes=(2,), epsilon=1e-6))


def expected_rms_norm(x: Any, g: Any, scale: Any, bias: Any, mask: Any) -> Arrays:
    want = expected(x, g, scale, np.zeros_like(scale), mask, axes=(2,), epsilon=1e-6, centered=False)
    return picked(want | {"dbias": np.zeros(16)})


def expected_instance_norm(x: Any, g: Any, scale: Any, bias: Any, mask: Any) -> Arrays:
    return picked(expected(x, g, scale, bias, mask, axes=(1,), epsilon=1e-6))


Norm = tuple[Callable[..., Any], Callable[..., Arrays]]
NORMS: dict[str, Norm] = {
    "layer_norm": (lambda x, s, b, m, **k: gx.norm.layer_norm(x, s, b, mask=m, **k), expected_layer_norm),
    "rms_norm": (lambda x, s, b, m, **k: gx.norm.rms_norm(x, s, mask=m, **k), expected_rms_norm),
    "instance_norm": (lambda x, s, b, m, **k: gx.norm.instance_norm(x, s, b, mask=m, **k), expected_instance_norm),
} | {
    f"group_norm {groups}": (
        lambda x, s, b, m, groups=groups, **k: gx.norm.group_norm(x, s, b, num_groups=groups, mask=m, **k),
        functools.partial(expected_group_norm, groups=groups),
    )
    for groups in (1, 2, 4, 8)
}


def stateless(norm: Callable[..., Any], x: Any, g: Any, scale: Any, bias: Any, mask: Any = None) -> Arrays:
    def loss(x: Any, scale: Any, bias: Any) -> Any:
        y = norm(x, scale, bias, mask)
        return jnp.sum(y * g), y

    (dx, dscale, dbias), y = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return {"y": y, "dx": dx, "dscale": dscale, "dbias": dbias}


def on_a_mesh(name: str, kind: str, axis: int) -> Iterator[str]:
    """A norm under ``jit`` with one axis of its input over four devices; scale and bias as the channels, or whole."""
    norm, oracle = NORMS[name]
    mesh = mesh_of(4, KINDS[kind])
    spec = P(*["d" if i == axis else None for i in range(3)])
    with jax.set_mesh(mesh):
        # Laid out as the channels, or whole on every device.
        for row in [P("d" if axis == 2 else None), *[P()] * (axis == 2 and name in ("layer_norm", "group_norm 2"))]:
            run = jax.jit(functools.partial(stateless, norm))
            for offset, mask in ((0.0, None), (1e3, None), *[(1e3, feature_mask(name))] * (row != P())):
                arrays = feature_data(offset) | ({} if mask is None else {"mask": mask})
                placed = [
                    jax.device_put(value, NamedSharding(mesh, row if key in ("scale", "bias") else spec))
                    for key, value in arrays.items()
                ]
                got = run(*placed)
                yield from wrong(got, oracle(**{"mask": None} | arrays), f"scale {row}, mean {offset:g}:")
                for key in ("y", "dx"):
                    if kind == "explicit" and not got[key].sharding.is_equivalent_to(placed[0].sharding, 3):
                        yield f"scale {row}: {key} is placed as {got[key].sharding.spec}"


def with_axis_name(name: str, axis: int, check_vma: bool, inside: bool) -> Iterator[str]:
    """A norm inside ``shard_map`` with an axis that it reduces over four devices, or the batch, which it does not."""
    norm, oracle = NORMS[name]
    norm = functools.partial(norm, axis_name="d" if axis else None)
    mesh = mesh_of(4, AxisType.Auto)
    spec, row = P(*["d" if i == axis else None for i in range(3)]), P("d") if axis == 2 else P()
    stacked = not check_vma and axis != 2

    def local(*args: Any) -> Arrays:
        got = stateless(norm, *args)
        return got | {key: got[key][None] for key in ("dscale", "dbias")} if stacked else got

    for mask in (feature_mask(name), *[None] * (not inside)):
        arrays = feature_data(1e3) | {"mask": mask}
        mask_spec = None if mask is None else spec
        if inside:
            out = P("d") if stacked else row
            mapped = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(spec, spec, row, row, mask_spec),
                check_vma=check_vma,
                out_specs={"y": spec, "dx": spec, "dscale": out, "dbias": out},
            )
            got = jax.jit(mapped)(*arrays.values())
            got |= {key: got[key].sum(0) for key in ("dscale", "dbias")} if stacked else {}
        else:
            mapped = jax.shard_map(
                norm, mesh=mesh, in_specs=(spec, row, row, mask_spec), out_specs=spec, check_vma=check_vma
            )
            got = jax.jit(functools.partial(stateless, mapped))(*arrays.values())
        yield from wrong(got, oracle(**arrays), "without a mask:" if mask is None else "masked:")


# Every kernel on sharded inputs beside one device.


def kernels() -> dict[str, Callable[..., Any]]:
    stats = gx.norm.BatchStats(*RUNNING)
    return {
        "batch_norm": lambda x, s, b: gx.norm.batch_norm(x, stats, s, b, use_running_average=False),
        "batch_norm, evaluating": lambda x, s, b: gx.norm.batch_norm(x, stats, s, b, use_running_average=True),
        "batch_renorm": lambda x, s, b: gx.norm.batch_renorm(x, stats, s, b, use_running_average=False),
        "layer_norm": lambda x, s, b: gx.norm.layer_norm(x, s, b),
        "rms_norm": lambda x, s, b: gx.norm.rms_norm(x, s),
        "group_norm": lambda x, s, b: gx.norm.group_norm(x, s, b, num_groups=2),
        "instance_norm": lambda x, s, b: gx.norm.instance_norm(x, s, b),
        "weight_standardize": lambda x, s, b: gx.norm.weight_standardize(x, s),
    }


def beside_one_device(name: str, kind: str) -> Iterator[str]:
    kernel = kernels()[name]
    arrays = data(seed=4)

    def run(x: Any, g: Any, scale: Any, bias: Any) -> Any:
        def loss(x: Any, scale: Any, bias: Any) -> Any:
            out = kernel(x, scale, bias)
            return jnp.sum((out[0] if isinstance(out, tuple) else out) * g), out

        return jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)

    named = lambda out: {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(out))}  # noqa: E731
    want = named(jax.jit(run)(*arrays.values()))
    mesh = mesh_of(8, KINDS[kind])
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(value, NamedSharding(mesh, P("d") if key in "xg" else P())) for key, value in arrays.items()
        ]
        yield from wrong(named(jax.jit(run)(*placed)), want)


# Where the kernel for rows of a TPU is called: each device has its own rows, or the portable form is taken.


def rows_by_kernel(where: str) -> Iterator[str]:
    """On a mesh by its types or by hand the kernel is called, on pieces; where XLA divides, it is not.

    In its place there is the formula, since JAX interprets no kernel where it tracks what differs between devices.
    """
    called: list[tuple[int, ...]] = []

    def normalized(centered: bool, dtype: Any, x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
        called.append(x.shape)
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * scale + bias

    def pulled_back(centered: bool, biased: bool, x: Any, scale: Any, epsilon: Any, g: Any) -> Any:
        return jax.vjp(lambda x, s, b: normalized(True, x.dtype, x, s, b, epsilon), x, scale, 0 * scale)[1](g)

    random = np.random.RandomState(0)
    x, g = np.float32(random.standard_normal((2, 16, 8, 128)) + [[[[3e3]]], [[[0]]]])
    arrays = {
        "x": x,
        "g": g,
        "scale": np.float32(random.uniform(0.5, 1.5, 128)),
        "bias": np.float32(random.standard_normal(128)),
    }
    explicit = where.startswith("explicit")
    mesh = mesh_of(8, AxisType.Explicit if explicit else AxisType.Auto)
    norm = functools.partial(stateless, lambda x, s, b, m: gx.norm.layer_norm(x, s, b))
    if "by hand" in where:
        vma = where.endswith("True")
        inner = jax.shard_map(
            lambda x, s, b: gx.norm.layer_norm(x, s, b),
            mesh=mesh,
            in_specs=(P("d"), P(), P()),
            out_specs=P("d"),
            check_vma=vma,
        )
        norm = functools.partial(stateless, lambda x, s, b, m: inner(x, s, b))
    placed = [
        jax.device_put(value, NamedSharding(mesh, P("d") if value.ndim == 3 else P())) for value in arrays.values()
    ]
    patches = {"by_platform": lambda *args, tpu: by_platform(*args, cpu=tpu)}
    kernels = {"normalized": normalized, "pulled_back": pulled_back}
    with unittest.mock.patch.multiple(rows, **patches), unittest.mock.patch.multiple(rows_tpu, **kernels):
        normalize.standardize.clear_cache()
        if where.startswith("arrays"):
            # Nothing that is traced knows of the mesh.
            shardings = tuple(one.sharding for one in placed)
            run = jax.jit(norm, in_shardings=shardings).lower(*arrays.values()).compile()
        else:
            run = jax.jit(norm)
        with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
            got = run(*placed)
        normalize.standardize.clear_cache()
    yield from wrong(got, picked(expected(**arrays, axes=(2,), epsilon=1e-6)))
    pieces = [(2, 8, 128)] * 2 if explicit or "by hand" in where else []
    if called != pieces:
        yield f"called with {called} instead of {pieces}"


Check = Callable[[], Iterator[str]]


def checks() -> dict[str, Check]:
    every: dict[str, Check] = {}
    for kind in KINDS:
        for sharded in ("batch", "channels"):
            every[f"batch norm, {kind} mesh, sharded {sharded}"] = functools.partial(under_jit, kind, sharded)
        for name in NORMS:
            every[f"{name}, {kind} mesh, sharded channels"] = functools.partial(on_a_mesh, name, kind, 2)
        for name in ("instance_norm", "group_norm 2"):
            every[f"{name}, {kind} mesh, sharded positions"] = functools.partial(on_a_mesh, name, kind, 1)
        for name in kernels():
            every[f"{name}, {kind} mesh, beside one device"] = functools.partial(beside_one_device, name, kind)
    for check_vma in (True, False):
        for inside in (True, False):
            where = f"check_vma={check_vma}, gradients {'inside' if inside else 'outside'}"
            every[f"batch norm, {where}"] = functools.partial(by_hand, check_vma, inside)
            for name, axis in (
                ("layer_norm", 2),
                ("rms_norm", 2),
                ("group_norm 1", 2),
                ("group_norm 4", 1),
                ("instance_norm", 1),
                ("layer_norm", 0),
                ("rms_norm", 0),
                ("group_norm 2", 0),
            ):
                every[f"{name}, axis {axis}, {where}"] = functools.partial(
                    with_axis_name, name, axis, check_vma, inside
                )
        every[f"nothing counted, check_vma={check_vma}"] = functools.partial(nothing_counted, check_vma)
        every[f"running statistics, check_vma={check_vma}"] = functools.partial(running_options, check_vma)
    for kind in KINDS:
        every[f"partly by hand, {kind} mesh"] = functools.partial(partly_by_hand, kind)
    for inside in (True, False):
        every[f"groups, gradients {'inside' if inside else 'outside'}"] = functools.partial(grouped, inside)
    for where in KERNEL:
        every[f"rows by a kernel, {where}"] = functools.partial(rows_by_kernel, where)
    return every | {"two axes": over_two_axes, "vmap": in_vmap}


def run_all(names: list[str]) -> dict[str, list[str]]:
    found, every = {}, checks()
    for name in names:
        start = time.perf_counter()
        try:
            found[name] = list(every[name]())
        except Exception:  # one check that fails says nothing about the others
            found[name] = [traceback.format_exc(limit=-4)]
        print(f"{time.perf_counter() - start:6.1f} s  {name}", file=sys.stderr)
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    names = list(checks())
    found = run_all(sys.argv[1:] or names)
    print(json.dumps({"devices": jax.device_count(), "names": names, "checks": found}))
