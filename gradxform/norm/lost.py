"""A word about running statistics that go nowhere.

JAX hands a function under ``jax.jit`` or ``jax.grad`` a copy of each module among its arguments. What a copy learns
is lost unless the function returns it, and Flax says nothing: training looks well, and evaluation is wrong.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax


class LostUpdateWarning(UserWarning):
    """Running statistics were updated on a copy of a module that JAX had made, and nobody took them from there.

    ``gx.norm.nnx.BatchNorm`` says so when the copy is gone: under ``jax.jit`` and ``jax.grad`` a module among the
    arguments is a copy, and what it learns has to be returned.

    Example:
      >>> import warnings
      >>> import gradxform as gx
      >>> warnings.simplefilter("error", gx.norm.LostUpdateWarning)
    """


class Lineage:
    """Knows whether its module is a copy, and whether what the copy has learnt was taken from it.

    A pytree without leaves: JAX and Flax make one when they make a copy, and take it apart to read the copy.
    """

    def __init__(self, copied: bool = False) -> None:
        self._copied = copied
        self._untaken = False

    def updated(self, value: Any) -> None:
        """Notes that statistics of the module were updated to ``value``."""
        self._untaken = self._copied and isinstance(value, jax.core.Tracer)

    def _flatten(self) -> tuple[tuple[()], None]:
        self._untaken = False
        return (), None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lineage)

    def __hash__(self) -> int:
        return hash(Lineage)

    def __repr__(self) -> str:
        return "Lineage()"

    def __del__(self) -> None:
        if self._untaken:
            warnings.warn(
                "the running statistics of a BatchNorm were updated on a copy of the model that jax.jit or jax.grad "
                "made, and are lost: use nnx.jit and nnx.value_and_grad, or return nnx.state(model, nnx.BatchStat), "
                "with has_aux=True from a function that is differentiated, and nnx.update the model with it",
                LostUpdateWarning, stacklevel=2)


jax.tree_util.register_pytree_node(Lineage, Lineage._flatten, lambda _, __: Lineage(copied=True))
