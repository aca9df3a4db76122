"""Adafactor."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.manual import AxisName
from gradxform.core.numbers import float_dtype
from gradxform.core.schedule import at_step
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import DType, Mask, Scalar, ScalarOrSchedule
from gradxform.optimizers.recipe import decayed, product
from gradxform.transforms.clip import clip_by_block_rms
from gradxform.transforms.combine import chain
from gradxform.transforms.factored import scale_by_factored_rms
from gradxform.transforms.momentum import ema
from gradxform.transforms.scale import scale, scale_by_learning_rate, scale_by_param_block_rms


@transformation
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Scalar = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar | None = 1.0,
    momentum: Scalar | None = None,
    dtype_momentum: DType = "float32",
    weight_decay: ScalarOrSchedule | None = None,
    eps: Scalar = 1e-30,
    factored: bool = True,
    mask: Mask | None = None,
    *,
    relative_step: bool = False,
    rate_on_decay: bool = False,
    factored_axes: str = "largest",
    clamp_epsilon: bool = False,
    axis_name: AxisName = None,
) -> Transformation:
    """Adam's second moment in the memory of its row and column sums, with steps relative to the params.

    Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (ICML 2018), algorithms 4 to 6.
    torch's Adafactor has ``learning_rate=1e-2``, ``relative_step=True``, ``rate_on_decay=True``,
    ``factored_axes="last"``, ``clamp_epsilon=True`` and factors from a size of 1.

    Args:
      learning_rate: a number, or a schedule of it; None for 1.
      min_dim_size_to_factor: a leaf is factored if both of its two axes have at least this size, >= 1.
      decay_rate: the second moment decays by ``1 - t**-decay_rate``, > 0.
      decay_offset: steps to leave out of ``t``, >= 0.
      multiply_by_parameter_scale: whether steps are relative to the root mean square of the leaf, 1e-3 at least.
      clipping_threshold: the largest root mean square of a leaf's update, > 0; None for no clip.
      momentum: decay of a moving average of the updates, in [0, 1); None for none.
      dtype_momentum: dtype to store that average in.
      weight_decay: factor of the decoupled decay, or a schedule of it; None for none.
      eps: added to the squared gradient, >= 0.
      factored: whether to factor at all.
      mask: which leaves decay; None for all.
      relative_step: whether the rate is ``min(learning_rate, 1 / sqrt(t))``, as in the paper, torch and Keras.
      rate_on_decay: whether the learning rate multiplies the decay, as in torch (in optax it does not); the relative
        step and the scale of the params never do.
      factored_axes: ``"largest"`` (optax) or ``"last"`` (torch, Keras).
      clamp_epsilon: whether the square is held at ``eps`` or more, as in torch.
      axis_name: as in ``scale_by_factored_rms``.

    Returns:
      A transformation that needs params.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.adafactor(0.1)
      >>> tx.update({"w": 0.5}, tx.init({"w": 2.0}), {"w": 2.0})[0]["w"].round(3)
      Array(-0.2, dtype=float32)
    """
    checks.integer("min_dim_size_to_factor", min_dim_size_to_factor, at_least=1, known=True)
    checks.integer("decay_offset", decay_offset, at_least=0)
    checks.real("eps", eps, at_least=0)
    if clipping_threshold is not None:
        checks.real("clipping_threshold", clipping_threshold, above=0)
    if momentum is not None:
        checks.real("momentum", momentum, at_least=0, below=1)
    checks.inexact_dtype("dtype_momentum", dtype_momentum)
    rule = scale_by_factored_rms(
        factored,
        decay_rate,
        decay_offset,
        min_dim_size_to_factor,
        eps,
        factored_axes=factored_axes,
        clamp_epsilon=clamp_epsilon,
        axis_name=axis_name,
    )
    rate = _relative(1.0 if learning_rate is None else learning_rate) if relative_step else learning_rate
    parts = [rule]
    if clipping_threshold is not None:
        parts.append(clip_by_block_rms(clipping_threshold, axis_name=axis_name))
    if rate is not None:
        parts.append(scale_by_learning_rate(rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(scale_by_param_block_rms(axis_name=axis_name))
    if momentum is not None:
        parts.append(ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
    if rate_on_decay and weight_decay is not None and learning_rate is not None:
        checks.real("weight_decay", weight_decay, schedule=True)
        weight_decay = product(weight_decay, learning_rate)
    parts += decayed(weight_decay, mask)
    return chain(*parts, scale(-1.0))


def _relative(learning_rate: ScalarOrSchedule) -> Callable[[jax.Array], jax.Array]:
    """The schedule ``min(learning_rate, 1 / sqrt(t))``, t from 1."""

    def rate(count: jax.Array) -> jax.Array:
        return jnp.minimum(at_step(learning_rate, count), jax.lax.rsqrt(count.astype(float_dtype()) + 1))

    return rate
