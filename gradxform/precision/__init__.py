"""Mixed precision: state in fewer bits, params of 16 bits with exact masters, loss scales, the dtype computed in."""

from gradxform.precision.blocks import int4_blockwise, int8_blockwise
from gradxform.precision.codec import Codec, codec
from gradxform.precision.coded import Coded
from gradxform.precision.compress import compress, compress_state, decompress
from gradxform.precision.loss_scale import dynamic_loss_scale, loss_scale, static_loss_scale, value_and_grad
from gradxform.precision.masters import master_weights, masters, split
from gradxform.precision.memory import Memory, memory, saturated
from gradxform.precision.policy import Policy
from gradxform.precision.static import bf16, fp8
from gradxform.precision.stochastic import stochastic_rounding

__all__ = [
    "Codec",
    "Coded",
    "Memory",
    "Policy",
    "bf16",
    "codec",
    "compress",
    "compress_state",
    "decompress",
    "dynamic_loss_scale",
    "fp8",
    "int4_blockwise",
    "int8_blockwise",
    "loss_scale",
    "master_weights",
    "masters",
    "memory",
    "saturated",
    "split",
    "static_loss_scale",
    "stochastic_rounding",
    "value_and_grad",
]
