"""The norms of ``flax.nnx`` over the kernels of this room: the same arguments, variables and checkpoints.

Each is a subclass of Flax's own module: ``from gradxform.norm import nnx as norm`` and ``norm.BatchNorm`` where there
was ``nnx.BatchNorm`` is all there is to change. The result has the dtype given as ``dtype``, or else the one that the
input, scale and bias promote to, as in Flax; statistics and arithmetic are float32 at least, and neither the input nor
a running mean is rounded before it is subtracted. ``use_fast_variance`` changes nothing, for there is no slow one.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes

from gradxform.core import checks
from gradxform.core.types import Scalar
from gradxform.norm import options
from gradxform.norm.lost import Lineage
from gradxform.norm.options import extends

__all__ = ["BatchNorm", "BatchRenorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


class BatchNorm(nnx.BatchNorm):
    """Batch normalization: ``gx.norm.batch_norm`` with its parameters and running statistics.

    Takes what ``flax.nnx.BatchNorm`` takes, and the options below, which add variables only where they need them.

    Args:
      num_features: the number of features.
      running_var: ``"biased"`` (Flax) or ``"unbiased"`` (torch): what enters the running variance.
      bias_corrected: whether to take the start out of the running averages; adds the variable ``weight``.
      update_every: how many training calls make an update of the running statistics, as many as steps over which
        gradients are accumulated; adds the variables ``pending_...``.
      frozen: whether the running statistics are used and left as they are in training too; ``model.set_attributes(
        frozen=True)`` freezes those of a whole model, and ``model.train()`` does not thaw them.
      **options: those of ``flax.nnx.BatchNorm``; ``momentum=None`` averages all batches alike.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> layer = norm.nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
      >>> layer.mean[...]
      Array([0.2, 2. ], dtype=float32)
    """

    @extends(nnx.BatchNorm.__init__)
    def __init__(self, num_features: int, *, running_var: str = "biased", bias_corrected: bool = False,
                 update_every: int = 1, frozen: bool = False, **options_: Any) -> None:
        options.check_batch_options(running_var, update_every, frozen)
        _own_promotion(options_)
        super().__init__(num_features, **options_)
        self.running_var = running_var
        self.bias_corrected = bias_corrected
        self.update_every = update_every
        self.frozen = frozen
        self._lineage = nnx.data(Lineage())
        first = options.first_stats((num_features,), self)
        self._statistics = tuple(first)
        for name, value in first.items():
            if name not in ("mean", "var"):
                setattr(self, name, nnx.BatchStat(value))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, *,
                 mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x`` by its own statistics, which enter the running ones, or by the running ones.

        Args:
          x: the input.
          use_running_average: which of the two; by default what the module was made or set to.
          mask: what counts, in a shape that broadcasts to that of ``x``.

        Returns:
          An array shaped like ``x``.
        """
        chosen = nnx.module.first_from(
            use_running_average, self.use_running_average,
            error_msg="use_running_average: expected True or False where the module is made, called or set by "
                      "nnx.view, got None in all of them")
        variables = {name: getattr(self, name) for name in self._statistics}
        stats = options.stats_from_variables({name: variable[...] for name, variable in variables.items()})
        y, new = options.call_batch_norm(self, x, stats, _value(self.scale), _value(self.bias), chosen, self.axis_name,
                                         mask)
        if not (chosen or self.frozen):
            for name, value in options.stats_to_variables(new).items():
                variables[name][...] = value
            self._lineage.updated()
        else:
            self._lineage.used()
        return y

    def set_view(self, use_running_average: bool | None = None, frozen: bool | None = None) -> None:
        """What ``nnx.view`` sets.

        Args:
          use_running_average: whether the running statistics are used.
          frozen: whether they are used and left as they are whatever ``use_running_average`` is.
        """
        super().set_view(use_running_average)
        if frozen is not None:
            self.frozen = frozen


