"""Trains a small convolutional network on scikit-learn's handwritten digits: about 98% right after 1,000 steps.

    python examples/train_digits.py --steps 1000 --seed 0 --output pictures

AdamW behind a clip of the gradient, with a cosine learning rate. The step is one compiled function that overwrites
its own params and state; the host looks at its numbers only now and then, so that it never keeps it waiting.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt  # noqa: E402

import gradxform as gx  # noqa: E402
from gradxform import plot  # noqa: E402

OUTPUT = pathlib.Path(__file__).parent / "output"
BATCH_SIZE = 128
READ_EVERY = 20
GOAL = 0.97


class Classifier(nnx.Module):
    """Two convolutions and a linear layer, for images of 8x8 pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.linear = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.linear(x.reshape(len(x), -1))


class Result(NamedTuple):
    """What came of a run.

    Attributes:
      losses: the mean cross-entropy of each step's batch.
      gradient_norms: the norm of each step's gradient, before the clip.
      schedule: the learning rate.
      accuracy: the fraction of the test images that are recognized.
    """

    losses: np.ndarray
    gradient_norms: np.ndarray
    schedule: gx.Schedule
    accuracy: float


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The images to train and to test on, and their labels: 1,437 and 360, each digit in proportion."""
    digits = load_digits()
    images = np.float32(digits.images[..., None] / 16.0)
    return tuple(train_test_split(images, digits.target, test_size=360, stratify=digits.target, random_state=0))


def batches(images: np.ndarray, labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches without end, in a new order each time round."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        for i in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = order[i : i + BATCH_SIZE]
            yield images[chosen], labels[chosen]


@functools.partial(jax.jit, static_argnames="graph", donate_argnames=("params", "state"))
def train_step(
    graph: Any, tx: gx.Transformation, params: Any, state: Any, images: jax.Array, labels: jax.Array
) -> tuple[Any, Any, jax.Array]:
    """One update; ``tx`` is an argument, so another rate or decay would not compile again."""

    def loss_of(params: Any) -> jax.Array:
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(gradients, state, params)
    return gx.apply_updates(params, updates), state, loss


def train(steps: int, seed: int) -> Result:
    """Trains the network.

    Args:
      steps: the number of updates, over which the learning rate falls.
      seed: fixes the initial weights and the order of the images.
    """
    train_images, test_images, train_labels, test_labels = load()
    schedule = gx.schedules.cosine(3e-4, steps, 1e-5)
    tx = gx.chain(gx.record_norms(), gx.clip_by_global_norm(1.0), gx.adamw(schedule, weight_decay=0.01))
    print(tx)

    graph, params = nnx.split(Classifier(nnx.Rngs(seed)), nnx.Param)
    state = tx.init(params)
    losses, norms = [], []
    with tqdm(batches(train_images, train_labels, seed), total=steps, unit="step") as progress:
        for step, (images, labels) in zip(range(steps), progress, strict=False):
            rate = gx.hyperparams(tx, state)["2/learning_rate"]
            params, state, loss = train_step(graph, tx, params, state, images, labels)
            losses.append(loss)
            norms.append(gx.metrics(state)["gradient_norm"])
            if step % READ_EVERY == 0 or step == steps - 1:
                progress.set_postfix(loss=f"{loss:.4f}", rate=f"{rate:.2e}", gradient_norm=f"{norms[-1]:.3f}")

    logits = nnx.merge(graph, params)(test_images)
    accuracy = float(jnp.mean(jnp.argmax(logits, axis=-1) == test_labels))
    return Result(np.array(losses), np.array(norms), schedule, accuracy)


def draw(result: Result, path: pathlib.Path) -> None:
    """Draws the loss and the learning rate over the steps."""
