"""What the options of a Flax module mean to a kernel, once for both of Flax's APIs, which name them alike."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.arrays import floating
from gradxform.core.types import Scalar
from gradxform.norm.arguments import Axes, canonical
from gradxform.norm.batch import RUNNING_VAR
from gradxform.norm.statistics import BatchStats, Pending, init_batch_stats

Function = TypeVar("Function", bound=Callable[..., object])
Module: TypeAlias = Any
"""A norm of Flax, of either kind: its options are attributes."""
PENDING = "pending_"
SHARED = {name: name for name in ("epsilon", "axis_name", "axis_index_groups")}
BATCH = {name: name for name in ("axis", "momentum", "running_var", "update_every")}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel, and what it calls the options of a module.

    Attributes:
      function: the kernel.
      words: keywords of the kernel, and which option of the module each is; those that all norms have go without.
      bias: whether it takes a bias.
    """

    function: Callable[..., Any]
    words: Mapping[str, str]
    bias: bool = True

    def feature_axes(self, module: Module) -> Axes:
        """The axes that the module's parameters lie along; the last one, where it has no option for them."""
        word = self.words.get("feature_axis", self.words.get("axis"))
        return -1 if word is None else getattr(module, word)  # type: ignore[no-any-return]

    def run(
        self,
        module: Module,
        x: jax.Array,
        *,
        scale: jax.Array | None,
        bias: jax.Array | None,
        mask: jax.Array | None,
        **given: object,
    ) -> Any:
        """What the kernel makes of ``x`` with the options of ``module``, and those that are ``given`` instead."""
        x = floating("x", x)
        params = {"scale": scale, "bias": bias} if self.bias else {"scale": scale}
        params = {name: shaped(array, x, self.feature_axes(module)) for name, array in params.items()}
        dtype = module.dtype
        if dtype is None:  # Flax's rule for the dtype of the result
            dtype = jnp.result_type(x, *(array for array in params.values() if array is not None))
        options = {name: getattr(module, word) for name, word in (SHARED | dict(self.words)).items()}
        return self.function(x, **params, mask=mask, dtype=dtype, **(options | given))


def shaped(array: jax.Array | None, x: jax.Array, axes: Axes) -> jax.Array | None:
    """A flat array as ``flax.nnx`` keeps it in the shape of several feature axes; others as they are."""
    if array is None or jnp.ndim(array) != 1 or isinstance(axes, int) or len(tuple(axes)) < 2:
        return array
    shape = tuple(x.shape[axis] for axis in canonical("axis", axes, x.ndim))
    return array.reshape(shape) if array.size == math.prod(shape) else array


def call_batch_norm(
    module: Module,
    x: jax.Array,
    variables: Mapping[str, jax.Array],
    *,
    use_running_average: bool | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    starting: bool = False,
    **given: object,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A module's batch normalization or renormalization, and its new variables; none where nothing is to be written.

    What a module is made with, ``starting``, is no batch but often a single row, which has no variance; nor need the
    named axis exist then.
    """
    given |= {"axis_name": None} if starting else {}
    x = floating("x", x)
    # Without statistics to keep, those of the start are as good as any: they are not used, and go nowhere.
    kept = variables or first_stats(
        tuple(x.shape[axis] for axis in canonical("axis", module.axis, x.ndim)), **batch_options(module)
    )
    stats = jax.tree.map(lambda array: shaped(array, x, module.axis), stats_from_variables(kept))
    evaluating = starting or (module.track_running_stats and bool(use_running_average or module.frozen))
    y, new = module.kernel.run(
        module, x, stats=stats, use_running_average=evaluating, scale=scale, bias=bias, mask=mask, **given
    )
    if evaluating or not variables:
        return y, {}
    return y, {name: array.reshape(kept[name].shape) for name, array in stats_to_variables(new).items()}


def batch_options(module: Module) -> dict[str, Any]:
    """The options of a module that say which statistics it keeps."""
    return {name: getattr(module, name) for name in ("momentum", "bias_corrected", "update_every")}


def check_batch_options(
    kernel: Kernel,
    *,
    running_var: str,
    bias_corrected: bool,
    update_every: int,
    frozen: bool,
    track_running_stats: bool,
) -> None:
    """Refuses what ``BatchNorm`` has beyond Flax's, where it is wrong.

    Raises:
      TypeError: an option is of the wrong type.
      ValueError: an option is none of what it can be, or needs statistics where none are kept.
    """
    checks.choice("running_var", running_var, RUNNING_VAR)
    checks.integer("update_every", update_every, at_least=1)
    for name, value in (("frozen", frozen), ("track_running_stats", track_running_stats)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")
    needing = {
        "bias_corrected": bias_corrected,
        "update_every": update_every > 1,
        "frozen": frozen,
        "r_max": "r_max" in kernel.words,
    }
    if not track_running_stats and any(needing.values()):
        raise ValueError(
            "track_running_stats: expected True, since running statistics are what "
            f"{' and '.join(name for name, needed in needing.items() if needed)} is about, got False"
        )


def first_stats(
    shape: tuple[int, ...], *, momentum: Scalar | None, bias_corrected: bool, update_every: int
) -> dict[str, jax.Array]:
    """The variables of running statistics before the first batch, by name."""
    # The plain average of all batches is corrected for its start by what it is.
    return stats_to_variables(
        init_batch_stats(shape, bias_corrected=bias_corrected or momentum is None, update_every=update_every)
    )


def stats_to_variables(stats: BatchStats) -> dict[str, jax.Array]:
    """Running statistics as the variables that hold them; mean and variance are named as in Flax."""
    variables = {"mean": stats.mean, "var": stats.var}
    if stats.weight is not None:
        variables["weight"] = stats.weight
    if stats.pending is not None:
        variables |= {PENDING + name: value for name, value in stats.pending._asdict().items()}
    return variables


def stats_from_variables(variables: Mapping[str, jax.Array]) -> BatchStats:
    """The running statistics that ``stats_to_variables`` took apart.

    Checkpoints of Flax and torch have no weight, and a weight of 0 says that no batch was seen. Statistics that have
    one and are not those of the start came from such a checkpoint: they count as whole, with a weight of 1, or the
    first batch would take their place.
    """
    mean, var, weight, pending = variables["mean"], variables["var"], variables.get("weight"), None
    if weight is not None:
        weight = jnp.where((weight == 0) & ((mean != 0) | (var != 1)), jnp.ones_like(weight), weight)
    if PENDING + "total" in variables:
        pending = Pending(*(variables[PENDING + name] for name in Pending._fields))
    return BatchStats(mean, var, weight, pending)


def extends(base: Callable[..., object]) -> Callable[[Function], Function]:
    """Shows a function's ``**options`` as the keywords of ``base`` that it passes on."""

    def decorate(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())
        named = {p.name for p in own}
        passed = [p for p in inspect.signature(base).parameters.values() if p.name not in named]
        own = [p for p in own if p.kind != p.VAR_KEYWORD]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted(own + passed, key=lambda p: p.kind)
        )
        return function

    return decorate
