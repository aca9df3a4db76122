"""A word about running statistics that go nowhere.

JAX hands a function under ``jax.jit`` or ``jax.grad`` a copy of each module among its arguments. What a copy learns
is lost unless the function returns it, and Flax says nothing: training looks well, and evaluation is wrong.
"""

from __future__ import annotations

import sys
import warnings
from types import FrameType

import jax


class LostUpdateWarning(UserWarning):
    """Running statistics were updated on a copy of a module that JAX had made, and nobody took them from there.

    ``gx.norm.nnx.BatchNorm`` says so when the copy is gone: under ``jax.jit`` and ``jax.grad`` a module among the
    arguments is a copy, and what it learns has to be returned. The same is said of a training call under
    ``jax.eval_shape``, which learns nothing and loses nothing; of Flax's own transformations nothing is said.

    Example:
      >>> import warnings
      >>> import gradxform as gx
      >>> warnings.simplefilter("error", gx.norm.LostUpdateWarning)
    """


class Lineage:
    """Knows whether its module is a copy, and whether what the copy has learnt was taken from it.

    A pytree without leaves: JAX makes one when it makes a copy, and takes it apart to read the copy.
    """

    def __init__(self, copied: bool = False) -> None:
        self._copied = copied
        self._untaken = False

    def updated(self) -> None:
        """Notes that statistics of the module were updated."""
        self._untaken = self._copied

    def used(self) -> None:
        """Notes that the statistics were used, which is what they are for."""
        self._untaken = False

    def _flatten(self) -> tuple[tuple[()], None]:
        self.used()
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


def _copied_by_jax() -> bool:
    """Whether the copy that is being made is JAX's own; those that Flax asks for are Flax's to read."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("jax", "contextlib", "functools", "gradxform"):
            return bool(package != "flax")
        frame = frame.f_back
    return True


jax.tree_util.register_pytree_node(Lineage, Lineage._flatten, lambda _, __: Lineage(copied=_copied_by_jax()))
