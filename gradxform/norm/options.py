"""What the options of a Flax module mean to a kernel, once for both of Flax's APIs, which name them alike."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.arrays import floating
from gradxform.core.types import DType
from gradxform.norm.arguments import Axes, canonical
from gradxform.norm.batch import RUNNING_VAR, batch_norm, batch_renorm
from gradxform.norm.group import group_norm, instance_norm
from gradxform.norm.layer import layer_norm, rms_norm
from gradxform.norm.statistics import BatchStats, Pending, init_batch_stats

Function = TypeVar("Function", bound=Callable[..., Any])
PENDING = "pending_"


def extends(base: Callable[..., Any]) -> Callable[[Function], Function]:
    """Shows a function's ``**options`` as the keywords of ``base`` that it passes on."""
    def decorate(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())
        named = {p.name for p in own}
        passed = [p for p in inspect.signature(base).parameters.values() if p.name not in named]
        own = [p for p in own if p.kind != p.VAR_KEYWORD]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted(own + passed, key=lambda p: p.kind))
        return function

    return decorate


def check_batch_options(running_var: str, update_every: int, frozen: bool) -> None:
    """Refuses what ``BatchNorm`` has beyond Flax's, where it is wrong.

    Raises:
      TypeError: an option is of the wrong type.
      ValueError: an option is none of what it can be.
    """
    checks.choice("running_var", running_var, RUNNING_VAR)
    checks.integer("update_every", update_every, at_least=1)
    if not isinstance(frozen, bool):
        raise TypeError(f"frozen: expected True or False, got {frozen!r}")


def first_stats(shape: tuple[int, ...], options: Any) -> dict[str, jax.Array]:
    """The variables of running statistics before the first batch, by name."""
    # The plain average of all batches is corrected for its start by what it is.
    stats = init_batch_stats(shape, bias_corrected=options.bias_corrected or options.momentum is None,
                             update_every=options.update_every)
    return stats_to_variables(stats)


def stats_to_variables(stats: BatchStats) -> dict[str, jax.Array]:
    """Running statistics as the variables that hold them; mean and variance are named as in Flax."""
    variables = {"mean": stats.mean, "var": stats.var}
    if stats.weight is not None:
        variables["weight"] = stats.weight
    if stats.pending is not None:
        variables |= {PENDING + name: value for name, value in stats.pending._asdict().items()}
    return variables


def stats_from_variables(variables: Mapping[str, jax.Array]) -> BatchStats:
    """The running statistics that ``stats_to_variables`` took apart."""
    pending = None
    if PENDING + "total" in variables:
        pending = Pending(*(variables[PENDING + name] for name in Pending._fields))
    return BatchStats(variables["mean"], variables["var"], variables.get("weight"), pending)


def call_batch_norm(options: Any, x: Any, stats: BatchStats, scale: Any, bias: Any, use_running_average: bool,
                    axis_name: Any, mask: Any) -> tuple[jax.Array, BatchStats]:
    """A module's batch normalization, or renormalization where it has bounds for it."""
    x = floating("x", x)
    axes = options.axis
    scale, bias = _shaped(scale, x, axes), _shaped(bias, x, axes)
    kept, stats = stats, jax.tree.map(lambda array: _shaped(array, x, axes), stats)
    common = {
        "use_running_average": bool(use_running_average or options.frozen), "momentum": options.momentum,
        "epsilon": options.epsilon, "axis": options.axis, "mask": mask, "axis_name": axis_name,
        "axis_index_groups": options.axis_index_groups, "running_var": options.running_var,
        "update_every": options.update_every, "dtype": _promoted(options.dtype, x, scale, bias),
    }
    if hasattr(options, "r_max"):
        y, new = batch_renorm(x, stats, scale, bias, r_max=options.r_max, d_max=options.d_max, **common)
    else:
        y, new = batch_norm(x, stats, scale, bias, **common)
    return y, jax.tree.map(lambda array, like: array.reshape(like.shape), new, kept)


def call_layer_norm(options: Any, x: Any, scale: Any, bias: Any, mask: Any) -> jax.Array:
    """A module's layer normalization."""
    x = floating("x", x)
    axes = options.feature_axes
    return layer_norm(x, _shaped(scale, x, axes), _shaped(bias, x, axes), axis=options.reduction_axes,
                      feature_axis=axes, **_common(options, x, scale, bias, mask))


def call_rms_norm(options: Any, x: Any, scale: Any, mask: Any) -> jax.Array:
    """A module's root mean square normalization."""
    x = floating("x", x)
    axes = options.feature_axes
    return rms_norm(x, _shaped(scale, x, axes), axis=options.reduction_axes, feature_axis=axes,
                    **_common(options, x, scale, None, mask))


def call_group_norm(options: Any, x: Any, scale: Any, bias: Any, mask: Any) -> jax.Array:
    """A module's group normalization."""
    x = floating("x", x)
    # A module that was given the size of groups has worked out their number.
    number = None if options.num_groups is None else {"num_groups": options.num_groups}
    return group_norm(x, scale, bias, **(number or {"group_size": options.group_size}),
                      reduction_axes=options.reduction_axes, **_common(options, x, scale, bias, mask))


def call_instance_norm(options: Any, x: Any, scale: Any, bias: Any, mask: Any) -> jax.Array:
    """A module's instance normalization."""
    x = floating("x", x)
    axes = options.feature_axes
    return instance_norm(x, _shaped(scale, x, axes), _shaped(bias, x, axes), axis=axes,
                         **_common(options, x, scale, bias, mask))


def _common(options: Any, x: jax.Array, scale: Any, bias: Any, mask: Any) -> dict[str, Any]:
    return {"epsilon": options.epsilon, "mask": mask, "axis_name": options.axis_name,
            "axis_index_groups": options.axis_index_groups, "dtype": _promoted(options.dtype, x, scale, bias)}


def _shaped(array: Any, x: jax.Array, axes: Axes) -> Any:
    """A flat array as ``flax.nnx`` keeps it in the shape of several feature axes; others as they are."""
    if array is None or jnp.ndim(array) != 1 or isinstance(axes, int) or len(tuple(axes)) < 2:
        return array
    shape = tuple(x.shape[axis] for axis in canonical("axis", axes, x.ndim))
    return array.reshape(shape) if array.size == math.prod(shape) else array


def _promoted(dtype: DType, *arrays: Any) -> Any:
    """Flax's rule for the dtype of the result."""
    return dtype if dtype is not None else jnp.result_type(*(array for array in arrays if array is not None))
