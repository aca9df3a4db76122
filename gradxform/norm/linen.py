"""The norms of ``flax.linen`` over the kernels of this room: the same arguments, variables and checkpoints.

Each is a subclass of Flax's own module: ``from gradxform.norm import linen as norm`` and ``norm.BatchNorm`` where there
was ``nn.BatchNorm`` is all there is to change. The result has the dtype given as ``dtype``, or else the one that the
input, scale and bias promote to, as in Flax; statistics and arithmetic are float32 at least, and neither the input nor
a running mean is rounded before it is subtracted. ``use_fast_variance`` and ``force_float32_reductions`` change
nothing but the dtype in which running statistics are kept, for there is neither a slow variance nor a narrow one.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradxform.core.types import Scalar
from gradxform.norm import options
from gradxform.norm.batch import batch_norm, batch_renorm
from gradxform.norm.group import group_norm, instance_norm
from gradxform.norm.layer import layer_norm, rms_norm
from gradxform.norm.options import BATCH, Kernel

__all__ = ["BatchNorm", "BatchRenorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


class _Norm(nn.Module):
    """What the norms do alike. Each names its kernel, and which of Flax's options the kernel's keywords are."""

    kernel: ClassVar[Kernel]

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x``; only what ``mask``, which broadcasts to its shape, keeps counts."""
        return self.kernel.run(self, x, **_params(self, _features(self, x)), mask=mask)  # type: ignore[no-any-return]


def _features(module: _Norm, x: jax.Array) -> tuple[int, ...]:
    """The lengths of the feature axes; those out of range are left for the kernel to refuse."""
    axes = module.kernel.feature_axes(module)
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(x.shape[axis] for axis in sorted(axis % x.ndim for axis in given if -x.ndim <= axis < x.ndim))


def _params(module: nn.Module, shape: tuple[int, ...]) -> dict[str, jax.Array | None]:
    scale = module.param("scale", module.scale_init, shape, module.param_dtype) if module.use_scale else None
    bias = (
        module.param("bias", module.bias_init, shape, module.param_dtype)
        if module.kernel.bias and module.use_bias
        else None
    )
    return {"scale": scale, "bias": bias}


class BatchNorm(_Norm, nn.BatchNorm):
    """Batch normalization: ``gx.norm.batch_norm`` with its parameters and running statistics.

    Takes what ``flax.linen.BatchNorm`` takes, and the options below, which add variables only where they need them.
    ``momentum=None`` averages all batches alike.

    Attributes:
      running_var: ``"biased"`` (Flax) or ``"unbiased"`` (torch): what enters the running variance.
      bias_corrected: whether to take the start out of the running averages; adds the variable ``weight``. Statistics
        from a checkpoint without a weight count as whole, or as one batch where ``momentum=None``.
      update_every: how many training calls make an update of the running statistics, as many as steps over which
        gradients are accumulated; adds the variables ``pending_...``.
      frozen: whether the running statistics are used and left as they are in training too.
      track_running_stats: whether there are running statistics; without, every batch is normalized by its own, in
        evaluation too, as in torch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradxform import norm
      >>> layer = norm.linen.BatchNorm(use_running_average=False, momentum=0.9)
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, new = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])
      >>> new["batch_stats"]["mean"]
      Array([0.2, 2. ], dtype=float32)
    """

    running_var: str = "biased"
    bias_corrected: bool = False
    update_every: int = 1
    frozen: bool = False
    track_running_stats: bool = True

    kernel = Kernel(batch_norm, BATCH)

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes ``x`` by its own statistics, which enter the running ones, or by the running ones.

        Args:
          x: the input.
          use_running_average: which of the two; by default what the module was made with.
          mask: what counts, in a shape that broadcasts to that of ``x``.

        Returns:
          An array shaped like ``x``.
        """
        options.check_batch_options(
            self.kernel,
            running_var=self.running_var,
            bias_corrected=self.bias_corrected,
            update_every=self.update_every,
            frozen=self.frozen,
            track_running_stats=self.track_running_stats,
        )
        variables, shape, chosen = {}, _features(self, x), False
        if self.track_running_stats:
            chosen = nn.module.merge_param("use_running_average", self.use_running_average, use_running_average)
            kept = jnp.float32 if self.force_float32_reductions else self.param_dtype
            first = {
                name: value.astype(kept) if name in ("mean", "var") else value
                for name, value in options.first_stats(shape, **options.batch_options(self)).items()
            }
            variables = {
                name: self.variable("batch_stats", name, lambda value=value: value) for name, value in first.items()
            }
        y, new = options.call_batch_norm(
            self,
            x,
            {name: variable.value for name, variable in variables.items()},
            use_running_average=chosen,
            mask=mask,
            starting=self.is_initializing(),
            **_params(self, shape),
        )
        for name, value in new.items():
            variables[name].value = value
        return y


class BatchRenorm(BatchNorm):
    """Batch renormalization: ``gx.norm.batch_renorm`` with its parameters and running statistics.

    Attributes:
      r_max: the largest correction of the scale, at least 1.
      d_max: the largest correction of the mean, in running standard deviations, at least 0.

    Example:
      >>> import jax
      >>> from gradxform import norm
      >>> layer = norm.linen.BatchRenorm(use_running_average=False)
      >>> sorted(layer.init(jax.random.key(0), jax.numpy.ones((8, 4))))
      ['batch_stats', 'params']
    """

    r_max: Scalar = 3.0
    d_max: Scalar = 5.0

    kernel = Kernel(batch_renorm, BATCH | {"r_max": "r_max", "d_max": "d_max"})


class LayerNorm(_Norm, nn.LayerNorm):
    """Layer normalization: ``gx.norm.layer_norm`` with its parameters; takes what ``flax.linen.LayerNorm`` takes.

    Example:
      >>> import jax
      >>> from gradxform import norm
      >>> layer, x = norm.linen.LayerNorm(), jax.numpy.ones((8, 4))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (8, 4)
    """

    kernel = Kernel(layer_norm, {"axis": "reduction_axes", "feature_axis": "feature_axes"})


class RMSNorm(_Norm, nn.RMSNorm):
    """Root mean square normalization: ``gx.norm.rms_norm``; takes what ``flax.linen.RMSNorm`` takes.

    Example:
      >>> import jax
      >>> from gradxform import norm
      >>> layer, x = norm.linen.RMSNorm(), jax.numpy.ones((8, 4))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (8, 4)
    """

    kernel = Kernel(rms_norm, {"axis": "reduction_axes", "feature_axis": "feature_axes"}, bias=False)


class GroupNorm(_Norm, nn.GroupNorm):
    """Group normalization: ``gx.norm.group_norm`` with its parameters; takes what ``flax.linen.GroupNorm`` takes.

    Example:
      >>> import jax
      >>> from gradxform import norm
      >>> layer, x = norm.linen.GroupNorm(num_groups=2), jax.numpy.ones((2, 5, 5, 8))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (2, 5, 5, 8)
    """

    kernel = Kernel(group_norm, {name: name for name in ("num_groups", "group_size", "reduction_axes")})


class InstanceNorm(_Norm, nn.InstanceNorm):
    """Instance normalization: ``gx.norm.instance_norm``; takes what ``flax.linen.InstanceNorm`` takes.

    Example:
      >>> import jax
      >>> from gradxform import norm
      >>> layer, x = norm.linen.InstanceNorm(), jax.numpy.ones((2, 5, 5, 8))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (2, 5, 5, 8)
    """

    kernel = Kernel(instance_norm, {"axis": "feature_axes"})
