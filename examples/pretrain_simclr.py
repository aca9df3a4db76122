"""Learns from images without labels by telling them apart: contrastive learning.

    python examples/pretrain_simclr.py --seed 0 --output pictures

Of every image two views are made at random, on the device, and a small convolutional network learns to find the other
view of an image among those of all others (Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020). With ten labels a class, logistic regression on its features is then far better than on
pixels. The images are scikit-learn's handwritten digits, or those of ``--data``.
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
import probe
from flax import nnx
from tqdm import tqdm

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt

import gradxform as gx

BATCH_SIZE = 128
READ_EVERY = 5
TEMPERATURE = 0.5
RATE = 1e-2
WIDTHS = (32, 64, 64, 128)
STRIDES = (1, 2, 1, 2)
EMBEDDING = 64


class Network(nnx.Module):
    """Four convolutions, whose mean over the pixels are the features, and a head that is for the loss alone."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        inputs = (channels, *WIDTHS)
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), strides=stride, use_bias=False, rngs=rngs)
                               for i, o, stride in zip(inputs, WIDTHS, STRIDES, strict=False)])
        self.norms = nnx.List([gx.norm.nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for width in WIDTHS])
        self.head1 = nnx.Linear(WIDTHS[-1], WIDTHS[-1], rngs=rngs)
        self.head2 = nnx.Linear(WIDTHS[-1], EMBEDDING, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """Of shape (batch, 128)."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return x.mean((1, 2))

    def __call__(self, images: jax.Array) -> jax.Array:
        """The embeddings that the loss compares, of shape (batch, EMBEDDING)."""
        return self.head2(nnx.relu(self.head1(self.features(images))))


class Result(NamedTuple):
    """What came of a run.

    Attributes:
      schedule: the learning rate.
      losses: the loss of each step's batch.
      rows: some training images and two views of each, by name.
      train_features: of the training images, of shape (N, 128).
      test_features: of the test images.
    """

    schedule: gx.Schedule
    losses: np.ndarray
    rows: dict[str, np.ndarray]
    train_features: np.ndarray
    test_features: np.ndarray


def make_views(shape: tuple[int, int, int]) -> gx.augment.Augmentation:
    """What makes two views of each image, for images of a height, width and number of channels.

    Colour images are photographs, for which SimCLR's own augmentations were made. Others are taken for writing, which
    must be neither mirrored nor cut down to a detail, but may be moved, turned and bent.
    """
    height, width, channels = shape
    if channels == 3:
        return gx.augment.simclr_views((height, width), 0.5, blur=min(height, width) > 32)
    side = min(height, width)
    return gx.augment.two_views(gx.augment.chain(
        gx.augment.random_affine(20.0, translate=(0.125, 0.125), scale=(0.8, 1.2), shear=(15.0, 15.0)),
        gx.augment.elastic_deformation(alpha=0.5 * side, sigma=0.25 * side),
        gx.augment.cutout(max(1, 3 * side // 8)),
    ))


@functools.partial(jax.jit, static_argnames=("graph", "tx", "views"), donate_argnames=("params", "stats", "state"))
def train_step(
    graph: Any, tx: gx.Transformation, views: gx.augment.Augmentation, params: Any, stats: Any, state: Any,
    images: jax.Array, key: jax.Array, step: int,
) -> tuple[Any, Any, Any, jax.Array]:
    """One update: the new params, running statistics and state, in the memory of the old, and the loss before it."""
    both = jnp.concatenate(views(jax.random.fold_in(key, step), images))

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, stats, copy=True)
        z1, z2 = jnp.split(model(both), 2)
        return gx.losses.nt_xent(z1, z2, TEMPERATURE), nnx.state(model, nnx.BatchStat)

    (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, state = tx.update(gradients, state, params)
    return gx.apply_updates(params, updates), stats, state, loss


@functools.partial(jax.jit, static_argnames=("graph",))
def features(graph: Any, params: Any, stats: Any, images: jax.Array) -> jax.Array:
    """What the network makes of whole images, by the running statistics."""
    model = nnx.merge(graph, params, stats)
    model.eval()
    return model.features(images)


def train(data: probe.Data, epochs: int, seed: int) -> Result:
    """Trains the network, without labels.

    Args:
      data: the images.
      epochs: how often all training images are gone through.
      seed: fixes the initial weights, the order of the images and their views.

    Returns:
      The course of the run and what the network makes of the images.
    """
    images = data.train_images
    steps = epochs * (len(images) // min(BATCH_SIZE, len(images)))
    schedule = gx.schedules.warmup(steps // 10, gx.schedules.cosine(RATE, steps - steps // 10))
    tx = gx.adamw(schedule, weight_decay=1e-4, mask=gx.ndim_at_least(2))
    views = make_views(images.shape[1:])
    print(tx)
    print(views)

    graph, params, stats = nnx.split(Network(images.shape[-1], nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)
    state = tx.init(params)
    source = probe.batches(images, BATCH_SIZE, seed)
    key = jax.random.key(seed)
    losses = []
    with tqdm(range(steps), unit="step") as progress:
        for step in progress:
            params, stats, state, loss = train_step(graph, tx, views, params, stats, state, next(source), key, step)
            losses.append(loss)
            if step % READ_EVERY == 0:
                progress.set_postfix_str(f"loss {loss:.4f}", refresh=False)

    encoded = [probe.in_parts(functools.partial(features, graph, params, stats), x) for x in (images, data.test_images)]
    view1, view2 = views(key, images[:10])
    return Result(schedule, np.array(losses), {"image": images[:10], "view 1": view1, "view 2": view2}, *encoded)


def draw(data: probe.Data, result: Result, pixels: np.ndarray, features: np.ndarray, path: pathlib.Path) -> None:
    """Draws the loss of every step and the learning rate, the probe beside them, and views of some images."""
    fig = plt.figure(figsize=(10.0, 8.4), layout="constrained")
    curves, below = fig.subfigures(2, height_ratios=(1.5, 1))
    axes = curves.subplot_mosaic("LP;RP", width_ratios=(2, 1), height_ratios=(2, 1))
    probe.draw_course(axes["L"], axes["R"], result.losses, result.schedule)
    axes["L"].set_yscale("linear")
    axes["L"].set_ylabel("NT-Xent")
    axes["L"].set_title(f"{data.name}: two views of an image, {len(result.losses):,} steps")
    probe.draw_accuracies(axes["P"], pixels, features)
    below.suptitle("Training images and their views")
    probe.draw_rows(below.subplots(3, 10), result.rows)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> int:
    """Trains, probes, draws and judges.

    Args:
      arguments: those of the command line; by default what the program was called with.

    Returns:
      The exit code: 1 if the probe is no better on features than on pixels.
    """
    parser = argparse.ArgumentParser(description="Learns from pairs of views, and probes what was learned.")
    options, data = probe.arguments(parser, arguments, epochs=80)
    result = train(data, options.epochs, options.seed)
    pixels = probe.accuracies(data, data.train_images, data.test_images)
    features = probe.accuracies(data, result.train_features, result.test_features)
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "pretrain_simclr.png"
    draw(data, result, pixels, features, picture)
    return probe.judge(pixels, features, picture)


if __name__ == "__main__":
    sys.exit(main())
