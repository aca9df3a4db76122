"""What is done to a gradient before a rule sees it: centering, noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gradxform.core import checks
from gradxform.core.arrays import one_key
from gradxform.core.bricks import Each, Leafwise
from gradxform.core.manual import AxisName, spread
from gradxform.core.numbers import float_dtype, sqrt
from gradxform.core.transformation import transformation
from gradxform.core.types import Scalar, Updates


@transformation
def centralize(output_axis: int = 0, *, axis_name: AxisName = None) -> Leafwise:
    """Subtracts from the gradient of each output unit its mean over the inputs.

    Yong et al., "Gradient Centralization" (ECCV 2020), equation 1: the mean of a leaf of two or more axes runs over
    all axes but that of the outputs; vectors and scalars stay as they are.

    Args:
      output_axis: the axis of the outputs. The default is optax's and right for torch's layout; the kernels of Flax
        and Haiku have it last: -1.
      axis_name: as in ``adaptive_grad_clip``.

    Returns:
      A transformation without state.

    Raises:
      TypeError: ``output_axis`` is not an integer.
      ValueError: from ``update``, if it is out of range for a leaf of two or more axes.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.centralize(output_axis=-1)
      >>> tx.update({"w": jnp.array([[1.0, 2.0], [3.0, 2.0]])}, tx.init({"w": jnp.ones((2, 2))}))[0]["w"].tolist()
      [[-1.0, 0.0], [1.0, 0.0]]
    """
    checks.integer("output_axis", output_axis)

    def leaf(now: object, g: jax.Array, p: object) -> jax.Array:
        if g.ndim < 2 or g.size == 0:
            return g
        if not -g.ndim <= output_axis < g.ndim:
            raise ValueError(f"output_axis: expected an axis of an array of shape {g.shape}, got {output_axis}")
        inputs = tuple(axis for axis in range(g.ndim) if axis != output_axis % g.ndim)
        mean, along = jnp.mean(g, axis=inputs, keepdims=True), spread(g, axis_name, inputs)
        return g - (lax.pmean(mean, along) if along else mean)

    return Leafwise(leaf, axis_name=axis_name)


@transformation
def add_noise(eta: Scalar, gamma: Scalar, key: jax.Array | int, *, axis_name: AxisName = None) -> Leafwise:
    """Adds Gaussian noise of decaying variance.

    Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks" (2015), equation 1:
    variance ``eta / t**gamma`` in step t, counted from 1.

    Args:
      eta: variance in the first step, >= 0.
      gamma: speed of the decay, >= 0.
      key: a seed, or a key from ``jax.random.key``.
      axis_name: as in ``global_norm``: each piece has noise of its own, a whole leaf the same on each device.

    Returns:
      A transformation that counts its updates and carries its key: the same state gives the same noise.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``key`` is neither an integer nor a single key.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.add_noise(eta=0.0, gamma=0.55, key=0)
      >>> tx.update({"w": 2.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(2., dtype=float32)}
    """
    checks.real("eta", eta, at_least=0)
    checks.real("gamma", gamma, at_least=0)

    def at(count: jax.Array, rng_key: jax.Array, updates: Updates) -> tuple[tuple[Each, jax.Array], jax.Array]:
        next_key, now = jax.random.split(rng_key)
        keys = Each(jax.random.split(now, max(len(jax.tree.leaves(updates)), 1)))
        return (keys, sqrt(eta / count.astype(float_dtype()) ** gamma)), next_key

    def leaf(now: tuple[jax.Array, jax.Array], g: jax.Array, p: object) -> jax.Array:
        noise_key, deviation = now
        for name in spread(g, axis_name):
            noise_key = jax.random.fold_in(noise_key, lax.axis_index(name))
        return g + deviation * jax.random.normal(noise_key, g.shape, g.dtype)

    seeded = not isinstance(key, jax.Array) or (key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer))
    if seeded:
        checks.integer("key", key)
    else:
        one_key("key", key)
    return Leafwise(
        leaf,
        at=at,
        state=optax.AddNoiseState,
        whole=True,
        axis_name=axis_name,
        scalars={"rng_key": lambda: jax.random.key(key) if seeded else jnp.asarray(key)},
    )
