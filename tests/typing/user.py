"""A user's program, with every room used: both type checkers have to take it and see the same types."""

from collections.abc import Callable
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradxform as gx

params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
x, key = jnp.ones((8, 4)), jax.random.key(0)

# Transformations and optimizers.
tx = gx.adamw(1e-3, b2=0.99, mu_dtype="bfloat16", mask=gx.ndim_at_least(2))
assert_type(tx, gx.Transformation)
state = tx.init(params)
updates, state = tx.update(params, state, params)
params = gx.apply_updates(params, updates)
assert_type(gx.chain(gx.clip_by_global_norm(1.0), tx, optax.clip(1.0)), gx.Transformation)
assert_type(gx.named_chain(("clip", gx.clip(1.0)), ("adamw", tx)), gx.Transformation)
assert_type(gx.partition({"a": tx, "b": gx.set_to_zero()}, {"dense": "a"}), gx.Transformation)
assert_type(gx.accumulate(gx.skip_nonfinite(tx, 3), 4), gx.Transformation)
assert_type(tx.replace(learning_rate=1e-4), gx.Transformation)
assert_type(gx.chain(tx).replace({"0/learning_rate": jnp.float32(1e-4)}), gx.Transformation)
theirs: optax.GradientTransformation = tx
outer = optax.chain(tx, optax.scale(0.5))
adam: Callable[..., gx.Transformation] = gx.adam
rates: dict[str, Any] = gx.hyperparams(tx, state)

# Values.
config: dict[str, Any] = gx.to_config(tx)
leaves = jax.tree.leaves(tx)
population = jax.tree.map(lambda *numbers: jnp.stack(numbers), tx, tx)

# Schedules.
rate = gx.schedules.warmup(100, gx.schedules.cosine(3e-4, 1000))
assert_type(rate, gx.Schedule)
assert_type(rate(3), jax.Array)
assert_type(rate.replace(steps=50), gx.Schedule)
gx.sgd(rate, momentum=0.9, weight_decay=rate)
gx.sgd(lambda step: 0.1 / (step + 1))
gx.sgd(optax.cosine_decay_schedule(0.1, 100))
gx.sgd(jnp.float32(0.1))

# Selectors.
assert_type(gx.ndim_at_least(2) & ~gx.path_matches("embed"), gx.Selector)


# Factories of one's own.
@gx.transformation
def scale_by_sign(power: gx.Scalar = 1.0, rate: gx.ScalarOrSchedule = 1.0, storage: gx.DType = None) -> Any:
    """A brick."""
    return lambda params: (), lambda updates, state, params=None: (updates, state)


@gx.schedule
def reciprocal(init_value: float) -> Callable[[jax.Array], jax.Array]:
    """A schedule."""
    return lambda step: init_value / (step + 1)


assert_type(scale_by_sign(2, rate=reciprocal(0.1), storage=jnp.bfloat16), gx.Transformation)
assert_type(reciprocal(1), gx.Schedule)

# Augmentation.
aug = gx.augment.chain(gx.augment.random_crop((24, 24)), gx.augment.color_jitter(0.4, 0.4, 0.4, 0.1))
assert_type(aug, gx.augment.Augmentation)
images = aug(key, jnp.zeros((8, 32, 32, 3), jnp.uint8))
drawn = aug.sample(key, (8, 32, 32, 3))

# Norms.
assert_type(gx.norm.layer_norm(x, epsilon=1e-5), jax.Array)
assert_type(gx.norm.nnx.BatchNorm, type[gx.norm.nnx.BatchNorm])
assert_type(gx.norm.linen.LayerNorm, type[gx.norm.linen.LayerNorm])

# Losses and masking.
assert_type(gx.losses.nt_xent(x, x, temperature=0.2), jax.Array)
kept = gx.masking.random_masking(key, 8, 16, 4)

# Transfer.
assert_type(gx.transfer.add_l2_sp(params, 0.1, head="bias"), gx.Transformation)
assert_type(gx.transfer.layerwise_decay(rate, 0.75, r"^blocks/(\d+)"), gx.Transformation)

# Precision.
policy = gx.precision.Policy(keep=gx.path_matches("bias"))
assert_type(policy, gx.precision.Policy)
small = gx.precision.compress_state(gx.adamw(1e-3), "bf16", where=gx.path_matches("mu|nu"))
assert_type(small, gx.Transformation)
scaled = gx.precision.master_weights(gx.precision.dynamic_loss_scale(tx, initial=8.0))
assert_type(gx.precision.loss_scale(scaled.init(params)), jax.Array)
code = gx.precision.fp8().encode(jnp.ones(4))
assert_type(gx.precision.fp8().decode(code), jax.Array)

# Sharding and resume.
mesh = jax.make_mesh((1,), ("data",))
divided = jax.device_put(params, gx.sharding.fsdp(params, mesh, min_size=0))
assert_type(gx.sharding.layout(divided), gx.sharding.Layout)
assert_type(gx.sharding.zero1(tx, axis="data"), gx.Transformation)
assert_type(gx.resume.order(0, 0, 8, 4), np.ndarray)
run = gx.resume.Run("checkpoints", every=100, config={"tx": gx.to_config(tx)})
assert_type(run, gx.resume.Run)

# Plots.
axes = gx.plot.schedules({"cosine": rate}, 10)
