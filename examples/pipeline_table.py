"""What the pipeline found, in numbers and words: accuracies, and differences seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def accuracies(found: dict[str, np.ndarray], counts: Sequence[int]) -> str:
    """The mean and standard deviation over seeds.

    Args:
      found: the fractions of test images that each method recognizes, of shape (seeds, counts).
      counts: the numbers of labels a class.

    Returns:
      A table with a line for each method and a column for each count.
    """
    seeds = len(next(iter(found.values())))
    cells = {
        name: [f"{100 * x.mean():.1f}" + _spread(100 * x.std(ddof=1) if seeds > 1 else np.nan) for x in xs.T]
        for name, xs in found.items()
    }
    return _table(f"Test images right [%] by labels a class: mean ± standard deviation of {seeds} seeds", cells, counts)


def differences(found: dict[str, np.ndarray], counts: Sequence[int], rival: str) -> str:
    """How far each method is above one of them, seed by seed: the mean and half its 95% interval.

    Args:
      found: the fractions of test images that each method recognizes, of shape (seeds, counts).
      counts: the numbers of labels a class.
      rival: the method that the others are compared with.

    Returns:
      A table with a line for each other method and a column for each count.
    """
    cells = {}
    for name, xs in found.items():
        if name != rival:
            pairs = [interval(x) for x in (xs - found[rival]).T]
            cells[name] = [f"{mean:+.1f}" + _spread(half) for mean, half in pairs]
    seeds = len(found[rival])
    said = "mean ± half its 95% interval (Student's t)" if seeds > 2 else f"mean of {seeds}, too few for an interval"
    return _table(f"Points above {rival}, seed by seed: {said}", cells, counts)


def interval(x: np.ndarray) -> tuple[float, float]:
    """The mean of fractions in percentage points, and half its 95% interval by Student's t; NaN for fewer than three.

    With two, of one degree of freedom, it is 13 times their standard deviation, whatever that happens to be.
    """
    n = len(x)
    half = stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n) if n > 2 else np.nan
    return 100 * float(x.mean()), 100 * float(half)


def conclusions(name: str, above: np.ndarray, counts: Sequence[int]) -> str:
    """What the differences between a pretrained start and none say, a line for each number of labels.

    Args:
      name: of the method with the pretrained start.
      above: by how much it is above its rival from scratch, of shape (seeds, counts).
      counts: the numbers of labels a class.
    """
    lines = []
    for count, x in zip(counts, above.T, strict=True):
        mean, half = interval(x)
        if np.isnan(half):
            verdict = "fewer than three seeds do not tell whether pretraining pays"
        elif mean > half:
            verdict = "pretraining pays"
        elif mean < -half:
            verdict = "pretraining does not pay but costs"
        else:
            verdict = "it is not clear that pretraining pays"
        lines.append(f"{count} labels a class, {name}: {verdict}, {mean:+.1f}{_spread(half)} points over scratch")
    return "\n".join(lines)


def _spread(x: float) -> str:
    return "" if np.isnan(x) else f" ± {x:.1f}"


def _table(title: str, cells: dict[str, list[str]], counts: Sequence[int]) -> str:
    width = max(map(len, cells))
    rows = [("", [f"{count}" for count in counts]), *cells.items()]
    return "\n".join(["", title, *(f"{name:{width}}" + "".join(f"{cell:>14}" for cell in row) for name, row in rows)])
