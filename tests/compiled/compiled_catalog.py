"""Every public name of the rooms: a small program of it, or why it is none.

Factories stand in ``value_catalog``, whose completeness has a test of its own; here is the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from value_catalog import PARAMS, VALUES

import gradxform as gx

Calls = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]
N, D = 256, 128
KEY = jax.random.key(0)
X, PAIRS = jnp.ones((8, 8, 8, 16)), (jnp.ones((N, D)), jnp.ones((N, D)))
LABELS, SCALE, MASKED = jnp.zeros(N, jnp.int32), jnp.ones(16), jnp.ones(N, bool)
TOKENS, IDS = jnp.ones((8, 16, 32)), jnp.zeros((8, 4), jnp.int32)
STATS = gx.norm.BatchStats(jnp.zeros(16), jnp.ones(16))
IMAGES = {"image": jnp.zeros((8, 24, 24, 3), jnp.uint8), "label": jnp.zeros((8, 10))}
L, M, T = gx.losses, gx.masking, gx.transfer


def both(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function and its gradients with respect to all arguments of floats."""
    places = tuple(i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating))

    def call(*args: Any) -> Any:
        return jax.value_and_grad(lambda *args: jnp.sum(jax.tree.leaves(function(*args))[0]), places)(*args)

    return call, args


