"""Transfer learning: loading a start, pulling toward it, freezing, and rates for each layer."""

from gradxform.transfer.ewc import add_ewc, ewc_penalty
from gradxform.transfer.fisher import fisher_diagonal
from gradxform.transfer.freeze import freeze_modules, keep_frozen
from gradxform.transfer.l2_sp import add_l2_sp, l2_sp_penalty
from gradxform.transfer.layers import layers_at_depth
from gradxform.transfer.layerwise import discriminative_rates, layer_scales, layerwise_decay, scale_by_layer
from gradxform.transfer.load import load_pretrained
from gradxform.transfer.positions import resize_positions
from gradxform.transfer.report import LoadReport
from gradxform.transfer.rules import Copy, Join
from gradxform.transfer.unfreeze import gradual_unfreeze

__all__ = [
    "Copy",
    "Join",
    "LoadReport",
    "add_ewc",
    "add_l2_sp",
    "discriminative_rates",
    "ewc_penalty",
    "fisher_diagonal",
    "freeze_modules",
    "gradual_unfreeze",
    "keep_frozen",
    "l2_sp_penalty",
    "layer_scales",
    "layers_at_depth",
    "layerwise_decay",
    "load_pretrained",
    "resize_positions",
    "scale_by_layer",
]
