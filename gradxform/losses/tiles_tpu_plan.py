"""How the kernels for a TPU go through all pairs: blocks that suit its units, as many as its memory holds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core.pallas import pltpu
from gradxform.losses.walks import Tiling

SUBLANES, LANES = 8, 128
"""Of a register of 32-bit elements."""
BLOCKS = 512, 256, 128
"""Rows and columns of a tile."""
PRODUCTS = {2: 2**26, 4: 2**24}
"""Multiplications of a tile at most, by the bytes of an element: they are spelled out, in 32 bits six times."""
MOST_FEATURES = 4096
LEAST_VMEM = 16 * 2**20
"""Bytes that any TPU has."""
SHARE = 0.75
"""Of VMEM, for a kernel."""
NEVER = 1e30
"""A log-sum-exp beside which every exponential is 0."""


class Plan(NamedTuple):
    """How kernels go through the pairs.

    Attributes:
      tiling: what is wanted.
      rows: how many there are.
      columns: how many there are.
      width: features, filled up to whole registers.
      block: rows and columns of a tile.
      part: blocks of columns that stay in VMEM together.
      vmem: bytes of VMEM that a kernel may take.
    """

    tiling: Tiling
    rows: int
    columns: int
    width: int
    block: int
    part: int
    vmem: int

    @property
    def down(self) -> int:
        """Blocks of rows."""
        return -(-self.rows // self.block)

    @property
    def across(self) -> int:
        """Blocks of columns."""
        return -(-self.columns // self.block)

    @property
    def parts(self) -> int:
        """How often the rows are gone through."""
        return -(-self.across // self.part)

    @property
    def turns(self) -> int:
        """How many blocks of rows are put beside a part: all, or those of which the triangle has tiles there."""
        if self.parts > 1 and self.tiling.triangle and self.down == self.across:
            return min(self.down, self.part + self.across // 2)
        return self.down

    @property
    def together(self) -> int:
        """Columns that stay in VMEM together."""
        return self.part * self.block

    @property
    def by_column(self) -> bool:
        """Whether columns have log-sum-exps."""
        return self.tiling.triangle or self.tiling.columns


def planned(tiling: Tiling, rows: jax.Array, columns: jax.Array) -> Plan | None:
    """How to go through the pairs; None where the kernels do not: in other dtypes, or with too many features."""
    (down, features), across, size = rows.shape, columns.shape[0], rows.dtype.itemsize
    width = _up(features, LANES)
    if rows.dtype not in (jnp.float32, jnp.bfloat16) or width > MOST_FEATURES:
        return None
    blocks = [
        block
        for block in BLOCKS
        if block == LANES or (block**2 * width <= PRODUCTS[size] and block <= _up(min(down, across), LANES))
    ]
    if tiling.triangle and down != across:
        # A tile has to be one of the other devices' tiles too.
        blocks = [block for block in blocks if down % block == 0]
        if not blocks:
            return planned(tiling._replace(triangle=False, columns=False), rows, columns)
    vmem = int(SHARE * _vmem())
    for block in blocks:
        # Rows come in, and gradients come and go, while others are worked on; a tile is there about four times.
        room = vmem - block * (width * (2 * size + 5 * 4) + 4 * block * 4 + 8 * LANES * 4)
        part, every = room // (block * (width * (size + 4) + 10 * SUBLANES * 4)), -(-across // block)
        if part > 0:
            return Plan(tiling, down, across, width, block, -(-every // _parts(every, part)), vmem)
    return None


def _parts(every: int, most: int) -> int:
    """Into how many parts blocks are divided, of ``most`` at most: evenly, for else vectors would be copied."""
    fewest = -(-every // most)
    return next((n for n in range(fewest, 2 * fewest) if every % n == 0), fewest)


def _vmem() -> int:
    try:
        return int(pltpu.get_tpu_info().vmem_capacity_bytes)
    except ValueError:  # what this process does not see
        return LEAST_VMEM


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
