"""What is spread over several chips: steps, losses, augmentations, a norm. All numbers are of one chip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx
from benchmarks import peers
from benchmarks.compiled import programs_augment, programs_losses
from benchmarks.compiled.program import OURS, Call, Program, shaped
from benchmarks.compiled.programs_optimizers import OPTAX, PEERS, optimizers

AXIS = "chips"
LAYERS, WIDTH, BATCH = 8, 512, 32
"""Of the network whose step is compiled, and examples a chip."""
PAIRS_A_CHIP, IMAGES_A_CHIP = 1024, 16


def network(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Layers of one width."""
    for layer in params:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x


def train_step(mesh: Mesh, peer: str, *, fsdp: bool) -> Call:
    """Gradient, clip and AdamW; the examples are spread over the chips, and with ``fsdp`` params and state too."""
    spread, everywhere = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
    case = optimizers.CASES["clip_adamw"]
    tx = case.ours() if peer == OURS else case.optax()
    update = peers.jax_update(tx, PEERS[peer])

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        grads = jax.grad(lambda params: jnp.mean((network(params, x) - y) ** 2))(params)
        return update(params, state, grads)

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return shaped(leaf.shape, leaf.dtype, spread if fsdp and leaf.ndim else everywhere)

    params = [{"kernel": shaped((WIDTH, WIDTH)), "bias": shaped((WIDTH,))} for _ in range(LAYERS)]
    state = jax.eval_shape(tx.init, params)
    params, state = jax.tree.map(placed, (params, state))
    x = shaped((BATCH * mesh.size, WIDTH), sharding=spread)
    out = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    return Call(jax.jit(step, donate_argnums=(0, 1), out_shardings=out), (params, state, x, x))


def pairs_loss(mesh: Mesh, loss: Callable[..., jax.Array], d: int = 128, *, mapped: bool = False) -> Call:
    """A loss of pairs that are spread over the chips, and its gradients."""
    spread = NamedSharding(mesh, P(AXIS))
    x = shaped((PAIRS_A_CHIP * mesh.size, d), sharding=spread)
    if mapped:
        loss = jax.shard_map(loss, mesh=mesh, in_specs=(P(AXIS), P(AXIS)), out_specs=P())
    return Call(jax.value_and_grad(loss, (0, 1)), (x, x))


def classes_loss(mesh: Mesh) -> Call:
    """A loss of vectors of known classes, two for each pair, and its gradient."""
    spread, count = NamedSharding(mesh, P(AXIS)), 2 * PAIRS_A_CHIP * mesh.size
    arguments = shaped((count, 128), sharding=spread), shaped((count,), jnp.int32, spread)
    return Call(jax.value_and_grad(gx.losses.sup_con), arguments)


def augmented(
    mesh: Mesh, augmentation: Any, images: int = IMAGES_A_CHIP, size: int = 224, labels: bool = False
) -> Call:
    """An augmentation of images, and of their labels, that are spread over the chips."""
    spread, count = NamedSharding(mesh, P(AXIS)), images * mesh.size
    inputs: Any = shaped((count, size, size, 3), jnp.uint8, spread)
    if labels:
        inputs = {"image": inputs, "label": shaped((count, 1000), sharding=spread)}
    return programs_augment.call_of(augmentation, inputs)._replace(size=None)


def batch_normed(mesh: Mesh) -> Call:
    """A batch norm over all chips, forward and backward, under plain ``jit``."""
    x = shaped((16 * mesh.size, 56, 56, 64), sharding=NamedSharding(mesh, P(AXIS)))
    features = shaped((64,))

    def both(x: jax.Array, scale: jax.Array, bias: jax.Array, gradient: jax.Array) -> Any:
        y, pull, stats = jax.vjp(
            lambda *args: gx.norm.batch_norm(
                args[0], gx.norm.init_batch_stats(64), *args[1:], use_running_average=False
            ),
            x,
            scale,
            bias,
            has_aux=True,
        )
        return y, stats, pull(gradient)

    return Call(both, (x, features, features, x))


def programs() -> Iterator[Program]:
    """The programs, each under the room that it belongs to."""

    def program(room: str, name: str, call: Callable[[Mesh], Call], peer: str = OURS, **how: Any) -> Program:
        return Program(room, name, peer, call, sharded=True, **how)

    for fsdp in (False, True):
        for peer in (OURS, OPTAX):
            yield program(
                "optimizers",
                f"{'FSDP' if fsdp else 'data-parallel'} step, {LAYERS} layers of {WIDTH}, "
                f"clip + AdamW, batch {BATCH} a chip",
                lambda mesh, peer=peer, fsdp=fsdp: train_step(mesh, peer, fsdp=fsdp),
                peer,
            )
    yield program("norms", "batch_norm, 16 x 56 x 56 x 64 a chip, forward + backward, plain jit", batch_normed)
    losses = programs_losses
    for axes, how in ((AxisType.Auto, "plain jit, Auto mesh"), (AxisType.Explicit, "Explicit mesh")):
        for name, loss in (("nt_xent", losses.nt_xent()), ("clip_loss", losses.clip), ("siglip", losses.siglip)):
            yield program(
                "losses",
                f"{name}, {PAIRS_A_CHIP:,} pairs of 128 a chip, {how}",
                lambda mesh, loss=loss: pairs_loss(mesh, loss),
                axes=axes,
            )
        yield program("losses", f"sup_con, {2 * PAIRS_A_CHIP:,} vectors of 128 a chip, {how}", classes_loss, axes=axes)
    name = f"nt_xent, {PAIRS_A_CHIP:,} pairs of 128 a chip"
    yield program(
        "losses",
        f"{name}, plain jit, Auto mesh",
        lambda mesh: pairs_loss(mesh, losses.at("highest", losses.dense)),
        losses.HIGHEST,
    )
    yield program(
        "losses", f"{name}, shard_map", lambda mesh: pairs_loss(mesh, losses.nt_xent(axis_name=AXIS), mapped=True)
    )
    for name, augmentation in (programs_augment.STAGES | programs_augment.MIXES | programs_augment.POLICIES).items():
        for axes in (AxisType.Auto, AxisType.Explicit):
            yield program(
                "augment",
                f"{name}, {IMAGES_A_CHIP} images of 224 a chip, uint8, {axes.name} mesh",
                lambda mesh, augmentation=augmentation, labels=name in programs_augment.MIXES: augmented(
                    mesh, augmentation, labels=labels
                ),
                axes=axes,
            )
