"""A program to compile, and how its bytes are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

OURS = "gradxform"


class Call(NamedTuple):
    """A function and the shapes that it is compiled for.

    Attributes:
      function: to be compiled.
      arguments: trees of ``jax.ShapeDtypeStruct``.
      donate: positions of arguments whose memory it may take.
      size: what the bytes of HBM are divided by: the number of parameters, or the bytes of the input.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    size: float | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a room.

    Attributes:
      room: what it belongs to.
      name: what it does, the same for all peers.
      peer: whose it is.
      call: makes the call for a mesh of the chips; only the process that compiles makes it.
      sharded: whether it is spread over the chips: compiled for several, the others for one.
      axes: of the mesh.
      unit: of the bytes of HBM over ``Call.size``.
      slow: whether it takes minutes; compiled only where a pattern names it.
    """

    room: str
    name: str
    peer: str
    call: Callable[[Mesh], Call]
    sharded: bool = False
    axes: AxisType = AxisType.Auto
    unit: str = ""
    slow: bool = False

    @property
    def key(self) -> str:
        return f"{self.room} | {self.name} | {self.peer}"


def shaped(shape: tuple[int, ...], dtype: Any = jnp.float32, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """An array to come."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
