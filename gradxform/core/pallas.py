"""Pallas, imported when a kernel is first built: all of this library takes little longer to import than it alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
else:

    class _Late:
        """A module that is imported when something in it is asked for."""

        def __init__(self, name: str):
            self.name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.name), name)

    pl, pltpu = _Late("jax.experimental.pallas"), _Late("jax.experimental.pallas.tpu")


def kernel_call(kernel: Callable[..., None], **options: Any) -> Callable[..., Any]:
    """``pl.pallas_call``, with the kernel traced as without JAX's 64-bit types.

    A TPU has none: with them on, a Python number in a kernel or in the map of a block would be an int64 there.
    """
    called = pl.pallas_call(kernel, **options)

    def on_arrays(*arrays: jax.Array) -> Any:
        with jax.enable_x64(False):
            return called(*arrays)

    return on_arrays


__all__ = ["kernel_call", "pl", "pltpu"]
