"""How a tree lies on a mesh, as a table: what a device holds, and what it holds whole that it could share."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform.core import checks
from gradxform.core.manual import ShardingError
from gradxform.core.trees import flatten, named_leaves, subtrees
from gradxform.core.types import PyTree
from gradxform.sharding.fsdp import division
from gradxform.sharding.specs import Leaf, known_sharding, names, parts


@dataclasses.dataclass(frozen=True)
class Row:
    """How one leaf lies.

    Attributes:
      path: of the leaf.
      shape: of the whole leaf.
      spec: how it lies; None where it is on one device, or wherever it is put.
      bytes: what a device holds of it.
      spare: how many of them it would not hold if the leaf were divided over the devices that now hold the same.
    """

    path: str
    shape: tuple[int, ...]
    spec: P | None
    bytes: int
    spare: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the leaves of a tree lie; prints as a table.

    Attributes:
      rows: of each leaf, in the order of the tree.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.sharding.layout(gx.sgd(0.1, momentum=0.9).init({"w": jnp.ones((8, 4))})).bytes
      128
    """

    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        """What a device holds of all."""
        return sum(row.bytes for row in self.rows)

    def check(self, tolerance: float = 0.02) -> None:
        """Refuses a tree of which too much is whole on every device.

        Args:
          tolerance: the share of a device's bytes that may be held by others too, although they could be divided.

        Raises:
          ShardingError: more is, with the five leaves that cost most.
        """
        checks.real("tolerance", tolerance, at_least=0)
        spare = sum(row.spare for row in self.rows)
        if spare > tolerance * self.bytes:
            worst = sorted((row for row in self.rows if row.spare), key=lambda row: -row.spare)[:5]
            listed = "; ".join(f"'{row.path}' {list(row.shape)} {row.spec}, {row.spare:,} bytes" for row in worst)
            raise ShardingError(
                f"layout: expected at most {tolerance:.1%} of the {self.bytes:,} bytes of a device to "
                f"be held by others too, got {spare / self.bytes:.1%}: {listed}"
            )

    def __str__(self) -> str:
        lines = [("leaf", "shape", "lies", "bytes a device", "could be less by")]
        lines += [
            (row.path, str(list(row.shape)), str(row.spec), f"{row.bytes:,}", f"{row.spare:,}") for row in self.rows
        ]
        lines.append(("all", "", "", f"{self.bytes:,}", f"{sum(row.spare for row in self.rows):,}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                [
                    *(cell.ljust(width) for cell, width in zip(line[:3], widths, strict=False)),
                    *(cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)),
                ]
            )
            for line in lines
        )


def layout(tree: PyTree, shardings: PyTree | None = None) -> Layout:
    """How the leaves of a tree lie: of params, or of the state of a transformation.

    Args:
      tree: a tree of arrays, or of ``jax.ShapeDtypeStruct``.
      shardings: a tree like it of ``NamedSharding``; by default where its leaves lie.

    Returns:
      A table with a row for each leaf; ``.check()`` raises if too much is whole on every device.

    Raises:
      ValueError: ``shardings`` has another structure, with the first path that differs.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
      >>> print(gx.sharding.layout({"w": jax.device_put(jnp.ones((8, 4)), rows)}))
      leaf  shape   lies        bytes a device  could be less by
      w     [8, 4]  P('data',)             128                 0
      all                                  128                 0
    """
    leaves, treedef = flatten(tree)
    given = [None] * len(leaves) if shardings is None else subtrees(treedef, tree, shardings, "shardings", "tree")
    return Layout(
        tuple(
            _row(path, leaf, own if own is not None else known_sharding(leaf))
            for (path, leaf), own in zip(named_leaves(tree), given, strict=True)
        )
    )


def _row(path: str, leaf: Leaf, sharding: NamedSharding | None) -> Row:
    shape = tuple(jnp.shape(leaf))
    dtype = jnp.result_type(leaf)
    size = getattr(dtype, "itemsize", 8)
    if sharding is None:
        return Row(path, shape, None, math.prod(shape) * size, 0)
    held = math.prod(sharding.shard_shape(shape)) * size
    used = [name for entry in sharding.spec for name in names(entry)]
    rest = [name for name in sharding.mesh.axis_names if name not in used]
    further = division(sharding.shard_shape(shape), [None] * len(shape), sharding.mesh, rest)
    pieces = math.prod(parts(sharding.mesh, some) for some in further)
    return Row(path, shape, P(*sharding.spec), held, held - held // pieces)
