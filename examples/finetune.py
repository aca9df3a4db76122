"""Trains a classifier on a few labelled images, from a pretrained start or from none, in the ways of transfer learning.

All of them are one recipe: Adam, a pull toward the start (L2-SP), rates that fall from layer to layer. With the pull 0
and the fall 1 it is full fine-tuning. These numbers are leaves of the transformation, a pytree, and so one compiled
program serves all.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe
from flax import nnx
from networks import Classifier
from pretrain_simclr import distortion

import gradxform as gx

BATCH_SIZE = 64
LAYERS = r"^backbone/(?:convs|norms)/(\d+)"


class Method(NamedTuple):
    """How a classifier is trained.

    Attributes:
      rate: the highest learning rate.
      strength: of the pull toward the start, per step of rate 1.
      decay: the rate of a layer over that of the next.
      pretrained: whether the backbone starts from a pretrained one.
      frozen: whether it stays there.
      longer: how many times as many steps it takes.
    """

    rate: float
    strength: float = 0.0
    decay: float = 1.0
    pretrained: bool = True
    frozen: bool = False
    longer: int = 1


class Fitted(NamedTuple):
    """A classifier in training: the step, its params, the running statistics of its norms, the optimizer's state."""

    step: jax.Array
    params: Any
    stats: Any
    state: Any


def recipe(method: Method, steps: int) -> gx.Transformation:
    """The optimizer of a method, for a number of steps."""
    warm = jnp.asarray(steps // 10)  # an array, and so another number of steps is no other program either
    schedule = gx.schedules.warmup(warm, gx.schedules.cosine(method.rate, steps - warm))
    tx = gx.chain(
        gx.scale_by_adam(),
        gx.transfer.add_l2_sp(None, method.strength, head="^head"),
        gx.transfer.layerwise_decay(schedule, method.decay, LAYERS),
    )
    return gx.selective_transform(tx, freeze_mask=gx.path_matches("^backbone")) if method.frozen else tx


def make_augmentation(shape: tuple[int, int, int]) -> gx.augment.Augmentation:
    """What changes an image and not its class: that of the views for writing, milder than theirs for photographs."""
    if shape[2] != 3:
        return distortion(shape)
    return gx.augment.chain(
        gx.augment.random_resized_crop(shape[:2], scale=(0.4, 1.0)),
        gx.augment.random_flip_left_right(),
        gx.augment.random_apply(gx.augment.color_jitter(0.3, 0.3, 0.3, 0.05), p=0.8),
    )


@functools.partial(jax.jit, static_argnames=("graph", "augment", "frozen"), donate_argnames="fitted")
def fit(
    graph: Any,
    augment: gx.augment.Augmentation,
    frozen: bool,
    tx: gx.Transformation,
    fitted: Fitted,
    images: jax.Array,
    labels: jax.Array,
    batches: jax.Array,
    key: jax.Array,
) -> Fitted:
    """Trains a classifier for some steps, in the memory of the old one.

    Args:
      graph: of the classifier.
      augment: changes each image anew at each step.
      frozen: whether the norms of the backbone go by their running statistics, and leave them.
      tx: the optimizer.
      fitted: the classifier so far.
      images: all training images.
      labels: their classes, from 0.
      batches: the positions in ``images`` of each step's batch, of shape (steps, batch).
      key: of all that is drawn.
    """

    def step(fitted: Fitted, batch: jax.Array) -> tuple[Fitted, None]:
        drawn = augment(jax.random.fold_in(key, fitted.step), images[batch])

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params, fitted.stats, copy=True)
            if frozen:
                model.eval()
            losses = optax.softmax_cross_entropy_with_integer_labels(model(drawn), labels[batch])
            return losses.mean(), nnx.state(model, nnx.BatchStat)

        gradients, stats = jax.grad(loss_of, has_aux=True)(fitted.params)
        updates, state = tx.update(gradients, fitted.state, fitted.params)
        return Fitted(fitted.step + 1, gx.apply_updates(fitted.params, updates), stats, state), None

    return jax.lax.scan(step, fitted, batches)[0]


@functools.partial(jax.jit, static_argnames="graph")
def classify(graph: Any, params: Any, stats: Any, images: jax.Array) -> jax.Array:
    """The likeliest class of each image."""
    model = nnx.merge(graph, params, stats)
    model.eval()
    return model(images).argmax(-1)


def accuracy(
    data: probe.Data, method: Method, backbone: tuple[Any, Any] | None, drawn: np.ndarray, steps: int, seed: int
) -> float:
    """Trains a classifier on a few labelled images and tries it on all test images.

    Args:
      data: the images.
      method: how it is trained.
      backbone: the params and running statistics of a pretrained one; not needed for a method without.
      drawn: the positions of the labelled images among the training images.
      steps: of training, for a method that takes no longer.
      seed: fixes the initial weights, the batches and the augmentation.

    Returns:
      The fraction of test images that are recognized.
    """
    classes, labels = np.unique(data.train_labels, return_inverse=True)
    shape = data.train_images.shape[1:]
    graph, params, stats = nnx.split(Classifier(shape, len(classes), nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)
    if method.pretrained:
        # Copies, since the training uses up the memory that it starts from.
        params["backbone"], stats["backbone"] = jax.tree.map(jnp.copy, backbone)
    rng = np.random.default_rng(seed)
    total = method.longer * steps
    # As often one image as another, in a new order each time round.
    rounds = -(-total * BATCH_SIZE // len(drawn))
    order = np.concatenate([rng.permutation(drawn) for _ in range(rounds)])[: total * BATCH_SIZE]
    tx, augment, key = recipe(method, total), make_augmentation(shape), jax.random.key(seed)
    fitted = Fitted(jnp.zeros([], jnp.int32), params, stats, tx.init(params))
    for batches in order.reshape(method.longer, steps, BATCH_SIZE):
        fitted = fit(graph, augment, method.frozen, tx, fitted, data.train_images, labels, batches, key)
    guesses = probe.in_parts(functools.partial(classify, graph, fitted.params, fitted.stats), data.test_images)
    return float(np.mean(classes[guesses] == data.test_labels))
