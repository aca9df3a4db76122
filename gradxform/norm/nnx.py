"""The norms of ``flax.nnx`` over the kernels of this room: the same arguments, variables and checkpoints.

Each is a subclass of Flax's own module: ``from gradxform.norm import nnx as norm`` and ``norm.BatchNorm`` where there
was ``nnx.BatchNorm`` is all there is to change. The result has the dtype given as ``dtype``, or else the one that the
input, scale and bias promote to, as in Flax; statistics and arithmetic are float32 at least, and neither the input nor
a running mean is rounded before it is subtracted. ``use_fast_variance`` changes nothing, for there is no slow one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
from flax import nnx
from flax.nnx.nn import dtypes

from gradxform.core import checks
from gradxform.core.types import Scalar
from gradxform.norm import options
from gradxform.norm.batch import batch_norm, batch_renorm
from gradxform.norm.group import group_norm, instance_norm
from gradxform.norm.layer import layer_norm, rms_norm
from gradxform.norm.lost import LostUpdateError, expect_updates
from gradxform.norm.options import BATCH, Kernel, extends

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LostUpdateError",
    "RMSNorm",
    "expect_updates",
]


class _Norm(nnx.Module):
    """What the norms do alike. Each names its kernel, and which of Flax's options the kernel's keywords are."""

    kernel: ClassVar[Kernel]

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x``; only what ``mask``, which broadcasts to its shape, keeps counts."""
        return self.kernel.run(self, x, **self._params(), mask=mask)  # type: ignore[no-any-return]

    def _params(self: Any) -> dict[str, Any]:
        variables = {"scale": self.scale, "bias": self.bias if self.kernel.bias else None}
        return {name: None if variable is None else variable[...] for name, variable in variables.items()}

    @property
    def promote_dtype(self) -> Any:
        """Flax's own rule, which is not asked: nothing is cast before it is normalized."""
        return dtypes.promote_dtype

    @promote_dtype.setter
    def promote_dtype(self, rule: Any) -> None:
        if rule is not dtypes.promote_dtype:
            raise ValueError(
                "promote_dtype: expected Flax's own, since nothing is cast before it is normalized; the "
                f"dtype of the result is set by dtype; got {rule!r}"
            )


