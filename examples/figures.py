"""Draws three pictures: four optimizers in a valley, activations before and after a norm, four learning rate policies.

    python examples/figures.py --output pictures

They are written as trajectories.png, normalization.png and schedules.png. For the second, three small networks are
trained on scikit-learn's handwritten digits, which takes some seconds.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt

import gradxform as gx
from gradxform import norm

OUTPUT = pathlib.Path(__file__).parent / "output"
CHANNELS = 32


def valley(weights: jax.Array) -> jax.Array:
    """A quadratic, forty times steeper across than along."""
    along, across = weights
    return 0.5 * (0.1 * along**2 + 4.0 * across**2)


def draw_trajectories(path: pathlib.Path) -> None:
    """Draws SGD, momentum, RMSprop and Adam on their way down the valley.

    The rates are what each needs to show its character: SGD is near the largest at which it does not diverge and so
    jumps from wall to wall; momentum swings; the adaptive two take steps of the same size along as across.
    """
    optimizers = {
        "SGD": gx.sgd(0.45),
        "Momentum": gx.sgd(0.03, momentum=0.9),
        "RMSprop": gx.rmsprop(0.18),
        "Adam": gx.adam(0.3),
    }
    fig, ax = plt.subplots(figsize=(8.0, 4.2), layout="constrained")
    gx.plot.trajectories(valley, optimizers, (-8.0, 2.0), 50, ax=ax, xlim=(-8.7, 1.7), ylim=(-2.2, 2.4))
    ax.plot(0.0, 0.0, marker="+", color="black", markersize=12, markeredgewidth=1.5, zorder=2)
    ax.annotate(
        "minimum",
        (0.0, 0.0),
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )
    ax.annotate("start", (-8.0, 2.0), xytext=(9, 0), textcoords="offset points", va="center")
    ax.set_title("50 steps in a valley forty times steeper across than along")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def draw_schedules(path: pathlib.Path) -> None:
    """Draws a step, a cosine, a cyclical and a warmed-up learning rate over 1,000 steps."""
    policies = {
        "Step: halved every 250 steps": gx.schedules.step(3e-4, 0.5, 250),
        "Cosine": gx.schedules.cosine(3e-4, 1000, 1e-5),
        "Cyclical: triangular, every 250 steps": gx.schedules.triangular(1e-5, 2e-4, 125),
        "Warm-up over 100 steps, then cosine": gx.schedules.warmup(100, gx.schedules.cosine(3e-4, 900, 1e-5)),
    }
    fig, ax = plt.subplots(figsize=(8.0, 4.2), layout="constrained")
    gx.plot.schedules(policies, 1000, ax=ax)
    ax.set_ylim(bottom=0.0)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    ax.set_title("Learning rate policies")
    fig.savefig(path, dpi=150)
    plt.close(fig)


class Network(nnx.Module):
    """Four convolutions, each with a norm behind it, and a linear layer, for images of 8x8 pixels.

    Args:
      make_norm: makes a norm of so many features; None for no norm.
      rngs: where the initial weights come from.
    """

    def __init__(self, make_norm: Callable[..., Any] | None, rngs: nnx.Rngs):
        self.convs = nnx.List([nnx.Conv(1 if i == 0 else CHANNELS, CHANNELS, (3, 3), rngs=rngs) for i in range(4)])
        self.norms = nnx.List([make_norm(CHANNELS, rngs=rngs) for _ in range(4)] if make_norm else [])
        self.linear = nnx.Linear(8 * 8 * CHANNELS, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        """The logits of the ten digits, what came out of each convolution, and what came out of each norm."""
        x, before, after = images, [], []
        for i, conv in enumerate(self.convs):
            x = conv(x)
            before.append(x)
            if self.norms:
                x = self.norms[i](x)
                after.append(x)
            x = nnx.relu(x)
        return self.linear(x.reshape(len(x), -1)), before, after


@nnx.jit
def train_step(model: Network, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> None:
    """One update of the model and the state of its optimizer."""

    def loss_of(model: Network) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images)[0], labels).mean()

    optimizer.update(model, nnx.grad(loss_of)(model))


def activations(make_norm: Callable[..., Any] | None, steps: int = 100) -> list[dict[str, jax.Array]]:
    """Trains a network on handwritten digits, and looks at a batch of them on its way through.

    Args:
      make_norm: as for the network.
      steps: the number of updates.

    Returns:
      The outputs of the convolutions and of the norms, by layer.
    """
    digits = load_digits()
    images = np.float32(digits.images[..., None] - digits.images.mean()) / np.float32(digits.images.std())
    model = Network(make_norm, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gx.adam(3e-3), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(len(images), size=128)
        train_step(model, optimizer, images[chosen], digits.target[chosen])
    _, *sides = model(images[:512])
    return [{f"layer {i}": x for i, x in enumerate(side, start=1)} for side in sides]


def draw_normalization(path: pathlib.Path) -> None:
    """Draws what comes out of the convolutions of three trained networks, and what their norms make of it.

    To the right are the means within the last layer: those of the channels over the batch, which BatchNorm evens out,
    and those of the pixels over their channels, which LayerNorm evens out.
    """
    fig, axes = plt.subplot_mosaic(
        [
            ["without", "without", "means"],
            ["batch", "batch after", "batch means"],
            ["layer", "layer after", "layer means"],
        ],
        figsize=(14.0, 9.6),
        layout="constrained",
    )
    panels = {}
    panels["without"], _ = activations(None)
    panels["batch"], panels["batch after"] = activations(norm.nnx.BatchNorm)
    panels["layer"], panels["layer after"] = activations(norm.nnx.LayerNorm)
    for before, name in (("without", "means"), ("batch after", "batch means"), ("layer after", "layer means")):
        x = panels[before]["layer 4"]
        panels[name] = {"channels": x.mean((0, 1, 2)), "pixels": x.mean(-1)}
    titles = {
        "without": "Without a norm",
        "means": "Means in layer 4",
        "batch": "Before BatchNorm",
        "batch after": "After BatchNorm",
        "batch means": "After BatchNorm: means in layer 4",
        "layer": "Before LayerNorm",
        "layer after": "After LayerNorm",
        "layer means": "After LayerNorm: means in layer 4",
    }
    for name, title in titles.items():
        limits, bins = ((-1.5, 1.5), 31) if "means" in name else ((-5.0, 5.0), 61)
        ax = gx.plot.distributions(panels[name], range=limits, bins=bins, ax=axes[name])
        ax.set_ylim(top=1.45 * ax.get_ylim()[1])  # room for the legend
        ax.legend(loc="upper right", fontsize="small", frameon=False)
        ax.set_title(title, loc="left")
        ax.set_xlabel("Mean" if "means" in name else "Activation")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> None:
    """Draws the pictures.

    Args:
      arguments: those of the command line; by default what the program was called with.
    """
    parser = argparse.ArgumentParser(description="Draws optimizers, activations and learning rate policies.")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="folder of the pictures (%(default)s)")
    output = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    pictures = {
        "trajectories.png": draw_trajectories,
        "normalization.png": draw_normalization,
        "schedules.png": draw_schedules,
    }
    for name, draw in pictures.items():
        draw(output / name)
        print(output / name)


if __name__ == "__main__":
    main()
