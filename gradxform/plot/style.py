"""How lines look: told apart by colour-blind readers, and in black and white by dashes and markers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, which vanishes on white paper, and ordered from dark to light.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Line(NamedTuple):
    """The look of one line.

    Attributes:
      color: as hexadecimal red, green and blue.
      dashes: a line style of matplotlib.
      marker: a marker of matplotlib.
    """

    color: str
    dashes: Any
    marker: str


def lines() -> Iterator[Line]:
    """The looks of the first, second, ... line; the first 28 differ."""
    return map(Line, itertools.cycle(COLORS), itertools.cycle(DASHES), itertools.cycle(MARKERS))


def named(values: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """What to draw, by its label; a value without one is labelled by the call that makes it."""
    return dict(values) if isinstance(values, Mapping) else {repr(value): value for value in values}


def axes(ax: Axes | None) -> Axes:
    """``ax``, or the axes of a new figure.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "gradxform.plot needs matplotlib, which cannot be imported here; "
            "install it with: pip install matplotlib (or with the extra: pip install 'gradxform[examples]')"
        ) from error
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    return ax


def tidy(ax: Axes) -> None:
    """Takes away what carries no information."""
    ax.spines[["top", "right"]].set_visible(False)
