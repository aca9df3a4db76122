"""Run by ``test_masked.py`` in a process of its own with eight CPU devices; prints what is wrong as JSON."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform import masking
from gradxform.losses import masked

SHAPE = (8, 3, 6)  # example, position, feature
COUNTS = (1, 2, 4, 8)
TOLERANCE = 1e-5
# What is compiled here runs once on a few numbers.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

random = np.random.RandomState(0)
X, TARGETS = (np.float32(random.standard_normal(SHAPE)) for _ in range(2))
W = np.float32(random.uniform(0.5, 1.5, SHAPE[-1]))
LABELS = random.randint(0, SHAPE[-1], SHAPE[:-1])
# Another count in every example, and none in the first two.
MASK = random.uniform(size=SHAPE[:-1]) < np.linspace(-0.3, 1, 8)[:, None]
MASK[:2] = False


def mse(w: Any, x: Any, targets: Any, labels: Any, mask: Any, axis_name: Any = None) -> Any:
    return masked.masked_mse(w * x, targets, mask, axis_name=axis_name)


def smooth_l1(w: Any, x: Any, targets: Any, labels: Any, mask: Any, axis_name: Any = None) -> Any:
    return masked.masked_smooth_l1(w * x, targets, mask, beta=0.5, axis_name=axis_name)


def cross_entropy(w: Any, x: Any, targets: Any, labels: Any, mask: Any, axis_name: Any = None) -> Any:
    return masked.masked_cross_entropy(w * x, labels, mask, label_smoothing=0.1, axis_name=axis_name)


def plain_mse(w: Any, x: Any, targets: Any, labels: Any, mask: Any, axis_name: Any = None) -> Any:
    """The same in plain ``jnp``, for what JAX itself makes of its gradients inside ``shard_map``."""
    total, count = jnp.sum(jnp.mean((w * x - targets) ** 2, -1) * mask), jnp.sum(1.0 * mask)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return total / count


ARGS = (W, X, TARGETS, LABELS, MASK)
LOSSES = (mse, smooth_l1, cross_entropy)


def with_gradients(loss: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(loss, (0, 1))


def wrong(got: Any, want: Any, what: str) -> Iterator[str]:
    names = ("loss", "gradient of what is shared", "gradient of what is sharded")
    for name, a, b in zip(names, jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        error = float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        if not error <= TOLERANCE:
            yield f"{what} {name}: off by {error:.1e}"


def in_shard_map(loss: Callable[..., Any], count: int, check_vma: bool, inside: bool) -> Any:
    mesh = jax.make_mesh((count,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    local = functools.partial(loss, axis_name="d")
    mapped = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), *[P("d")] * 4), check_vma=check_vma)
    if not inside:
        return jit(with_gradients(mapped(local, out_specs=P())))(*ARGS)

    def run(*args: Any) -> Any:
        value, (dw, dx) = with_gradients(local)(*args)
        # The usual mean over devices; where JAX sums the gradient itself, it changes nothing.
        return value, (lax.pmean(dw, "d"), dx)

    value, (dw, dx) = jit(mapped(run, out_specs=(P(), (P(), P("d")))))(*ARGS)
    # Without types that vary, JAX's gradients are those of the sum of what all devices return.
    return value, (dw, dx if check_vma else dx / count)


def by_hand(check_vma: bool, inside: bool) -> Iterator[str]:
    for loss in LOSSES:
        want = jit(with_gradients(loss))(*ARGS)
        for count in COUNTS if loss is mse else (4,):
            got = in_shard_map(loss, count, check_vma, inside)
            yield from wrong(got, want, f"{loss.__name__}, {count} devices:")
            if loss is mse and count == 4:
                yield from wrong(got, in_shard_map(plain_mse, count, check_vma, inside), f"{count}, beside plain:")


def nothing_masked() -> Iterator[str]:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    for loss in LOSSES:
        mapped = jax.shard_map(
            functools.partial(loss, axis_name="d"), mesh=mesh, in_specs=(P(), *[P("d")] * 4), out_specs=P()
        )
        got = jit(with_gradients(mapped))(*ARGS[:-1], np.zeros_like(MASK))
        yield from wrong(got, jax.tree.map(jnp.zeros_like, got), loss.__name__)


def two_axes() -> Iterator[str]:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(
        functools.partial(mse, axis_name=["a", "b"]), mesh=mesh, in_specs=(P(), *[P(("a", "b"))] * 4), out_specs=P()
    )
    yield from wrong(jit(with_gradients(mapped))(*ARGS), jit(with_gradients(mse))(*ARGS), "two axes:")


def in_vmap() -> Iterator[str]:
    split = [a.reshape(4, 2, *a.shape[1:]) for a in ARGS[1:]]
    mapped = jax.vmap(functools.partial(mse, axis_name="d"), in_axes=(None, 0, 0, 0, 0), out_axes=None, axis_name="d")
    value, (dw, dx) = jit(with_gradients(mapped))(W, *split)
    yield from wrong((value, (dw, dx.reshape(SHAPE))), jit(with_gradients(mse))(*ARGS), "vmap:")


def under_jit(kind: AxisType) -> Iterator[str]:
    """One array over all devices, and nothing in the code that knows it; also with the classes sharded."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        for loss in LOSSES:
            want = jit(with_gradients(loss))(*ARGS)
            for spec, rest in ((P("d"), P("d")), (P(None, None, "d"), P())):
                specs = (P() if rest else P("d"), spec, spec, rest, rest)
                placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(ARGS, specs, strict=True)]
                yield from wrong(jit(with_gradients(loss))(*placed), want, f"{loss.__name__}, {spec}:")


