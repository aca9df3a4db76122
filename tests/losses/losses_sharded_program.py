"""Run by ``test_losses_sharding.py`` in a process of its own with eight CPU devices; prints what is wrong as JSON."""

from __future__ import annotations

import functools
import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import loss_oracles as oracle
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx
from gradxform.losses import pairs

TOLERANCE = 1e-5
# How many devices each way is tried on: nt_xent on all of them, the others in turn, since each takes a compilation.
COUNTS = {
    "auto": (8,),
    "explicit": (4,),
    (True, True): (8,),
    (True, False): (2,),
    (False, True): (4,),
    (False, False): (8,),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
N, D, K, BLOCK = 24, 5, 7, 8
FACTOR = 3.0

Arrays = dict[str, Any]
# What is compiled here runs once on a few numbers.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def data() -> Arrays:
    """Two views, labels, a factor, and negatives that every device has."""
    random = np.random.RandomState(3)
    x = random.standard_normal((N, D)) * random.uniform(0.5, 2, (N, 1))
    return {
        "x": np.float32(x),
        "y": np.float32(x + 0.6 * random.standard_normal((N, D))),
        "labels": random.randint(-2, 5, N),
        "factor": np.float32(FACTOR),
        "negatives": np.float32(random.standard_normal((K, D))),
    }


def counts_for(name: str, way: Any) -> tuple[int, ...]:
    return (1, 2, 4, 8) if name == "nt_xent" else COUNTS[way]


Loss = Callable[..., Any]
losses = gx.losses
LOSSES: dict[str, Loss] = {
    "nt_xent": lambda x, y, labels, factor, axis_name=None: losses.nt_xent(
        x, y, 1 / factor, axis_name=axis_name, block_size=BLOCK
    ),
    "info_nce": lambda x, y, labels, factor, axis_name=None: losses.info_nce(
        x, y, 1 / factor, axis_name=axis_name, block_size=BLOCK
    ),
    "clip_loss": lambda x, y, labels, factor, axis_name=None: losses.clip_loss(
        x, y, factor, axis_name=axis_name, block_size=BLOCK
    ),
    "sup_con": lambda x, y, labels, factor, axis_name=None: losses.sup_con(
        x, labels, 1 / factor, axis_name=axis_name, block_size=BLOCK
    ),
    "siglip": lambda x, y, labels, factor, axis_name=None: losses.siglip(
        x, y, factor, -factor, axis_name=axis_name, block_size=BLOCK
    ),
    "barlow_twins": lambda x, y, labels, factor, axis_name=None: losses.barlow_twins(
        x, y, off_diagonal=factor, axis_name=axis_name
    ),
    "vicreg": lambda x, y, labels, factor, axis_name=None: losses.vicreg(x, y, covariance=factor, axis_name=axis_name),
}


@functools.cache
def expected() -> dict[str, Arrays]:
    """The losses of the whole batch and their gradients, in float64 NumPy."""
    x, y, labels, _, _ = data().values()
    temperature = 1 / FACTOR
    # The oracles have the gradient of the temperature, and the factor is one over it.
    by_factor = lambda result: (*result.gradients[:-1], -(temperature**2) * result.gradients[-1])  # noqa: E731
    found = {}
    for name, result in (
        ("nt_xent", oracle.nt_xent(x, y, temperature)),
        ("info_nce", oracle.info_nce(x, y, temperature)),
    ):
        found[name] = (result.total, *by_factor(result))
    result = oracle.clip(x, y, FACTOR)
    found["clip_loss"] = (result.total, *result.gradients)
    result = oracle.sup_con(x, labels, temperature)
    dx, dfactor = by_factor(result)
    found["sup_con"] = (result.total, dx, np.zeros((N, D)), dfactor)
    for name, f in (
        ("siglip", lambda x, y, factor: oracle.siglip(x, y, factor, -factor)),
        ("barlow_twins", lambda x, y, factor: oracle.barlow_twins(x, y, off_diagonal=factor)),
        ("vicreg", lambda x, y, factor: oracle.vicreg(x, y, covariance=factor)),
    ):
        found[name] = (f(x, y, FACTOR), *oracle.differences(f, (x, y, FACTOR)))
    return {name: dict(zip(("loss", "dx", "dy", "dfactor"), values, strict=True)) for name, values in found.items()}


def wrong(got: Arrays, want: Arrays, what: str = "", times: float = 1.0) -> list[str]:
    """The names of what differs from ``times`` the gradients, beside 1 or beside the largest entry."""
    found = []
    for name, value in want.items():
        value, seen = np.asarray(value, np.float64), np.asarray(got[name], np.float64)
        value = value if name == "loss" else times * value
        if seen.shape != value.shape:
            found.append(f"{what} {name}: shape {seen.shape} instead of {value.shape}")
            continue
        error = np.max(np.abs(seen - value)) / max(1.0, np.max(np.abs(value)))
        if not error <= TOLERANCE:
            found.append(f"{what} {name}: off by {error:.1e}")
    return found


def mesh_of(count: int, kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((count,), ("d",), axis_types=(kind,), devices=jax.devices()[:count])


def with_gradients(loss: Loss, x: Any, y: Any, labels: Any, factor: Any) -> Arrays:
    value, (dx, dy, dfactor) = jax.value_and_grad(loss, (0, 1, 3))(x, y, labels, factor)
    return {"loss": value, "dx": dx, "dy": dy, "dfactor": dfactor}


ROWS = (P("d"), P("d"), P("d"), P())


def under_jit(name: str, kind: str) -> Iterator[str]:
    """One array over all devices, and nothing in the code that knows it."""
    run = jit(functools.partial(with_gradients, LOSSES[name]))
    for count in counts_for(name, kind):
        mesh = mesh_of(count, KINDS[kind])
        with jax.set_mesh(mesh):
            args = [
                jax.device_put(value, NamedSharding(mesh, spec))
                for value, spec in zip(list(data().values())[:4], ROWS, strict=True)
            ]
            got = run(*args)
        yield from wrong(got, expected()[name], f"{count} devices:")
        for key in ("dx", "dy"):
            if kind == "explicit" and not got[key].sharding.is_equivalent_to(NamedSharding(mesh, P("d")), 2):
                yield f"{count} devices: {key} is placed as {got[key].sharding.spec}"


def in_shard_map(loss: Loss, mesh: Mesh, *, check_vma: bool, inside: bool) -> Callable[..., Arrays]:
    """The loss of all devices and its gradients, taken by each device of what it has or from outside."""
    if not inside:
        mapped = jax.shard_map(loss, mesh=mesh, in_specs=ROWS, out_specs=P(), check_vma=check_vma)
        return jit(functools.partial(with_gradients, mapped))

    def local(*args: Any) -> Arrays:
        got = with_gradients(loss, *args)
        # Without types that vary, the gradient of what all devices share is each device's part of it.
        return got if check_vma else got | {"dfactor": got["dfactor"][None]}

    out = {"loss": P(), "dx": P("d"), "dy": P("d"), "dfactor": P() if check_vma else P("d")}
    mapped = jax.shard_map(local, mesh=mesh, in_specs=ROWS, out_specs=out, check_vma=check_vma)

    def run(*args: Any) -> Arrays:
        got = mapped(*args)
        return got if check_vma else got | {"dfactor": got["dfactor"].sum(0)}

    return jit(run)


def by_hand(name: str, check_vma: bool, inside: bool) -> Iterator[str]:
    """``axis_name`` inside ``shard_map``.

    Inside and with ``check_vma=False`` JAX makes psum the transpose of psum, so that what a device gets is the gradient
    of the sum of all devices' (equal) losses, ``count`` times that of one of them. ``plain`` shows that this is so of
    plain ``jnp``; training code that averages gradients over devices takes it into account already.
    """
    for count in counts_for(name, (check_vma, inside)):
        loss = functools.partial(LOSSES[name], axis_name="d")
        run = in_shard_map(loss, mesh_of(count), check_vma=check_vma, inside=inside)
        times = count if inside and not check_vma else 1
        yield from wrong(run(*list(data().values())[:4]), expected()[name], f"{count} devices:", times)


# The same losses in plain jnp, dense: each device has its rows of the matrix.


def unit(z: Any) -> Any:
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def gathered(z: Any) -> Any:
    return lax.all_gather(z, "d", tiled=True)


def own_rows(rows: Any) -> Any:
    return lax.axis_index("d") * rows + jnp.arange(rows)


def cross_entropy(logits: Any, target: Any, left_out: Any = None) -> Any:
    logits = logits if left_out is None else jnp.where(left_out, -jnp.inf, logits)
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, target[:, None], 1)[:, 0]


def plain_nt_xent(x: Any, y: Any, labels: Any, factor: Any) -> Any:
    u, v = unit(x), unit(y)
    everyone, own = jnp.concatenate([gathered(u), gathered(v)]), own_rows(x.shape[0])
    rows = jnp.concatenate([own, own + N])
    left_out = rows[:, None] == jnp.arange(2 * N)
    logits = factor * jnp.concatenate([u, v]) @ everyone.T
    return lax.pmean(jnp.mean(cross_entropy(logits, (rows + N) % (2 * N), left_out)), "d")


def plain_info_nce(x: Any, y: Any, labels: Any, factor: Any) -> Any:
    logits = factor * unit(x) @ gathered(unit(y)).T
    return lax.pmean(jnp.mean(cross_entropy(logits, own_rows(x.shape[0]))), "d")


def plain_clip_loss(x: Any, y: Any, labels: Any, factor: Any) -> Any:
    return (plain_info_nce(x, y, labels, factor) + plain_info_nce(y, x, labels, factor)) / 2


def plain_sup_con(x: Any, y: Any, labels: Any, factor: Any) -> Any:
    others = own_rows(x.shape[0])[:, None] != jnp.arange(N)
    logits = factor * unit(x) @ gathered(unit(x)).T
    log_p = logits - jax.nn.logsumexp(jnp.where(others, logits, -jnp.inf), axis=1, keepdims=True)
    positive = (labels[:, None] == gathered(labels)) & others
    count = positive.sum(1)
    total = -jnp.sum(jnp.sum(jnp.where(positive, log_p, 0), 1) / jnp.maximum(count, 1))
    return lax.psum(total, "d") / lax.psum(jnp.sum(count > 0), "d")


def plain_siglip(x: Any, y: Any, labels: Any, factor: Any) -> Any:
    sign = jnp.where(own_rows(x.shape[0])[:, None] == jnp.arange(N), -1, 1)
    logits = factor * unit(x) @ gathered(unit(y)).T - factor
    return lax.pmean(jnp.mean(jnp.sum(jax.nn.softplus(sign * logits), 1)), "d")


def plain_barlow_twins(x: Any, y: Any, labels: Any, factor: Any) -> Any:
    a, b = ((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5) for z in (gathered(x), gathered(y)))
    c = a.T @ b / N
    return lax.pmean(
        jnp.sum((1 - jnp.diagonal(c)) ** 2) + factor * (jnp.sum(c**2) - jnp.sum(jnp.diagonal(c) ** 2)), "d"
    )


def plain_vicreg(x: Any, y: Any, labels: Any, factor: Any) -> Any:
    a, b = gathered(x), gathered(y)
    loss = 25 * jnp.mean((a - b) ** 2)
    for z in (a, b):
        c = jnp.cov(z, rowvar=False)
        loss += 12.5 * jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.diagonal(c) + 1e-4)))
        loss += factor * (jnp.sum(c**2) - jnp.sum(jnp.diagonal(c) ** 2)) / D
    return lax.pmean(loss, "d")


