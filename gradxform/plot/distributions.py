"""How numbers are spread: activations, weights, gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.core import checks
from gradxform.plot.style import axes, finish, lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def distributions(
    values: Mapping[str, ArrayLike],
    *,
    bins: int = 60,
    range: tuple[float, float] | None = None,
    density: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws how the numbers of arrays are spread, one outline an array on shared bins.

    The legend gives the mean and the standard deviation of each array: of all its numbers, also those outside the
    picture. Numbers that are not finite have no place in it; the legend says how many there are.

    Args:
      values: the arrays by label, for example the activations of each layer; of any shape and any floating-point or
        integer dtype, bfloat16 included.
      bins: the number of bins, >= 1.
      range: the lowest and the highest number in the picture; by default it holds every finite number of every array.
      density: whether an outline's height is the share of the array's finite numbers that a unit of the axis holds,
        so that arrays of different sizes compare; if not, it is the number of them in a bin.
      ax: the matplotlib axes to draw into; by default those of a new figure.

    Returns:
      The axes, with one outline an array, labelled.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: ``values`` is not a mapping, an array does not hold real numbers, or ``bins`` is not an integer.
      ValueError: there is no array, an array has no finite number, ``bins`` is less than 1, or ``range`` is not two
        finite numbers in order.

    Example:
      >>> import jax
      >>> import gradxform as gx
      >>> x = jax.random.normal(jax.random.key(0), (64, 32), "bfloat16")
      >>> ax = gx.plot.distributions({"before": 3 * x + 1, "after": gx.norm.layer_norm(x)})
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['before: mean 0.89, std 3.00', 'after: mean 0.00, std 1.00']
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"values: expected a mapping from label to array, got {type(values).__name__}")
    if not values:
        raise ValueError("values: expected at least one array, got none")
    checks.integer("bins", bins, at_least=1)
    samples = {label: _sample(label, value) for label, value in values.items()}
    low, high = _limits(range, list(samples.values()))

    ax = axes(ax)
    for (label, sample), line in zip(samples.items(), lines(), strict=False):
        counts, edges = np.histogram(sample.finite, bins, (low, high))
        heights = counts / (sample.finite.size * (high - low) / bins) if density else counts
        ax.stairs(heights, edges, fill=True, color=line.color, alpha=0.12)
        ax.stairs(
            heights,
            edges,
            baseline=None,
            label=f"{label}: {sample.summary()}",
            color=line.color,
            linestyle=line.dashes,
            linewidth=1.8,
        )
    ax.set(xlabel="Value", ylabel="Density" if density else "Count", xlim=(low, high))
    ax.set_ylim(bottom=0.0)
    finish(ax)
    return ax


class _Sample(NamedTuple):
    """The finite numbers of an array, in float64, and how many others it has."""

    finite: np.ndarray
    others: int

    def summary(self) -> str:
        mean, std = float(self.finite.mean()), float(f"{self.finite.std():.3g}")
        # To the third digit of the standard deviation; what is finer is chance.
        digits = 2 - math.floor(math.log10(std)) if std else 15
        form = f".{digits}f" if 0 <= digits <= 6 else ".6g"
        told = f"mean {round(mean, digits) + 0.0:{form}}, std {std:{form}}"
        return f"{told}, {self.others:,} not finite" if self.others else told


def _sample(label: str, value: ArrayLike) -> _Sample:
    name, array = f"values[{label!r}]", np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    numbers = array.astype(np.float64).ravel()
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        raise ValueError(f"{name}: expected at least one finite number, got {numbers.size} that are not")
    return _Sample(finite, numbers.size - finite.size)


def _limits(limits: tuple[float, float] | None, samples: list[_Sample]) -> tuple[float, float]:
    if limits is None:
        low = min(float(sample.finite.min()) for sample in samples)
        high = max(float(sample.finite.max()) for sample in samples)
        # All the same number: bins of some width around it.
        margin = 0.0 if low < high else 0.5 * (abs(low) or 1.0)
        return low - margin, high + margin
    ends = np.asarray(limits)
    if ends.shape != (2,) or not jnp.issubdtype(ends.dtype, jnp.number) or not np.isfinite(ends).all():
        raise ValueError(f"range: expected two finite numbers, got {limits!r}")
    if not ends[0] < ends[1]:
        raise ValueError(f"range: expected the lower number first, got {limits!r}")
    return float(ends[0]), float(ends[1])
