"""Keeping a computation out of the fusions around it, where XLA would otherwise fuse it badly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

T = TypeVar("T")
Args = TypeVarTuple("Args")


def isolated(fun: Callable[[Unpack[Args]], T], *args: *Args) -> T:
    """``fun(*args)``, recomputed in a backward pass and, on CPU, compiled by itself.

    XLA's CPU backend fuses a reduction together with what feeds it and with what its result is broadcast into, and
    for that it writes arrays of the full size to memory; the barriers that stop other backends are gone by then.
    A call that is not inlined is a wall that fusions do not cross: behind it a reduction runs at the speed of memory.
    Likewise a pass over pixels that is not to be done anew for each number that is made of its result.

    Args:
      fun: a pure function of arrays.
      *args: its arguments.

    Returns:
      What ``fun`` returns.
    """
    # The arguments are all that a backward pass keeps. Other backends fuse the reductions of one pass with each other,
    # for which nothing may stand between them.
    recomputed = jax.checkpoint(fun, prevent_cse=False)

    def inlining(*args: *Args) -> T:
        # What is traced under a mark inherits it, and much of jax.numpy is calls.
        with set_xla_metadata(inlineable="true"):
            return fun(*args)

    def called(*args: *Args) -> T:
        with set_xla_metadata(inlineable="false"):
            made: T = jax.jit(jax.checkpoint(inlining, prevent_cse=False))(*args)
        return made

    chosen: T = lax.platform_dependent(*args, cpu=called, default=recomputed)
    return chosen