def bound(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    return lambda *args: function(*args, **how)


LOSSES: Calls = {
    "barlow_twins": both(L.barlow_twins, *PAIRS),
    "byol": both(L.byol, *PAIRS),
    "clip_loss": both(bound(L.clip_loss, logit_scale=10.0), *PAIRS),
    "ema_update": (L.ema_update, (PARAMS, PARAMS)),
    "enqueue": (L.enqueue, (L.MemoryQueue(jnp.ones((512, D)), jnp.int32(0)), PAIRS[0])),
    "info_nce": both(L.info_nce, *PAIRS),
    "init_queue": (lambda key: L.init_queue(key, 512, D), (KEY,)),
    "jensen_shannon": both(L.jensen_shannon, *PAIRS, PAIRS[0]),
    "masked_cross_entropy": both(L.masked_cross_entropy, PAIRS[0], LABELS, MASKED),
    "masked_l1": both(L.masked_l1, *PAIRS, MASKED),
    "masked_mse": both(L.masked_mse, *PAIRS, MASKED),
    "masked_smooth_l1": both(L.masked_smooth_l1, *PAIRS, MASKED),
    "nt_xent": both(L.nt_xent, *PAIRS),
    "siglip": both(bound(L.siglip, logit_scale=10.0, logit_bias=-10.0), *PAIRS),
    "simsiam": both(L.simsiam, *PAIRS, *PAIRS),
    "sup_con": both(L.sup_con, PAIRS[0], LABELS),
    "vicreg": both(L.vicreg, *PAIRS),
}
NORMS: Calls = {
    "batch_norm": both(
        lambda x, scale, bias: gx.norm.batch_norm(x, STATS, scale, bias, use_running_average=False), X, SCALE, SCALE
    ),
    "batch_renorm": both(
        lambda x, scale, bias: gx.norm.batch_renorm(x, STATS, scale, bias, use_running_average=False), X, SCALE, SCALE
    ),
    "group_norm": both(bound(gx.norm.group_norm, num_groups=4), X, SCALE, SCALE),
    "instance_norm": both(gx.norm.instance_norm, X, SCALE, SCALE),
    "layer_norm": both(gx.norm.layer_norm, X, SCALE, SCALE),
    "rms_norm": both(gx.norm.rms_norm, X, SCALE),
    "weight_standardize": both(gx.norm.weight_standardize, X, SCALE),
    "init_batch_stats": (lambda x: gx.norm.init_batch_stats(16).mean + x, (SCALE,)),
}
MASKING: Calls = {
    "block_masking": (lambda key: M.block_masking(key, 8, 6, 12), (KEY,)),
    "denormalize_patches": both(M.denormalize_patches, TOKENS, TOKENS),
    "gather_tokens": both(M.gather_tokens, TOKENS, IDS),
    "grid_masking": (lambda key: M.grid_masking(key, 8, 6, 2), (KEY,)),
    "mlm_corrupt": (lambda key, ids: M.mlm_corrupt(key, ids, mask_id=3, vocab_size=50), (KEY, IDS)),
    "normalize_patches": both(M.normalize_patches, TOKENS),
    "patchify": (lambda x: M.patchify(x, 4), (X,)),
    "random_masking": (lambda key, n: M.random_masking(key, 8, 16, 4, lengths=n), (KEY, IDS[:, 0])),
    "scatter_tokens": both(lambda x, ids: M.scatter_tokens(x, ids, 0.0), TOKENS[:, :4], jnp.zeros((8, 16), jnp.int32)),
    "span_masking": (lambda key, n: M.span_masking(key, 8, 16, 4, lengths=n), (KEY, IDS[:, 0])),
    "unpatchify": (lambda x: M.unpatchify(x, 4), (jnp.ones((8, 4, 48)),)),
}
TRANSFER: Calls = {
    "ewc_penalty": (lambda *args: T.ewc_penalty(*args, strength=1.0), (PARAMS, PARAMS, PARAMS)),
    "l2_sp_penalty": (lambda *args: T.l2_sp_penalty(*args, strength=1.0), (PARAMS, PARAMS)),
    "keep_frozen": (lambda *args: T.keep_frozen(*args, "bias"), (PARAMS, PARAMS)),
    "resize_positions": (lambda x: T.resize_positions(x, (1, 26, 8)), (jnp.ones((1, 17, 8)),)),
}
BIG = {"w": jnp.ones((128, 256))}
CODES = gx.precision.compress_state(gx.adam(0.1), "int8_blockwise").init(BIG)
PRECISION: Calls = {
    "compress": (gx.precision.compress, (gx.adam(0.1).init(BIG), CODES)),
    "decompress": (gx.precision.decompress, (CODES,)),
}
FLAT: Calls = {
    "all_finite": (gx.all_finite, (PARAMS,)),
    "apply_updates": (gx.apply_updates, (PARAMS, PARAMS)),
    "global_norm": (gx.global_norm, (PARAMS,)),
    "incremental_update": (lambda new, old: gx.incremental_update(new, old, 0.25), (PARAMS, PARAMS)),
}
SCALED = gx.precision.static_loss_scale(gx.sgd(0.1), 8.0).init(PARAMS)
TX = gx.precision.master_weights(gx.sgd(0.1))
PRECISION |= {
    "masters": (gx.precision.masters, gx.precision.split(PARAMS, TX)),
    "split": (lambda params: gx.precision.split(params, TX), (PARAMS,)),
    "loss_scale": (gx.precision.loss_scale, (SCALED,)),
    "value_and_grad": (gx.precision.value_and_grad(lambda x: jnp.sum(x * x), SCALED), (jnp.ones((N, D)),)),
}
CALLS: dict[str, Calls] = {
    "losses": LOSSES,
    "norm": NORMS,
    "masking": MASKING,
    "precision": PRECISION,
    "transfer": TRANSFER,
    "": FLAT,
}
ROOMS: dict[str, Any] = {
    "": gx,
    "schedules": gx.schedules,
    "augment": gx.augment,
    "losses": L,
    "norm": gx.norm,
    "masking": M,
    "precision": gx.precision,
    "resume": gx.resume,
    "sharding": gx.sharding,
    "transfer": T,
}

NO_PROGRAM = {
    "a type": {
        "DType",
        "Leafwise",
        "NonfiniteError",
        "Scalar",
        "ScalarOrSchedule",
        "Schedule",
        "Selector",
        "ShardingError",
        "Slot",
        "Transformation",
        "resume.MismatchError",
        "resume.Run",
        "sharding.Layout",
        "sharding.Traffic",
        "augment.Affine",
        "augment.Augmentation",
        "augment.Border",
        "augment.Displacement",
        "augment.Geometric",
        "augment.Map",
        "augment.Mix",
        "augment.Pixelwise",
        "augment.Projective",
        "augment.Resampling",
        "augment.Stage",
        "losses.MemoryQueue",
        "norm.BatchStats",
        "norm.Pending",
        "masking.CorruptedTokens",
        "masking.RandomMask",
        "precision.Codec",
        "precision.Coded",
        "precision.Memory",
        "precision.Policy",
        "transfer.Copy",
        "transfer.Join",
        "transfer.LoadReport",
    },
    "a room": {*ROOMS, "plot"} - {""},
    "makes factories": {"augment.augmentation", "precision.codec", "schedule", "transformation"},
    "runs in Python": {
        "check_finite",
        "from_config",
        "hyperparams",
        "metrics",
        "to_config",
        "masking.num_kept",
        "norm.batch_norm_from_torch",
        "norm.batch_norm_to_torch",
        "transfer.freeze_modules",
        "transfer.layer_scales",
        "transfer.layers_at_depth",
        "transfer.load_pretrained",
        "precision.memory",
        "precision.saturated",
        "resume.order",
        "sharding.fsdp",
        "sharding.global_batch",
        "sharding.init",
        "sharding.join",
        "sharding.layout",
        "sharding.state_sharding",
        "sharding.traffic",
    },
    "asks for a mesh": {"sharding.zero1"},
    "compiles once a batch, by itself": {"transfer.fisher_diagonal"},
}


def public() -> set[str]:
    """All public names, those of a room behind its own."""
    return {f"{room}.{name}" if room else name for room, module in ROOMS.items() for name in module.__all__}


def transformations() -> Calls:
    """A step of every transformation, from a fresh state."""

    def step(tx: gx.Transformation) -> Callable[..., Any]:
        return lambda grads, params: tx.update(grads, tx.init(params), params)

    return {
        name: (step(value), (PARAMS, PARAMS)) for name, value in VALUES.items() if isinstance(value, gx.Transformation)
    }


def schedules() -> Calls:
    """Every schedule at a step."""
    return {name: (value, (jnp.int32(3),)) for name, value in VALUES.items() if isinstance(value, gx.Schedule)}


def augmentations() -> Calls:
    """Every augmentation of a small batch."""

    def call(value: Any) -> Callable[..., Any]:
        return lambda key, images: value(key, images)

    boxes = {
        name: {"boxes": jnp.tile(jnp.array([4.0, 4.0, 20.0, 16.0]), (8, 10, 1))}
        for name in ("augment.random_iou_crop", "augment.random_object_crop", "augment.mosaic")
    } | {"augment.copy_paste": {"mask": jnp.ones((*IMAGES["image"].shape[:3], 10), bool)}}
    return {
        name: (call(value), (KEY, IMAGES | boxes.get(name, {})))
        for name, value in VALUES.items()
        if isinstance(value, gx.augment.Augmentation)
    }


def codecs() -> Calls:
    """There and back by every codec, of numbers of both signs and of squares."""

    def call(codec: Any) -> Callable[..., Any]:
        return lambda x: [
            codec.decode(codec.encode(y, nonnegative=above), nonnegative=above)
            for y, above in ((x, False), (x * x, True))
        ]

    return {name: (call(value), (PAIRS[0],)) for name, value in VALUES.items() if isinstance(value, gx.precision.Codec)}


def kernels() -> Calls:
    """Every function that is no factory, and what a codec is for."""
    return codecs() | {
        f"{room}.{name}" if room else name: call for room, calls in CALLS.items() for name, call in calls.items()
    }
