"""Draws two pictures: four optimizers in a valley, and four learning rate policies.

    python examples/figures.py --output pictures

They are written as trajectories.png and schedules.png.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import matplotlib

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt

import gradxform as gx

OUTPUT = pathlib.Path(__file__).parent / "output"


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
    ax.annotate("minimum", (0.0, 0.0), xytext=(0, -16), textcoords="offset points", ha="center", va="top",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})
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


def main(arguments: list[str] | None = None) -> None:
    """Draws the pictures.

    Args:
      arguments: those of the command line; by default what the program was called with.
    """
    parser = argparse.ArgumentParser(description="Draws four optimizers in a valley and four learning rate policies.")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="folder of the pictures (%(default)s)")
    output = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    for name, draw in {"trajectories.png": draw_trajectories, "schedules.png": draw_schedules}.items():
        draw(output / name)
        print(output / name)


if __name__ == "__main__":
    main()
