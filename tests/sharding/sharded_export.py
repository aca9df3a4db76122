"""A whole training step (views of images, forward, loss, update) as a program for TPUs, made where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

SIZE, IMAGES, FEATURES = 16, 32, 8


def exported() -> Iterator[str]:
    """For one chip and for eight, whose state is divided; read back, it says the same."""
    views = gx.augment.simclr_views(SIZE)
    params = {"conv": jnp.ones((3, 3, 3, FEATURES), jnp.float32), "head": jnp.ones((FEATURES, FEATURES), jnp.float32)}
    tx = gx.sharding.zero1(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-3)), min_size=0)

    def features(params: Any, images: jax.Array) -> jax.Array:
        maps = jax.lax.conv_general_dilated(
            images.astype(jnp.float32), params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(maps, (1, 2)) @ params["head"]

    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        with jax.set_mesh(mesh), jax.enable_x64(False):
            p = jax.device_put(params, NamedSharding(mesh, P()))
            leaves, treedef = jax.tree.flatten((p, gx.sharding.init(tx, p)))

            def step(leaves: Any, key: jax.Array, images: jax.Array, treedef: Any = treedef) -> Any:
                params, state = treedef.unflatten(leaves)
                value, gradients = jax.value_and_grad(
                    lambda params: gx.losses.nt_xent(
                        *(features(params, view) for view in views(key, images)), temperature=0.1
                    )
                )(params)
                updates, state = tx.update(gradients, state, params)
                return jax.tree.leaves((gx.apply_updates(params, updates), state)), value

            images = jax.device_put(jnp.zeros((IMAGES, SIZE, SIZE, 3), jnp.uint8), NamedSharding(mesh, P("data")))
            program = jax.export.export(
                jax.jit(step, out_shardings=([x.sharding for x in leaves], None)), platforms=["tpu"]
            )(leaves, jax.device_put(jax.random.key(0), NamedSharding(mesh, P())), images)
        again = jax.export.deserialize(program.serialize())
        found = again.platforms, again.nr_devices, len(again.in_avals), len(again.out_avals)
        if found != (("tpu",), devices, len(leaves) + 2, len(leaves) + 1):
            yield f"export for {devices}: {found}"