PLAIN: dict[str, Loss] = {
    "nt_xent": plain_nt_xent,
    "info_nce": plain_info_nce,
    "clip_loss": plain_clip_loss,
    "sup_con": plain_sup_con,
    "siglip": plain_siglip,
    "barlow_twins": plain_barlow_twins,
    "vicreg": plain_vicreg,
}


def plain(name: str) -> Iterator[str]:
    """What JAX itself makes of the gradients inside ``shard_map(check_vma=False)``: the yardstick of ``by_hand``."""
    run = in_shard_map(PLAIN[name], mesh_of(4), check_vma=False, inside=True)
    yield from wrong(run(*list(data().values())[:4]), expected()[name], times=4)


# Other forms.


def shared_negatives(check_vma: bool, inside: bool) -> Iterator[str]:
    """Queries spread over devices, and negatives that all of them have."""
    arrays = data()
    result = oracle.info_nce(arrays["x"], arrays["y"], 1 / FACTOR, arrays["negatives"])
    dx, dy, dnegatives, dtemperature = result.gradients
    want = {"loss": result.total, "dx": dx, "dy": dy, "dnegatives": dnegatives, "dfactor": -dtemperature / FACTOR**2}

    def loss(x: Any, y: Any, negatives: Any, factor: Any) -> Any:
        return losses.info_nce(x, y, 1 / factor, negatives=negatives, axis_name="d", block_size=BLOCK)

    def gradients(loss: Loss, *args: Any) -> Arrays:
        value, found = jax.value_and_grad(loss, (0, 1, 2, 3))(*args)
        return {"loss": value} | dict(zip(("dx", "dy", "dnegatives", "dfactor"), found, strict=True))

    specs, count = (P("d"), P("d"), P(), P()), 4
    mapping = functools.partial(jax.shard_map, mesh=mesh_of(count), in_specs=specs, check_vma=check_vma)
    stacked = inside and not check_vma
    if inside:

        def local(*args: Any) -> Arrays:
            got = gradients(loss, *args)
            return got | {key: got[key][None] for key in ("dnegatives", "dfactor")} if stacked else got

        shared = P("d") if stacked else P()
        run = mapping(
            local, out_specs={"loss": P(), "dx": P("d"), "dy": P("d"), "dnegatives": shared, "dfactor": shared}
        )
    else:
        run = functools.partial(gradients, mapping(loss, out_specs=P()))
    got = jit(run)(*(arrays[key] for key in ("x", "y", "negatives", "factor")))
    if stacked:
        got |= {key: got[key].sum(0) for key in ("dnegatives", "dfactor")}
    yield from wrong(got, want, times=count if stacked else 1)


