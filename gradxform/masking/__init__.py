"""Masked prediction: random masks, blocks, units and spans; patches; tokens picked, put back and corrupted."""

from gradxform.masking.blocks import block_masking, grid_masking, span_masking
from gradxform.masking.patches import denormalize_patches, normalize_patches, patchify, unpatchify
from gradxform.masking.random import RandomMask, num_kept, random_masking
from gradxform.masking.tokens import CorruptedTokens, gather_tokens, mlm_corrupt, scatter_tokens

__all__ = [
    "CorruptedTokens",
    "RandomMask",
    "block_masking",
    "denormalize_patches",
    "gather_tokens",
    "grid_masking",
    "mlm_corrupt",
    "normalize_patches",
    "num_kept",
    "patchify",
    "random_masking",
    "scatter_tokens",
    "span_masking",
    "unpatchify",
]
