"""The picture of the pipeline: what it went through, what it saw, and what came of it."""

from __future__ import annotations

import pathlib

import matplotlib
import numpy as np
import probe
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt

import gradxform as gx

COLORS = ("#555555", "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")
MARKERS = "sovD^P*"


def draw(
    path: pathlib.Path,
    name: str,
    schedule: gx.Schedule,
    losses: np.ndarray,
    rows: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    counts: list[int],
    features: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Draws the report into a PNG file.

    Args:
      path: of the file.
      name: of the images.
      schedule: the learning rate of the pretraining.
      losses: its losses, of shape (seeds, steps).
      rows: some images and their views, by name.
      found: the accuracies of each method, of shape (seeds, counts).
      counts: the numbers of labels a class.
      features: of some test images, of shape (N, 128).
      labels: their classes.
    """
    fig = plt.figure(figsize=(13.0, 11.0), layout="constrained")
    above, below = fig.subfigures(2, height_ratios=(1.4, 1), hspace=0.03)
    axes = above.subplot_mosaic("LA;RA", width_ratios=(1, 1.35), height_ratios=(2, 1))
    _draw_losses(axes["L"], axes["R"], losses, schedule)
    axes["L"].set_title(f"{name}: pretraining without labels, {losses.shape[1]:,} steps")
    _draw_accuracies(axes["A"], found, counts)
    left, right = below.subfigures(1, 2, width_ratios=(1, 1.15))
    left.suptitle("Training images and two views of each")
    images = {row: images[:8] for row, images in rows.items()}
    probe.draw_rows(left.subplots(len(rows), 8), images)
    _draw_map(right, features, labels)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def _draw_losses(above: Axes, below: Axes, losses: np.ndarray, schedule: gx.Schedule) -> None:
    """The mean loss of the seeds smoothed over steps, all of them behind it; the learning rate below."""
    probe.draw_course(above, below, losses[0], schedule)
    above.lines[0].remove()
    above.set_yscale("linear")
    width = max(1, losses.shape[1] // 50)
    steps = np.arange(losses.shape[1] - width + 1) + width // 2
    for one in losses:
        above.plot(steps, np.convolve(one, np.full(width, 1.0 / width), "valid"), color="#0072B2", linewidth=1.0)
    above.set_ylabel("NT-Xent, each seed" if len(losses) > 1 else "NT-Xent")


def _draw_accuracies(ax: Axes, found: dict[str, np.ndarray], counts: list[int]) -> None:
    """Each method's mean and standard deviation by the number of labels, side by side."""
    for i, (method, accuracies) in enumerate(found.items()):
        x = np.arange(len(counts)) + 0.09 * (i - (len(found) - 1) / 2)
        spread = 100 * accuracies.std(0, ddof=1) if len(accuracies) > 1 else None
        ax.errorbar(
            x, 100 * accuracies.mean(0), spread, fmt=MARKERS[i], color=COLORS[i], capsize=3, markersize=7, label=method
        )
        for one in accuracies:
            ax.plot(x, 100 * one, ".", color=COLORS[i], markersize=3, alpha=0.6)
    for place in range(len(counts) - 1):
        ax.axvline(place + 0.5, color="0.85", linewidth=0.8)
    ax.set_xticks(range(len(counts)), [f"{count}" for count in counts])
    ax.set_xlim(-0.5, len(counts) - 0.5)
    ax.set_xlabel("Labels a class")
    ax.set_ylabel("Test images right [%]")
    ax.set_title("What few labels give: mean, standard deviation and each seed")
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False)


def project(features: np.ndarray) -> np.ndarray:
    """Features in two dimensions, neighbours beside each other, always in the same way."""
    with threadpool_limits(1):
        reduced = PCA(min(30, *features.shape), svd_solver="full").fit_transform(features)
        # From principal components, not from random places: the same features give the same map.
        return TSNE(init="pca", perplexity=min(30.0, len(features) / 4), random_state=0).fit_transform(reduced)


def _draw_map(figure: Figure, features: np.ndarray, labels: np.ndarray) -> None:
    ax = figure.subplots()
    places = project(features)
    classes = np.unique(labels)
    for i, label in enumerate(classes):
        own = labels == label
        ax.scatter(
            *places[own].T,
            s=14,
            color=plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")(i % 20),
            label=str(label),
            linewidths=0,
        )
    ax.set_title("Features of test images (t-SNE), coloured by a class that the network was not told")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if len(classes) <= 20:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, title="class", markerscale=1.6)
