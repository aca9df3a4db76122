"""Pallas, imported when a kernel is first built: all of this library takes little longer to import than it alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

__all__ = ["pl", "pltpu"]