def two_axes() -> Iterator[str]:
    """Images spread over both axes of a mesh."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rows = P(("a", "b"))
    x, y, labels, factor, _ = data().values()
    mapped = jax.shard_map(
        functools.partial(LOSSES["nt_xent"], axis_name=("a", "b")),
        mesh=mesh,
        in_specs=(rows, rows, rows, P()),
        out_specs=P(),
    )
    yield from wrong(jit(functools.partial(with_gradients, mapped))(x, y, labels, factor), expected()["nt_xent"])


def reductions() -> Iterator[str]:
    """The sum is over all devices; the losses of examples stay where the examples are."""
    x, y, _, _, _ = data().values()
    want = oracle.nt_xent(x, y, 1 / FACTOR).losses
    mapping = functools.partial(jax.shard_map, mesh=mesh_of(4), in_specs=(P("d"), P("d")))
    call = functools.partial(losses.nt_xent, temperature=1 / FACTOR, axis_name="d")
    total, each = jit(
        mapping(lambda x, y: (call(x, y, reduction="sum"), call(x, y, reduction="none")), out_specs=(P(), P("d")))
    )(x, y)
    # Each device has the losses of its first views, then those of its second.
    by_device = want.reshape(2, 4, N // 4).swapaxes(0, 1).reshape(-1)
    yield from wrong({"sum": total, "none": each}, {"sum": want.sum(), "none": by_device})


def equal_ids() -> Iterator[str]:
    """Ids are looked at on all devices, whatever pairs these have."""
    x, y = data()["x"], data()["y"]
    rows = NamedSharding(mesh_of(4), P("d"))
    ids = np.arange(N) % 7
    siglip = functools.partial(oracle.siglip, ids=ids)
    want = {
        "nt_xent": oracle.nt_xent(x, y, 1 / FACTOR, ids=ids)[2][:2],
        "clip_loss": oracle.clip(x, y, FACTOR, ids=ids)[2][:2],
        "siglip": oracle.differences(lambda x, y: siglip(x, y, FACTOR, -FACTOR), (x, y)),
    }
    ours: dict[str, Loss] = {
        "nt_xent": lambda x, y, ids: losses.nt_xent(x, y, 1 / FACTOR, ids=ids, block_size=BLOCK),
        "clip_loss": lambda x, y, ids: losses.clip_loss(x, y, FACTOR, ids=ids),
        "siglip": lambda x, y, ids: losses.siglip(x, y, FACTOR, -FACTOR, ids=ids),
    }
    args = [jax.device_put(value, rows) for value in (x, y, ids)]
    for name, loss in ours.items():
        got = jit(jax.grad(loss, (0, 1)))(*args)
        yield from wrong(
            dict(zip(("dx", "dy"), got, strict=True)), dict(zip(("dx", "dy"), want[name], strict=True)), name
        )


def few_at_once() -> Iterator[str]:
    """The sum of gradients scattered in steps, as over more than eight devices."""
    pairs.AT_ONCE, before = 2, pairs.AT_ONCE
    try:
        yield from under_jit("info_nce", "auto")
    finally:
        pairs.AT_ONCE = before


def odd_tiles() -> Iterator[str]:
    """An odd number of tiles on each device, after they were rounded to whole images."""
    for count, devices, block in ((40, 8, 4), (96, 2, 32)):
        x, y = (np.sin(np.arange(2.0 * count) * factor).reshape(count, 2).astype(np.float32) for factor in (1, 3))
        loss = functools.partial(losses.nt_xent, temperature=0.5, block_size=block)
        spread = NamedSharding(mesh_of(devices), P("d"))
        want, got = (
            jit(jax.grad(loss, (0, 1)))(*args) for args in ((x, y), [jax.device_put(value, spread) for value in (x, y)])
        )
        yield from wrong({"dx": got[0], "dy": got[1]}, {"dx": want[0], "dy": want[1]}, f"{devices} devices:")


def sizes_in(hlo: str) -> dict[str, int]:
    """The number of elements of every array of a compiled program, which is that of one device."""
    return {
        shape: int(np.prod([int(n) for n in shape.split(",")]))
        for shape in re.findall(r"\b(?:f64|f32|bf16|f16|s32|u32|pred)\[([\d,]+)\]", hlo)
    }


def no_matrix(way: str) -> Iterator[str]:
    """No device holds all pairs of all devices, nor its rows of them."""
    count, n, d = 8, 2048, 8
    mesh = mesh_of(count)
    sharding = NamedSharding(mesh, P("d"))
    shapes = [jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=sharding)] * 2
    axis_name = "d" if way == "shard_map" else None

    def loss(x: Any, y: Any) -> Any:
        return losses.nt_xent(x, y, 0.1, axis_name=axis_name)

    if way == "shard_map":
        loss = jax.shard_map(loss, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P())
    compiled = jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
    found = sizes_in(compiled.as_text() or "")
    rows = 2 * n // count * 2 * n
    if str(n // count) + f",{d}" not in found:
        yield f"the rows of a device are not among {sorted(found)}"
    yield from (f"[{shape}]" for shape, size in found.items() if size >= rows)


CHECKS: dict[str, Callable[[], Iterator[str]]] = {}
for loss_name in LOSSES:
    for mesh_kind in KINDS:
        CHECKS[f"{loss_name}, {mesh_kind} mesh"] = functools.partial(under_jit, loss_name, mesh_kind)
    for vma in (True, False):
        for place in ("inside", "outside"):
            CHECKS[f"{loss_name}, check_vma={vma}, gradients {place}"] = functools.partial(
                by_hand, loss_name, vma, place == "inside"
            )
    CHECKS[f"{loss_name}, plain autodiff"] = functools.partial(plain, loss_name)
for vma in (True, False):
    for place in ("inside", "outside"):
        CHECKS[f"negatives, check_vma={vma}, gradients {place}"] = functools.partial(
            shared_negatives, vma, place == "inside"
        )
CHECKS["two axes"] = two_axes
CHECKS["reductions"] = reductions
CHECKS["equal ids"] = equal_ids
CHECKS["few at once"] = few_at_once
CHECKS["odd tiles"] = odd_tiles
for how in ("jit", "shard_map"):
    CHECKS[f"no matrix under {how}"] = functools.partial(no_matrix, how)


def run_all(names: list[str]) -> dict[str, list[str]]:
    """What each check found; one that raises is wrong too, and does not stop the others."""
    found = {}
    for name in names:
        start = time.process_time()
        try:
            found[name] = list(CHECKS[name]())
        except Exception:
            found[name] = [traceback.format_exc(limit=-3)[-1500:]]
        print(f"{name}: {time.process_time() - start:.1f} s", file=sys.stderr)
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    checks = run_all(sys.argv[1:] or list(CHECKS))
    print(json.dumps({"devices": jax.device_count(), "names": list(CHECKS), "checks": checks}))
