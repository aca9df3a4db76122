"""Fewer bits: codecs, and the state of any transformation stored by them."""

from gradxform.precision.blocks import int4_blockwise, int8_blockwise
from gradxform.precision.codec import Codec, codec
from gradxform.precision.coded import Coded
from gradxform.precision.compress import compress, compress_state, decompress
from gradxform.precision.memory import Memory, memory, saturated
from gradxform.precision.static import bf16, fp8

__all__ = [
    "Codec",
    "Coded",
    "Memory",
    "bf16",
    "codec",
    "compress",
    "compress_state",
    "decompress",
    "fp8",
    "int4_blockwise",
    "int8_blockwise",
    "memory",
    "saturated",
]
