"""Run by ``test_augment_sharding.py`` in a process of its own with eight CPU devices; prints what is wrong as JSON."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

A = gx.augment
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
KEY = jax.random.key(5)
BATCH = 16
MOVES = A.chain(A.random_crop((12, 12), 2), A.random_flip_left_right(), A.random_rotation(20))
CHAINS = {
    "moves": MOVES,
    "colours": A.chain(A.random_flip_left_right(), A.random_apply(A.invert()), A.color_jitter(0.4, 0.4, 0.4, 0.1)),
    "policy": A.chain(MOVES, A.rand_augment()),
}


def inputs(dtype: Any) -> dict[str, Any]:
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (BATCH, 12, 12, 3))
    box = np.float32([[2, 3, 8, 9], [0, 0, 0, 0]])
    return {
        "image": image.astype(np.uint8) if dtype == "uint8" else np.float32(image / 255),
        "mask": image[..., 0] > 99,
        "boxes": np.stack([box] * BATCH),
        "label": np.arange(BATCH),
    }


def wrong(got: Any, wanted: Any) -> Iterator[str]:
    for name, want in wanted.items():
        one, other = np.asarray(got[name]), np.asarray(want)
        # Coordinates and floats are rounded as a program happens to add them up; 8-bit pixels and masks are not.
        close = {"boxes": 1e-4, "image": 2e-6 if one.dtype == np.float32 else 0}.get(name, 0)
        alike = np.allclose(np.float64(one), np.float64(other), rtol=0, atol=close)
        if one.dtype != other.dtype or not alike:
            yield f"{name}: {np.mean(one != other):.2%} of the values differ"


def mesh_of(kind: str) -> Mesh:
    return jax.make_mesh((8,), ("batch",), axis_types=(KINDS[kind],))


def under_jit(name: str, dtype: str, kind: str) -> Iterator[str]:
    """A batch that is spread over the devices, with and without its mesh in context."""
    aug, data = CHAINS[name], inputs(dtype)
    wanted = aug(KEY, data)
    mesh = mesh_of(kind)
    spread = NamedSharding(mesh, P("batch"))
    placed = {key: jax.device_put(value, spread) for key, value in data.items()}
    if name == "moves":
        yield from wrong(aug(KEY, placed), wanted)
    with jax.set_mesh(mesh):
        yield from wrong(jax.jit(lambda key, x: aug(key, x))(KEY, placed), wanted)


def by_hand(name: str, dtype: str, check_vma: bool) -> Iterator[str]:
    """Parameters of the whole batch, spread like the images."""
    aug, data = CHAINS[name], inputs(dtype)
    wanted, params = aug(KEY, data), aug.sample(KEY, data["image"].shape)
    mapped = jax.shard_map(
        lambda params, x: aug.apply(params, x),
        mesh=mesh_of("auto"),
        out_specs=P("batch"),
        in_specs=(P("batch"), P("batch")),
        check_vma=check_vma,
    )
    yield from wrong(jax.jit(mapped)(params, jax.tree.map(jnp.asarray, data)), wanted)


def by_rows() -> Iterator[str]:
    """Float images whose rows are spread over the devices by explicit sharding."""
    image = np.float32(np.random.RandomState(0).rand(2, 16, 4, 3))
    wanted, mesh = A.invert()(KEY, {"image": image}), mesh_of("explicit")
    with jax.set_mesh(mesh):
        placed = jax.device_put(image, NamedSharding(mesh, P(None, "batch")))
        yield from wrong(A.invert()(KEY, {"image": placed}), wanted)


def mixing(kind: str) -> Iterator[str]:
    """Images of a batch that is spread over the devices, with those of other devices."""
    data = inputs("uint8")
    objects = {"mask": np.stack([data["mask"], ~data["mask"]], -1), "boxes": data["boxes"]}
    pairs = {"label": data["label"]}
    for aug, more in (
        (A.chain(A.mixup(0.2, num_classes=BATCH), A.cutmix(1.0)), pairs),
        (A.mosaic((12, 12)), {"boxes": data["boxes"]}),
        (A.copy_paste(), objects),
    ):
        given = {"image": data["image"], **more}
        wanted, mesh = aug(KEY, given), mesh_of(kind)
        placed = jax.device_put(given, NamedSharding(mesh, P("batch")))
        with jax.set_mesh(mesh):
            yield from wrong(jax.jit(lambda key, x, aug=aug: aug(key, x))(KEY, placed), wanted)


def run_all(only: str = "") -> dict[str, list[str]]:
    checks: dict[str, Any] = {}
    for name in CHAINS:
        checks[f"{name}, uint8, jit, auto mesh"] = (under_jit, name, "uint8", "auto")
        if name != "policy":  # which takes a minute to compile
            checks[f"{name}, uint8, jit, explicit mesh"] = (under_jit, name, "uint8", "explicit")
            checks[f"{name}, uint8, shard_map, check_vma=True"] = (by_hand, name, "uint8", True)
    checks["moves, uint8, shard_map, check_vma=False"] = (by_hand, "moves", "uint8", False)
    checks["moves, float32, jit, auto mesh"] = (under_jit, "moves", "float32", "auto")
    checks["moves, float32, shard_map, check_vma=True"] = (by_hand, "moves", "float32", True)
    checks["mixing, uint8, jit, auto mesh"] = (mixing, "auto")
    checks["mixing, uint8, jit, explicit mesh"] = (mixing, "explicit")
    checks["rows, float32, explicit mesh"] = (by_rows,)
    found = {}
    for name, (check, *args) in checks.items():
        if only not in name:
            continue
        try:
            found[name] = list(check(*args))
        except Exception:  # one check that fails says nothing about the others
            found[name] = [traceback.format_exc(limit=-4)]
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps({"devices": jax.device_count(), "checks": run_all(*sys.argv[1:2])}))
