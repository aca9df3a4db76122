"""Normalization: pure kernels, and the same as modules of Flax in ``gx.norm.nnx`` and ``gx.norm.linen``."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from gradxform.norm.batch import batch_norm, batch_renorm
from gradxform.norm.group import group_norm, instance_norm
from gradxform.norm.layer import layer_norm, rms_norm
from gradxform.norm.statistics import BatchStats, Pending, init_batch_stats
from gradxform.norm.torch import batch_norm_from_torch, batch_norm_to_torch
from gradxform.norm.weight import weight_standardize

if TYPE_CHECKING:
    from gradxform.norm import linen as linen
    from gradxform.norm import nnx as nnx

__all__ = [
    "BatchStats",
    "Pending",
    "batch_norm",
    "batch_norm_from_torch",
    "batch_norm_to_torch",
    "batch_renorm",
    "group_norm",
    "init_batch_stats",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "weight_standardize",
]


_LAZY = ("linen", "nnx")


def __getattr__(name: str) -> ModuleType:
    # Flax takes longer to import than all the rest; who uses the kernels alone need not wait for it.
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
