"""Draws the pipeline as a diagram: augmented images, a pretrained backbone, and the ways to adapt it to a task.

    python examples/figure4.py --output pictures

The picture is an SVG on a ground of its own, and so as readable in dark surroundings as in light ones.
"""

from __future__ import annotations

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUTPUT = pathlib.Path(__file__).parent / "figures"
INK, GROUND = "#24292f", "#ffffff"
BLUE, GREEN, ORANGE, GRAY = "#d6e8f7", "#d9f0e4", "#fbe3cf", "#eceff2"
HEIGHT = 0.95


def box(ax: Axes, x: float, y: float, width: float, title: str, lines: str, color: str) -> None:
    """Draws a box around a middle, with a title and what belongs to it below."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - HEIGHT / 2),
            width,
            HEIGHT,
            facecolor=color,
            edgecolor=INK,
            linewidth=1.0,
            boxstyle="round,pad=0,rounding_size=0.1",
        )
    )
    ax.text(x, y + 0.24, title, ha="center", va="center", fontsize=10, fontweight="bold", color=INK)
    ax.text(x, y - 0.14, lines, ha="center", va="center", fontsize=8, color=INK, linespacing=1.35)


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], *, dashed: bool = False, bend: float = 0.0
) -> None:
    """Draws an arrow; a dashed one is a possibility."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            color=INK,
            linewidth=1.2,
            linestyle="--" if dashed else "-",
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
        )
    )


def draw(path: pathlib.Path) -> None:
    """Draws the diagram into a file, an SVG or a PNG by its name."""
    fig, ax = plt.subplots(figsize=(9.6, 3.1), facecolor=GROUND)
    ax.set_position((0.0, 0.0, 1.0, 1.0))
    ax.set_xlim(0.0, 9.6)
    ax.set_ylim(0.3, 3.4)
    ax.axis("off")

    top, bottom = 2.75, 0.95
    for y, name in ((top, "pretraining"), (bottom, "adaptation")):
        ax.text(0.16, y, name, rotation=90, ha="center", va="center", fontsize=8.5, color="#57606a")
    box(ax, 1.25, top, 1.6, "Images", "many,\nwithout labels", GRAY)
    box(ax, 3.45, top, 2.0, "Augmentation", "two views: crop, bend,\ncolour, noise, cutout", BLUE)
    box(ax, 5.85, top, 1.9, "Backbone", "learns to tell views apart\n(NT-Xent)", GREEN)
    box(ax, 8.3, top, 2.1, "Optimizer", "AdamW or LARS,\nwarm-up + cosine", GRAY)
    box(ax, 1.25, bottom, 1.6, "Images", "few,\nwith labels", GRAY)
    box(ax, 3.45, bottom, 2.0, "Augmentation", "crop, flip, bend, erase;\nmixup, CutMix", BLUE)
    box(ax, 5.85, bottom, 1.9, "Backbone", "frozen, or pulled to its\nstart, or slower below", GREEN)
    box(ax, 8.3, bottom, 2.1, "Head for the task", "linear probe, new head,\nfull fine-tuning", ORANGE)
    for y in (top, bottom):
        arrow(ax, (2.05, y), (2.45, y))
        arrow(ax, (4.45, y), (4.9, y))
    arrow(ax, (6.8, bottom), (7.25, bottom))
    arrow(ax, (7.25, top), (6.8, top))
    arrow(ax, (5.85, top - HEIGHT / 2), (5.85, bottom + HEIGHT / 2))
    ax.text(5.97, (top + bottom) / 2, "pretrained weights", ha="left", va="center", fontsize=8, color=INK)
    arrow(ax, (7.9, bottom + HEIGHT / 2), (6.55, bottom + HEIGHT / 2), dashed=True, bend=0.35)
    ax.text(7.95, bottom + 0.68, "gradient, unless frozen", ha="left", va="center", fontsize=8, color=INK)

    path.parent.mkdir(parents=True, exist_ok=True)
    # Letters as shapes: the same in every viewer. No date: the same file for the same drawing.
    with plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": "pipeline"}):
        fig.savefig(path, dpi=150, facecolor=GROUND, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> None:
    """Draws the diagram.

    Args:
      arguments: those of the command line; by default what the program was called with.
    """
    parser = argparse.ArgumentParser(description="Draws the pipeline as a diagram.")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="folder of the picture (%(default)s)")
    draw(parser.parse_args(arguments).output / "pipeline.svg")


if __name__ == "__main__":
    main()