class BatchRenorm(BatchNorm):
    """Batch renormalization: ``gx.norm.batch_renorm`` with its parameters and running statistics.

    Args:
      num_features: the number of features.
      r_max: the largest correction of the scale, at least 1.
      d_max: the largest correction of the mean, in running standard deviations, at least 0.
      **options: those of ``BatchNorm``.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> layer = norm.nnx.BatchRenorm(4, rngs=nnx.Rngs(0))
      >>> layer(jax.numpy.ones((8, 4))).shape
      (8, 4)
    """

    @extends(BatchNorm.__init__)
    def __init__(self, num_features: int, *, r_max: Scalar = 3.0, d_max: Scalar = 5.0, **options_: Any) -> None:
        checks.real("r_max", r_max, at_least=1)
        checks.real("d_max", d_max, at_least=0)
        super().__init__(num_features, **options_)
        self.r_max = r_max
        self.d_max = d_max


class LayerNorm(nnx.LayerNorm):
    """Layer normalization: ``gx.norm.layer_norm`` with its parameters; takes what ``flax.nnx.LayerNorm`` takes.

    Args:
      num_features: the number of features.
      **options: those of ``flax.nnx.LayerNorm``.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.LayerNorm(4, rngs=nnx.Rngs(0))(jax.numpy.ones((8, 4))).shape
      (8, 4)
    """

    @extends(nnx.LayerNorm.__init__)
    def __init__(self, num_features: int, **options_: Any) -> None:
        _own_promotion(options_)
        super().__init__(num_features, **options_)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x``; only what ``mask``, which broadcasts to its shape, keeps counts."""
        return options.call_layer_norm(self, x, _value(self.scale), _value(self.bias), mask)


class RMSNorm(nnx.RMSNorm):
    """Root mean square normalization: ``gx.norm.rms_norm``; takes what ``flax.nnx.RMSNorm`` takes.

    Args:
      num_features: the number of features.
      **options: those of ``flax.nnx.RMSNorm``.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.RMSNorm(4, rngs=nnx.Rngs(0))(jax.numpy.ones((8, 4))).shape
      (8, 4)
    """

    @extends(nnx.RMSNorm.__init__)
    def __init__(self, num_features: int, **options_: Any) -> None:
        _own_promotion(options_)
        super().__init__(num_features, **options_)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x``; only what ``mask``, which broadcasts to its shape, keeps counts."""
        return options.call_rms_norm(self, x, _value(self.scale), mask)


class GroupNorm(nnx.GroupNorm):
    """Group normalization: ``gx.norm.group_norm`` with its parameters; takes what ``flax.nnx.GroupNorm`` takes.

    Args:
      num_features: the number of channels.
      num_groups: the number of groups, or None where ``group_size`` is given.
      group_size: the number of channels in a group.
      **options: those of ``flax.nnx.GroupNorm``.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0))(jax.numpy.ones((2, 5, 5, 8))).shape
      (2, 5, 5, 8)
    """

    @extends(nnx.GroupNorm.__init__)
    def __init__(self, num_features: int, num_groups: int | None = 32, group_size: int | None = None,
                 **options_: Any) -> None:
        _own_promotion(options_)
        super().__init__(num_features, num_groups, group_size, **options_)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x``; only what ``mask``, which broadcasts to its shape, keeps counts."""
        return options.call_group_norm(self, x, _value(self.scale), _value(self.bias), mask)


class InstanceNorm(nnx.InstanceNorm):
    """Instance normalization: ``gx.norm.instance_norm``; takes what ``flax.nnx.InstanceNorm`` takes.

    Args:
      num_features: the number of channels.
      **options: those of ``flax.nnx.InstanceNorm``.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.InstanceNorm(8, rngs=nnx.Rngs(0))(jax.numpy.ones((2, 5, 5, 8))).shape
      (2, 5, 5, 8)
    """

    @extends(nnx.InstanceNorm.__init__)
    def __init__(self, num_features: int, **options_: Any) -> None:
        _own_promotion(options_)
        super().__init__(num_features, **options_)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x``; only what ``mask``, which broadcasts to its shape, keeps counts."""
        return options.call_instance_norm(self, x, _value(self.scale), _value(self.bias), mask)


def _own_promotion(given: dict[str, Any]) -> None:
    """Refuses a rule for promotion: to cast the input or the running mean first is what these modules avoid."""
    if given.get("promote_dtype", dtypes.promote_dtype) is not dtypes.promote_dtype:
        raise ValueError("promote_dtype: expected Flax's own, since nothing is cast before it is normalized; the dtype "
                         f"of the result is set by dtype; got {given['promote_dtype']!r}")


def _value(variable: nnx.Variable[Any] | None) -> Any:
    return None if variable is None else variable[...]
