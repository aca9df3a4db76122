"""Trains a small convolutional network on scikit-learn's handwritten digits; it gets about 98% right after 1,000 steps.

    python examples/train_digits.py --steps 1000 --seed 0 --output pictures

AdamW behind a clip of the gradient, with a cosine learning rate. The step is one compiled function that overwrites its
own params and state. The host looks at a number only now and then, so the next step never waits for it. Stopped at any
time and started again it goes on, to the same network: at most a minute of work is done twice.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
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

import matplotlib.pyplot as plt

import gradxform as gx

OUTPUT = pathlib.Path(__file__).parent / "output"
BATCH_SIZE = 128
READ_EVERY = 20
GOAL = 0.97


class Classifier(nnx.Module):
    """Two convolutions and a linear layer, for images of 8x8 pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.norm1 = nnx.LayerNorm(32, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.norm2 = nnx.LayerNorm(64, rngs=rngs)
        self.linear = nnx.Linear(4 * 4 * 64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits of the ten digits, of shape (batch, 10)."""
        x = nnx.relu(self.norm1(self.conv1(images)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.linear(x.reshape(len(x), -1))


class Result(NamedTuple):
    """What came of a run.

    Attributes:
      schedule: the learning rate.
      losses: the mean cross-entropy of each step's batch.
      accuracy: the fraction of the test images that are recognized.
    """

    schedule: gx.Schedule
    losses: np.ndarray
    accuracy: float


def load() -> list[np.ndarray]:
    """The images to train and to test on and their labels: 1,437 and 360, with the same share of each digit."""
    digits = load_digits()
    images = np.float32(digits.images[..., None] / 16.0)
    return train_test_split(images, digits.target, test_size=360, stratify=digits.target, random_state=0)


@functools.partial(jax.jit, static_argnames=("graph", "tx"), donate_argnames=("params", "state"))
def train_step(
    graph: Any, tx: gx.Transformation, params: Any, state: Any, images: jax.Array, labels: jax.Array
) -> tuple[Any, Any, jax.Array]:
    """One update: the new params and state, in the memory of the old, and the loss before it."""

    def loss_of(params: Any) -> jax.Array:
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(gradients, state, params)
    return gx.apply_updates(params, updates), state, loss


def train(steps: int, seed: int, folder: pathlib.Path) -> Result:
    """Trains the network.

    Args:
      steps: the number of updates, over which the learning rate falls from 3e-4 to 1e-5.
      seed: fixes the initial weights and the order of the images.
      folder: where the run is saved.

    Returns:
      The course of the run and how good the network is.
    """
    train_images, test_images, train_labels, test_labels = load()
    schedule = gx.schedules.cosine(3e-4, steps, 1e-5)
    tx = gx.chain(gx.record_norms(), gx.clip_by_global_norm(1.0), gx.adamw(schedule, weight_decay=0.01))
    print(tx)

    graph, params = nnx.split(Classifier(nnx.Rngs(seed)), nnx.Param)
    with gx.resume.Run(folder, config={"tx": tx, "steps": steps, "seed": seed}) as run:
        params, state, losses = run.restore((params, tx.init(params), jnp.zeros(steps)))
        with tqdm(run.steps(steps), initial=run.first, total=steps, unit="step") as progress:
            for step in progress:
                rate = gx.hyperparams(tx, state)["2/learning_rate"] if step % READ_EVERY == 0 else None
                chosen = gx.resume.order(seed, step, len(train_images), BATCH_SIZE)
                params, state, loss = train_step(graph, tx, params, state, train_images[chosen], train_labels[chosen])
                losses = losses.at[step].set(loss)
                run.save(step, (params, state, losses))
                if rate is not None:
                    norm = gx.metrics(state)["gradient_norm"]
                    told = f"loss {loss:.4f}, rate {rate:.2e}, gradient norm {norm:.3f}"
                    progress.set_postfix_str(told, refresh=False)

    guesses = nnx.merge(graph, params)(test_images).argmax(axis=-1)
    return Result(schedule, np.asarray(losses), float(np.mean(guesses == test_labels)))


def draw(result: Result, path: pathlib.Path) -> None:
    """Draws the loss of every step and the learning rate below it."""
    steps = len(result.losses)
    fig, (above, below) = plt.subplots(2, sharex=True, figsize=(8.0, 5.6), height_ratios=(2, 1), layout="constrained")
    above.semilogy(result.losses, color="#0072B2", linewidth=1.0)
    above.set_ylabel("Training loss")
    above.set_title(f"Handwritten digits: {result.accuracy:.1%} of the test images right after {steps:,} steps")
    above.spines[["top", "right"]].set_visible(False)
    gx.plot.schedules({"cosine": result.schedule}, steps, ax=below)
    below.get_legend().remove()
    below.set_ylim(bottom=0.0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    fig.align_ylabels()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> int:
    """Trains, draws and judges.

    Args:
      arguments: those of the command line; by default what the program was called with.

    Returns:
      The exit code: 1 if fewer test images than the goal are right.
    """
    parser = argparse.ArgumentParser(description="Trains a small network on scikit-learn's handwritten digits.")
    parser.add_argument("--steps", type=int, default=1000, help="number of updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="folder of the picture (%(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps: expected at least 1, got {options.steps}")

    result = train(options.steps, options.seed, options.output / f"train_digits-{options.steps}-{options.seed}")
    picture = options.output / "train_digits.png"
    draw(result, picture)
    print(f"test accuracy {result.accuracy:.2%}, curves in {picture}")
    if result.accuracy < GOAL:
        print(f"the test accuracy is below the goal of {GOAL:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