class BatchNorm(_Norm, nnx.BatchNorm):
    """Batch normalization: ``gx.norm.batch_norm`` with its parameters and running statistics.

    Takes what ``flax.nnx.BatchNorm`` takes, and the options below, which add variables only where they need them.

    Args:
      num_features: the number of features.
      running_var: ``"biased"`` (Flax) or ``"unbiased"`` (torch): what enters the running variance.
      bias_corrected: whether to take the start out of the running averages; adds the variable ``weight``. Statistics
        from a checkpoint without a weight count as whole, or as one batch where ``momentum=None``.
      update_every: how many training calls make an update of the running statistics, as many as steps over which
        gradients are accumulated; adds the variables ``pending_...``.
      frozen: whether the running statistics are used and left as they are in training too; ``model.set_attributes(
        frozen=True)`` freezes those of a whole model, and ``model.train()`` does not thaw them.
      track_running_stats: whether there are running statistics; without, every batch is normalized by its own, in
        evaluation too, as in torch.
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

    kernel = Kernel(batch_norm, BATCH)

    @extends(nnx.BatchNorm.__init__)
    def __init__(
        self,
        num_features: int,
        *,
        running_var: str = "biased",
        bias_corrected: bool = False,
        update_every: int = 1,
        frozen: bool = False,
        track_running_stats: bool = True,
        **options_: Any,
    ) -> None:
        options.check_batch_options(
            self.kernel,
            running_var=running_var,
            bias_corrected=bias_corrected,
            update_every=update_every,
            frozen=frozen,
            track_running_stats=track_running_stats,
        )
        super().__init__(num_features, **options_)
        self.running_var = running_var
        self.bias_corrected = bias_corrected
        self.update_every = update_every
        self.frozen = frozen
        self.track_running_stats = track_running_stats
        first = options.first_stats((num_features,), **options.batch_options(self)) if track_running_stats else {}
        self._statistics = tuple(first)
        for name in ("mean", "var", *first):
            if name not in first:
                setattr(self, name, nnx.data(None))
            elif name not in ("mean", "var"):
                setattr(self, name, nnx.BatchStat(first[name]))

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes ``x`` by its own statistics, which enter the running ones, or by the running ones.

        Args:
          x: the input.
          use_running_average: which of the two; by default what the module was made or set to.
          mask: what counts, in a shape that broadcasts to that of ``x``.

        Returns:
          An array shaped like ``x``.
        """
        chosen = self.track_running_stats and nnx.module.first_from(
            use_running_average,
            self.use_running_average,
            error_msg="use_running_average: expected True or False where the module is made, called or set by "
            "nnx.view, got None in all of them",
        )
        variables = {name: getattr(self, name) for name in self._statistics}
        y, new = options.call_batch_norm(
            self,
            x,
            {name: variable[...] for name, variable in variables.items()},
            use_running_average=chosen,
            mask=mask,
            **self._params(),
        )
        for name, value in new.items():
            variables[name][...] = value
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
      **options: those of ``BatchNorm``; running statistics have to be tracked.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> layer = norm.nnx.BatchRenorm(4, rngs=nnx.Rngs(0))
      >>> layer(jax.numpy.ones((8, 4))).shape
      (8, 4)
    """

    kernel = Kernel(batch_renorm, BATCH | {"r_max": "r_max", "d_max": "d_max"})

    @extends(BatchNorm.__init__)
    def __init__(self, num_features: int, *, r_max: Scalar = 3.0, d_max: Scalar = 5.0, **options_: Any) -> None:
        checks.real("r_max", r_max, at_least=1)
        checks.real("d_max", d_max, at_least=0)
        super().__init__(num_features, **options_)
        self.r_max = r_max
        self.d_max = d_max


class LayerNorm(_Norm, nnx.LayerNorm):
    """Layer normalization: ``gx.norm.layer_norm`` with its parameters; takes what ``flax.nnx.LayerNorm`` takes.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.LayerNorm(4, rngs=nnx.Rngs(0))(jax.numpy.ones((8, 4))).shape
      (8, 4)
    """

    kernel = Kernel(layer_norm, {"axis": "reduction_axes", "feature_axis": "feature_axes"})


class RMSNorm(_Norm, nnx.RMSNorm):
    """Root mean square normalization: ``gx.norm.rms_norm``; takes what ``flax.nnx.RMSNorm`` takes.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.RMSNorm(4, rngs=nnx.Rngs(0))(jax.numpy.ones((8, 4))).shape
      (8, 4)
    """

    kernel = Kernel(rms_norm, {"axis": "reduction_axes", "feature_axis": "feature_axes"}, bias=False)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x``; only what ``mask``, which broadcasts to its shape, keeps counts."""
        return super().__call__(x, mask=mask)


class GroupNorm(_Norm, nnx.GroupNorm):
    """Group normalization: ``gx.norm.group_norm`` with its parameters; takes what ``flax.nnx.GroupNorm`` takes.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0))(jax.numpy.ones((2, 5, 5, 8))).shape
      (2, 5, 5, 8)
    """

    # Given the size of groups, Flax's module has worked out their number.
    kernel = Kernel(group_norm, {"num_groups": "num_groups", "reduction_axes": "reduction_axes"})


class InstanceNorm(_Norm, nnx.InstanceNorm):
    """Instance normalization: ``gx.norm.instance_norm``; takes what ``flax.nnx.InstanceNorm`` takes.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> norm.nnx.InstanceNorm(8, rngs=nnx.Rngs(0))(jax.numpy.ones((2, 5, 5, 8))).shape
      (2, 5, 5, 8)
    """

    kernel = Kernel(instance_norm, {"axis": "feature_axes"})
