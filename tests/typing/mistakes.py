"""A user's mistakes: on each line marked so, both type checkers have to find one. It is never run."""

import jax.numpy as jnp
import optax
from flax import nnx

import gradxform as gx

rate = gx.schedules.cosine(3e-4, 1000)
tx = gx.adamw(rate)

gx.adamw(lr=1e-3)  # wrong: the keyword, and learning_rate is missing
gx.adamw()  # wrong: an argument is missing
gx.adamw("fast")  # wrong: the type of an argument
gx.adamw(1e-3, b1=rate)  # wrong: a schedule where none is allowed
gx.adamw(1e-3, mu_dtype=16)  # wrong: the dtype
gx.adamw(1e-3, 0.9, 0.999, 1e-8, 0.0, None, 1e-4, None, True)  # wrong: too many arguments by position
gx.sgd(0.1, momentum="0.9")  # wrong: the type of an argument
gx.sgd(0.1, beta=0.9)  # wrong: the keyword
gx.chain(tx, 0.1)  # wrong: not a transformation
gx.chain(rate)  # wrong: a schedule is not a transformation
gx.named_chain(("clip", 1.0))  # wrong: not a transformation
gx.masked(gx.ndim_at_least(2), tx)  # wrong: the order
gx.accumulate(tx, "four")  # wrong: the type of an argument
tx.init()  # wrong: no params
tx.update({"w": jnp.ones(2)})  # wrong: no state
gx.schedules.cosine(3e-4, 1000.0)  # wrong: steps are whole
gx.schedules.cosine(3e-4, T_max=1000)  # wrong: the keyword
gx.schedules.warmup(100, "cosine")  # wrong: the type of an argument
rate.step(3)  # wrong: an attribute that there is not
gx.path_matches(3)  # wrong: the type of an argument
gx.ndim_at_least(2) & "embed"  # wrong: not a selector
gx.augment.random_crop(24, 24, prob=0.5)  # wrong: the keyword
gx.augment.chain(rate)  # wrong: not an augmentation
gx.norm.layer_norm(jnp.ones((2, 4)), eps=1e-5)  # wrong: the keyword
gx.norm.nnx.BatchNormalization(4)  # wrong: an attribute that there is not
gx.norm.nnx.LayerNorm(4, eps=1e-5, rngs=nnx.Rngs(0))  # wrong: the keyword
gx.losses.nt_xent(jnp.ones((2, 4)))  # wrong: an argument is missing
gx.transfer.layerwise_decay(rate, gx.schedules.constant(0.75), "a")  # wrong: a schedule where none is allowed
gx.precision.compress_state(tx, bits=8)  # wrong: the keyword
gx.precision.master_weights(tx, "24")  # wrong: the type of an argument
gx.precision.Policy(storage="bfloat16")  # wrong: the keyword
gx.masking.random_masking(16, 8)  # wrong: arguments are missing
gx.sharding.zero1(tx, axes="data")  # wrong: the keyword
gx.sharding.fsdp({"w": jnp.ones(2)})  # wrong: an argument is missing
gx.resume.Run("checkpoints", interval=100)  # wrong: the keyword
gx.resume.order(0, 0, 8)  # wrong: an argument is missing
gx.plot.schedules({"rate": rate})  # wrong: an argument is missing
gx.plot.distributions({"w": jnp.ones(2)}, count=60)  # wrong: the keyword
gx.hyperparams(3, 4)  # wrong: not a transformation
gx.metrics(tx.init({"w": 0.0}), prefix="a")  # wrong: the keyword


@gx.transformation
def scale_by_sign(power: gx.Scalar = 1.0) -> optax.GradientTransformation:
    """A brick."""
    return gx.scale(power)


scale_by_sign(strength=2.0)  # wrong: the keyword
scale_by_sign("2")  # wrong: the type of an argument
