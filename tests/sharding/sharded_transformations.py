"""The transformations that the programs of this folder train by: every public one, alone or inside of others."""

from __future__ import annotations

from typing import Any

import jax
import optax

import gradxform as gx

RATE = 0.01
LAYERS = ("embed", "square", "kernel|bias")
NARROW = ("masters", "masters of 24 bits", "rounding")
"""What is about params of 16 bits."""


def halved(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: u / 2, updates)


def transformations(pretrained: Any) -> dict[str, Any]:
    """Each rule of the library, alone or in a recipe, and wrappers; optax's beside them."""
    rows = {"min_dim_size_to_factor": 4}
    clipped = gx.chain(gx.clip_by_global_norm(0.1), gx.adamw(RATE, weight_decay=0.1))
    matrices, sgd = gx.ndim_at_least(2), gx.sgd(RATE)
    return {
        "sgd": gx.sgd(RATE, momentum=0.9),
        "rmsprop": gx.rmsprop(RATE, centered=True, momentum=0.9),
        "rmsprop, not centered": gx.rmsprop(RATE),
        "adagrad": gx.adagrad(RATE),
        "adam": gx.adam(RATE),
        "adamw": gx.adamw(RATE),
        "nadam": gx.nadam(RATE),
        "nadamw": gx.nadamw(RATE, momentum_decay=4e-3),
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
        "clip of values": gx.chain(gx.clip(0.01), sgd),
        "clip of blocks": gx.chain(gx.clip_by_block_rms(0.01), sgd),
        "adaptive clip": gx.chain(gx.adaptive_grad_clip(0.01), sgd),
        "centralize": gx.chain(gx.centralize(), sgd),
        "ema": gx.chain(gx.ema(0.9), sgd),
        "block rms of params": gx.chain(gx.scale_by_param_block_rms(), sgd),
        "norms": gx.chain(gx.record_norms(), gx.adam(RATE)),
        "schedule": gx.adam(gx.schedules.cosine(RATE, 10)),
        "by name": gx.named_chain(
            ("same", gx.identity()), ("rate", gx.scale_by_schedule(gx.schedules.linear(-RATE, 0.0, 8)))
        ),
        "a function": gx.chain(gx.stateless(halved), gx.scale(-RATE)),
        "accumulate": gx.accumulate(clipped, 2),
        "skip": gx.skip_nonfinite(clipped, 3),
        "masked": gx.masked(gx.adam(RATE), matrices),
        "freeze": gx.chain(gx.adam(RATE), gx.freeze("bias")),
        "selective": gx.selective_transform(gx.adam(RATE), freeze_mask="bias"),
        "partition": gx.partition({True: gx.adam(RATE), False: gx.set_to_zero()}, matrices),
        "noise": gx.chain(gx.add_noise(0.1, 0.5, 0), sgd),
        "anchor": gx.chain(gx.transfer.add_l2_sp(pretrained, 0.1), sgd),
        "ewc": gx.chain(gx.transfer.add_ewc(pretrained, pretrained, 0.1), sgd),
        "layers": gx.chain(gx.scale_by_adam(), gx.transfer.layerwise_decay(RATE, 0.75, LAYERS)),
        "rates": gx.chain(gx.scale_by_adam(), gx.transfer.discriminative_rates(RATE / 10, RATE, LAYERS)),
        "unfreeze": gx.transfer.gradual_unfreeze(
            gx.adam(RATE), (("kernel|bias", 0), ("", 2)), before=gx.clip_by_global_norm(0.1)
        ),
        "loss scale": gx.precision.static_loss_scale(gx.adam(RATE), 8.0),
        "dynamic loss scale": gx.precision.dynamic_loss_scale(gx.adam(RATE), 8.0, growth_interval=2),
        "codes of 16 bits": gx.precision.compress_state(clipped, "bf16", min_size=1),
        "codes of 8 bits": gx.precision.compress_state(gx.adam(RATE), "int8_blockwise", min_size=1),
        "codes of 4 bits": gx.precision.compress_state(gx.adam(RATE), gx.precision.int4_blockwise(4), min_size=1),
        "masters": gx.precision.master_weights(clipped),
        "masters of 24 bits": gx.precision.master_weights(clipped, bits=24),
        "rounding": gx.precision.stochastic_rounding(clipped),
        "optax adamw": optax.adamw(RATE),
        "optax adafactor": optax.adafactor(RATE, **rows),
        "optax steps": optax.MultiSteps(optax.adamw(RATE), 2).gradient_transformation(),
        "optax around": optax.chain(optax.clip_by_global_norm(0.1), gx.adamw(RATE)),
    }
