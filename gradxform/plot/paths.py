"""The paths of transformations over the contour lines of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.core import checks
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import float_dtype
from gradxform.core.types import AnyTransformation, State
from gradxform.plot.style import axes, finish, lines, named
from gradxform.transforms.combine import apply_updates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Limits = tuple[float, float]

_GRID = 201
_LEVELS = 14


def trajectories(
    loss: Callable[[jax.Array], ArrayLike],
    transformations: Mapping[str, AnyTransformation] | Sequence[AnyTransformation],
    start: Sequence[float],
    steps: int,
    *,
    ax: Axes | None = None,
    xlim: Limits | None = None,
    ylim: Limits | None = None,
) -> Axes:
    """Draws the paths that transformations take down a loss of two parameters.

    Each starts from the circle and ends at its own marker. The heights of the contour lines grow as the cubes
    1, 8, 27, ..., so that the floor of a valley shows as well as its walls.

    Args:
      loss: a function from an array of shape (2,) to a real scalar that jax can differentiate.
      transformations: the transformations by label, or a sequence of them, each then labelled by the call that
        makes it; ours or optax's.
      start: the two parameters to start from.
      steps: the number of updates, >= 1.
      ax: the matplotlib axes to draw into; by default those of a new figure.
      xlim: the range of the first parameter in the picture; by default it holds every path.
      ylim: the range of the second.

    Returns:
      The axes, with one line of ``steps + 1`` points a transformation, labelled.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: ``loss`` is not a function, an argument is not a transformation, or ``steps`` is not an integer.
      ValueError: ``start`` is not two numbers, ``steps`` is less than 1, or a path that has to fit in the picture
        leaves the finite numbers.

    Example:
      >>> import gradxform as gx
      >>> loss = lambda w: 0.5 * (w[0] ** 2 + 20.0 * w[1] ** 2)
      >>> ax = gx.plot.trajectories(loss, {"SGD": gx.sgd(0.09), "Adam": gx.adam(0.3)}, (-4.0, 1.0), 30)
      >>> [(line.get_label(), len(line.get_xdata())) for line in ax.lines[:2]]
      [('SGD', 31), ('Adam', 31)]
    """
    checks.function("loss", loss)
    checks.integer("steps", steps, at_least=1)
    origin = jnp.asarray(start, float_dtype())
    if origin.shape != (2,):
        raise ValueError(f"start: expected two numbers, got {start!r}")
    paths = [(label, _path(label, loss, tx, origin, steps)) for label, tx in named(transformations)]
    xlim, ylim = (
        limits or _around(name, i, [np.asarray(origin)[None], *(path for _, path in paths)])
        for i, (name, limits) in enumerate([("xlim", xlim), ("ylim", ylim)])
    )

    x, y = np.linspace(*xlim, _GRID), np.linspace(*ylim, _GRID)
    height = _heights(loss, x, y)
    ax = axes(ax)
    ax.contour(x, y, height, levels=_levels(height), colors="0.72", linewidths=0.7, zorder=1)
    for (label, path), line in zip(paths, lines(), strict=False):
        ax.plot(
            *path.T,
            label=label,
            color=line.color,
            linestyle="solid",
            linewidth=1.4,
            marker=line.marker,
            markersize=3,
            markevery=max(1, steps // 60),
            zorder=3,
        )
    for (_, path), line in zip(paths, lines(), strict=False):
        ax.plot(*path[-1], color=line.color, marker=line.marker, markersize=9, markeredgecolor="white", zorder=4)
    ax.plot(*np.asarray(origin), color="white", marker="o", markersize=9, markeredgecolor="black", zorder=5)
    ax.set(xlim=xlim, ylim=ylim, xlabel="First parameter", ylabel="Second parameter")
    finish(ax)
    return ax


def _path(
    label: str, loss: Callable[[jax.Array], ArrayLike], tx: AnyTransformation, start: jax.Array, steps: int
) -> np.ndarray:
    """The parameters before every update and after the last, as an array of shape (steps + 1, 2)."""
    stage_of(tx, f"transformations[{label!r}]")  # or it raises

    def step(carry: tuple[jax.Array, State], _: None) -> tuple[tuple[jax.Array, State], jax.Array]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = apply_updates(params, updates)
        return (params, state), params

    _, after = jax.jit(lambda start: jax.lax.scan(step, (start, tx.init(start)), length=steps))(start)
    return np.concatenate([np.asarray(start)[None], np.asarray(after)])


def _heights(loss: Callable[[jax.Array], ArrayLike], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    points = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), axis=-1)
    return np.asarray(jax.vmap(jax.vmap(loss))(points))


def _levels(height: np.ndarray) -> np.ndarray:
    """Levels from the lowest to the highest point, closer together toward the lowest: see ``trajectories``."""
    finite = height[np.isfinite(height)]
    return finite.min() + (np.ptp(finite) or 1.0) * np.linspace(0.0, 1.0, _LEVELS + 2)[1:-1] ** 3


def _around(name: str, i: int, paths: list[np.ndarray]) -> Limits:
    """A range that holds parameter ``i`` of every path, with a margin."""
    values = np.concatenate([path[:, i] for path in paths])
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: expected a range, because a path leaves the finite numbers; got None")
    margin = 0.08 * np.ptp(values) or 1.0
    return float(values.min() - margin), float(values.max() + margin)
