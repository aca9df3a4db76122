"""How lines look: told apart by colour-blind readers, and in black and white by dashes and markers."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from gradxform.core.printing import format_argument
from gradxform.core.value import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, which vanishes on white paper; the darkest of its hues come first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
Dashes: TypeAlias = str | tuple[int, tuple[float, ...]]
"""A line style of matplotlib: a name, or an offset and the lengths of strokes and gaps in turn."""

DASHES: tuple[Dashes, ...] = ("solid", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LABEL_WIDTH = 48
"""Letters in a line of a label made here."""

T = TypeVar("T")


class Line(NamedTuple):
    """The look of one line.

    Attributes:
      color: as hexadecimal red, green and blue.
      dashes: a line style of matplotlib.
      marker: a marker of matplotlib.
    """

    color: str
    dashes: Dashes
    marker: str


def lines() -> Iterator[Line]:
    """The looks of the first, second, ... line; the first 28 differ."""
    return map(Line, itertools.cycle(COLORS), itertools.cycle(DASHES), itertools.cycle(MARKERS))


def named(values: Mapping[str, T] | Sequence[T]) -> list[tuple[str, T]]:
    """What to draw, each with its label; one without is labelled by the call that makes it, in short."""
    if isinstance(values, Mapping):
        return list(values.items())
    # A label wider than the picture would leave no room for the lines.
    return [(textwrap.fill(short(value), LABEL_WIDTH, break_on_hyphens=False), value) for value in values]


def short(value: object) -> str:
    """The call that makes ``value``, less the room it is in, the defaults and the names of what has no default."""
    if isinstance(value, Value):
        parts: list[str] = []
        for name, parameter in value._definition.signature.parameters.items():
            argument = value.arguments[name]
            if parameter.kind == parameter.VAR_POSITIONAL:
                parts += map(short, argument)
            elif parameter.default is parameter.empty:
                parts.append(short(argument))
            elif repr(argument) != repr(parameter.default):
                parts.append(f"{name}={short(argument)}")
        return f"{value.name.rpartition('.')[2]}({', '.join(parts)})"
    # What is not a value has no call to show but a name with a module: <optax.schedules._schedule.cosine>.
    text = format_argument(value)
    return text.strip("<>").rpartition(".")[2] if text.startswith("<") else " ".join(text.split())


def axes(ax: Axes | None) -> Axes:
    """``ax``, or the axes of a new figure.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "gradxform.plot needs matplotlib, which cannot be imported; install it with: pip install matplotlib, "
            "or together with gradxform: pip install 'gradxform[plot]'"
        ) from error
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    return ax


def finish(ax: Axes) -> None:
    """Takes away what carries no information, and adds a legend where there is something to tell apart."""
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(framealpha=1.0, edgecolor="0.72", fancybox=False)
