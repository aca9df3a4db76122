"""Batch norms of torch as ours and back; numbers only, so torch itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from gradxform.core import checks
from gradxform.norm.statistics import BatchStats

NAMES = {"weight": "scale", "bias": "bias"}


def batch_norm_from_torch(
    state: Mapping[str, npt.ArrayLike], *, momentum: float | None = 0.1, eps: float = 1e-5, count: int | None = None
) -> tuple[dict[str, jax.Array], BatchStats, dict[str, Any]]:
    """What the ``state_dict`` of a torch ``BatchNorm`` is here: parameters, running statistics and options.

    torch's momentum is the share of the new (1 less ours), its running variance unbiased (ours is biased unless the
    options say otherwise), and ``momentum=None`` its plain average of all batches, whose number it counts.

    Args:
      state: the arrays by torch's names, without a prefix: ``running_mean`` and ``running_var``, ``weight`` and
        ``bias`` where it is affine, ``num_batches_tracked``; anything that NumPy takes.
      momentum: of the torch module, in [0, 1], or None.
      eps: of the torch module, at least 0.
      count: how many values a training batch had for each feature; given, the variance becomes the biased one, so that
        training goes on as Flax does it, and else as torch does.

    Returns:
      ``scale`` and ``bias`` (those that there are), the statistics, and the keywords that ``batch_norm`` and the
      modules need to go on as torch would: ``momentum``, ``epsilon`` and ``running_var``.

    Raises:
      TypeError: a number is none.
      ValueError: running statistics are missing, a name is unknown, shapes differ, or a number is out of range.

    Example:
      >>> import numpy as np
      >>> import gradxform as gx
      >>> state = {"weight": np.ones(2), "bias": np.zeros(2), "running_mean": np.zeros(2), "running_var": np.ones(2),
      ...          "num_batches_tracked": np.array(7)}
      >>> params, stats, options = gx.norm.batch_norm_from_torch(state)
      >>> options
      {'momentum': 0.9, 'epsilon': 1e-05, 'running_var': 'unbiased'}
      >>> y, stats = gx.norm.batch_norm(np.ones((4, 2), np.float32), stats, **params, **options,
      ...                               use_running_average=False)
    """
    _check(momentum, eps, "eps", count)
    known = {*NAMES, "running_mean", "running_var", "num_batches_tracked"}
    if unknown := sorted(set(state) - known):
        raise ValueError(
            f"state: expected the names of a torch BatchNorm, {', '.join(sorted(known))}, got "
            f"{', '.join(unknown)}; a prefix has to be taken off first"
        )
    if missing := [name for name in ("running_mean", "running_var") if state.get(name) is None]:
        raise ValueError(
            f"state: expected running statistics, got none under {' and '.join(missing)}; a module with "
            "track_running_stats=False has none, and ours needs none with it"
        )
    arrays = {name: np.asarray(value) for name, value in state.items() if value is not None}
    shape = arrays["running_mean"].shape
    for name, array in arrays.items():
        if name != "num_batches_tracked" and (array.shape != shape or array.ndim != 1):
            raise ValueError(f"state[{name!r}]: expected a number for each of {shape} features, got {array.shape}")
    var = arrays["running_var"]
    if count is not None:
        var = var * ((count - 1) / count)
    weight = None
    if momentum is None:
        if "num_batches_tracked" not in arrays:
            raise ValueError("state: expected num_batches_tracked, without which momentum=None has no average")
        weight = jnp.full(shape, float(arrays["num_batches_tracked"]), jnp.float32)
    params = {ours: jnp.asarray(arrays[theirs]) for theirs, ours in NAMES.items() if theirs in arrays}
    stats = BatchStats(jnp.asarray(arrays["running_mean"], jnp.float32), jnp.asarray(var, jnp.float32), weight)
    return (
        params,
        stats,
        {
            "momentum": None if momentum is None else 1 - momentum,
            "epsilon": eps,
            "running_var": "unbiased" if count is None else "biased",
        },
    )


def batch_norm_to_torch(
    params: Mapping[str, ArrayLike],
    stats: BatchStats,
    *,
    momentum: float | None = 0.99,
    epsilon: float = 1e-5,
    running_var: str = "biased",
    count: int | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What parameters and running statistics are to a torch ``BatchNorm``: its ``state_dict`` and its options.

    Args:
      params: ``scale`` and ``bias``, or none of them.
      stats: the running statistics.
      momentum: in our sense, in [0, 1], or None for the plain average of all batches.
      epsilon: at least 0.
      running_var: what the running variance is, ``"biased"`` or ``"unbiased"``.
      count: how many values a training batch had for each feature; given, a biased variance becomes the unbiased one
        that torch keeps. Without it the variance stays as it is, which is right for evaluation.

    Returns:
      The state as NumPy arrays by torch's names, and the keywords ``momentum`` and ``eps`` of the torch module.

    Raises:
      TypeError: a number is none.
      ValueError: a name is unknown, or a number is out of range.

    Example:
      >>> import gradxform as gx
      >>> state, options = gx.norm.batch_norm_to_torch({}, gx.norm.init_batch_stats(2), momentum=0.75)
      >>> sorted(state), options
      (['num_batches_tracked', 'running_mean', 'running_var'], {'momentum': 0.25, 'eps': 1e-05})
    """
    _check(momentum, epsilon, "epsilon", count)
    checks.choice("running_var", running_var, ("biased", "unbiased"))
    if unknown := sorted(set(params) - set(NAMES.values())):
        raise ValueError(f"params: expected scale and bias, got {', '.join(unknown)}")
    if momentum is None and stats.weight is None:
        raise ValueError("momentum: None, for the average of all batches, needs statistics with a weight")
    var = np.asarray(stats.var)
    if running_var == "biased" and count is not None:
        var = var * np.asarray(count / (count - 1), var.dtype)
    batches = 0 if momentum is not None or stats.weight is None else round(float(jnp.max(stats.weight)))
    state = {theirs: np.asarray(params[ours]) for theirs, ours in NAMES.items() if ours in params}
    state |= {
        "running_mean": np.asarray(stats.mean),
        "running_var": var,
        "num_batches_tracked": np.asarray(batches, np.int64),
    }
    return state, {"momentum": None if momentum is None else 1 - momentum, "eps": epsilon}


def _check(momentum: float | None, epsilon: float, name: str, count: int | None) -> None:
    if momentum is not None:
        checks.real("momentum", momentum, at_least=0, at_most=1)
    checks.real(name, epsilon, at_least=0)
    if count is not None:
        checks.integer("count", count, at_least=2)