def masks_and_patches(kind: AxisType) -> Iterator[str]:
    """What prepares a batch, with the batch over two devices: the same as on one, and it stays where it is."""
    key, ids = jax.random.key(0), np.arange(32, dtype=np.int32).reshape(4, 8)
    chosen = masking.random_masking(key, 4, 8, 3)
    images = np.arange(4 * 4 * 6 * 2, dtype=np.float32).reshape(4, 4, 6, 2)
    work: dict[str, tuple[Callable[..., Any], Any]] = {
        "mlm_corrupt": (lambda ids: masking.mlm_corrupt(key, ids, mask_id=3, vocab_size=32, ratio=0.5), ids),
        "tokens": (
            lambda x, keep, restore: masking.scatter_tokens(masking.gather_tokens(x, keep), restore, 0.5),
            (ids.astype(np.float32), chosen.ids_keep, chosen.ids_restore),
        ),
        "patches": (lambda x: masking.unpatchify(masking.normalize_patches(masking.patchify(x, 2)), 2, (2, 3)), images),
    }
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        for name, (run, args) in work.items():
            args = args if isinstance(args, tuple) else (args,)
            got = jit(run)(*(jax.device_put(a, NamedSharding(mesh, P("d"))) for a in args))
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(run(*map(jnp.asarray, args))), strict=True):
                if not np.allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6):
                    yield f"{name}: other numbers"
                if kind is AxisType.Explicit and a.sharding.spec[0] != "d":
                    yield f"{name}: placed as {a.sharding.spec}"


def masks_in_shard_map() -> Iterator[str]:
    """Each device draws with its own key, whose dependence on the device JAX follows."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def draw(key: Any) -> Any:
        return (
            masking.block_masking(key, 2, 4, 6),
            masking.span_masking(key, 2, 12, 5),
            masking.grid_masking(key, 2, 4, 2, 0.4),
            masking.random_masking(key, 2, 6, 2),
        )

    keys = jax.random.split(jax.random.key(0), 2)
    got = jit(jax.shard_map(lambda keys: draw(keys[0]), mesh=mesh, in_specs=P("d"), out_specs=P("d")))(keys)
    want = jax.tree.map(lambda *x: np.concatenate(x), *map(draw, keys))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if not np.array_equal(a, b):
            yield "other masks"


if __name__ == "__main__":
    warnings.simplefilter("error")
    checks = {
        f"check_vma={check_vma}, gradients {'inside' if inside else 'outside'}": list(by_hand(check_vma, inside))
        for check_vma in (True, False)
        for inside in (True, False)
    }
    checks |= {
        "nothing masked": list(nothing_masked()),
        "two axes": list(two_axes()),
        "vmap": list(in_vmap()),
        "auto mesh": list(under_jit(AxisType.Auto)),
        "explicit mesh": list(under_jit(AxisType.Explicit)),
        "masks and patches, auto mesh": list(masks_and_patches(AxisType.Auto)),
        "masks and patches, explicit mesh": list(masks_and_patches(AxisType.Explicit)),
        "masks in shard_map": list(masks_in_shard_map()),
    }
    print(json.dumps({"devices": jax.device_count(), "checks": checks}))
