"""Schedules as curves over the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core import checks
from gradxform.core.schedule import Schedule
from gradxform.core.types import AnySchedule
from gradxform.plot.style import axes, finish, lines, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def schedules(
    schedules: Mapping[str, AnySchedule] | Sequence[AnySchedule], steps: int, *, ax: Axes | None = None
) -> Axes:
    """Draws schedules over the steps of a run.

    Args:
      schedules: the schedules by label, or a sequence of them, each then labelled by the call that makes it; ours,
        optax's, or any function from the step to a number that jax can trace.
      steps: the number of steps, >= 1; step 0 to ``steps - 1`` are drawn.
      ax: the matplotlib axes to draw into; by default those of a new figure.

    Returns:
      The axes, with one line a schedule.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: a schedule is not a function, or ``steps`` is not an integer.
      ValueError: ``steps`` is less than 1.

    Example:
      >>> import gradxform as gx
      >>> ax = gx.plot.schedules({"cosine": gx.schedules.cosine(3e-4, 1000, 1e-5)}, 1000)
      >>> ax.get_xlabel(), ax.get_ylabel(), len(ax.lines)
      ('Step', 'Learning rate', 1)
      >>> ax.figure.savefig("rates.png")  # doctest: +SKIP
    """
    checks.integer("steps", steps, at_least=1)
    curves = [(label, _values(label, schedule, steps)) for label, schedule in named(schedules)]
    ax = axes(ax)
    for (label, values), line in zip(curves, lines(), strict=False):
        ax.plot(np.arange(steps), values, label=label, color=line.color, linestyle=line.dashes, linewidth=2.0)
    ax.set_xlabel("Step")
    ax.set_ylabel("Learning rate")
    ax.margins(x=0.01)
    finish(ax)
    return ax


def _values(label: str, schedule: AnySchedule, steps: int) -> np.ndarray:
    checks.function(f"schedules[{label!r}]", schedule)
    if isinstance(schedule, Schedule):
        return np.asarray(schedule(jnp.arange(steps)))
    return np.asarray(jax.vmap(lambda step: jnp.asarray(schedule(step)))(jnp.arange(steps)))
