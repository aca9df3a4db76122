"""What loading did, array by array."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One param that came from a file.

    Attributes:
      path: the path of the param.
      sources: the names in the file, in the order in which several were joined.
      shape: the shape of the param.
      dtype: the dtype of the param.
      changes: what was done to the arrays of the file, in order.
      nonfinite: how many of its numbers are NaN or infinite.
    """

    path: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    changes: tuple[str, ...] = ()
    nonfinite: int = 0

    @property
    def source(self) -> str:
        """The name in the file; of several the first and the last."""
        return " to ".join(dict.fromkeys([self.sources[0], self.sources[-1]]))

    @property
    def size(self) -> int:
        """The number of its numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What ``load_pretrained`` did; ``print`` shows it as a table.

    Attributes:
      checkpoint: where the arrays came from.
      loaded: every param that came from there, in the order of the params.
      new: the paths of the params that were left as they were.
      skipped: the names in the file that ``skip`` names.
      unused: the names in the file whose param was left new.
      idle: the rules that matched nothing.

    Example:
      >>> from gradxform.transfer.report import Loaded, LoadReport
      >>> print(LoadReport("model.npz", (Loaded("dense/kernel", ("dense.weight",), (2, 3), "float32",
      ...                                       ("transpose (1, 0)",)),), new=("head/bias",)))
      model.npz: 1 of 2 params loaded, 6 numbers, 24 bytes
      loaded
        dense/kernel  (2, 3) float32  <- dense.weight, transpose (1, 0)
      left new
        head/bias
    """

    checkpoint: str
    loaded: tuple[Loaded, ...] = ()
    new: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    @property
    def transformed(self) -> tuple[Loaded, ...]:
        """Those of ``loaded`` that are not as they are in the file."""
        return tuple(item for item in self.loaded if item.changes)

    @property
    def size(self) -> int:
        """The number of all numbers that were loaded."""
        return sum(item.size for item in self.loaded)

    @property
    def nbytes(self) -> int:
        """The number of their bytes in the params."""
        return sum(item.nbytes for item in self.loaded)

    @property
    def nonfinite(self) -> int:
        """How many of them are NaN or infinite."""
        return sum(item.nonfinite for item in self.loaded)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.new)
        warning = f", {self.nonfinite:,} not finite" if self.nonfinite else ""
        lines = [
            f"{self.checkpoint}: {len(self.loaded)} of {total} params loaded, {self.size:,} numbers, "
            f"{self.nbytes:,} bytes{warning}"
        ]
        lines += _section(
            "loaded",
            _columns(
                [
                    (
                        item.path,
                        f"{item.shape} {item.dtype}",
                        "<- "
                        + ", ".join(
                            [item.source, *item.changes, *([f"{item.nonfinite} not finite"] if item.nonfinite else [])]
                        ),
                    )
                    for item in self.loaded
                ]
            ),
        )
        lines += _section("left new", self.new)
        lines += _section("skipped in the file", self.skipped)
        lines += _section("unused in the file, for a param left new", self.unused)
        lines += _section("rules that matched nothing", self.idle)
        return "\n".join(lines)


def _section(title: str, rows: Sequence[str]) -> list[str]:
    return [title, *(f"  {row}" for row in rows)] if rows else []


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
