"""Learns from images without labels by telling them apart: contrastive learning.

    python examples/pretrain_simclr.py --seed 0 --output pictures

Of every image two views are made at random, on the device, and a small convolutional network learns to find the other
view of an image among those of all others (Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020). With ten labels a class, logistic regression on its features is then far better than on
pixels. The images are scikit-learn's handwritten digits, or those of ``--data``. After an interrupt the same command
goes on, to the same result: at most a minute of work is done twice.
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
from networks import Embedder
from tqdm import tqdm

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt

import gradxform as gx

BATCH_SIZE = 64
READ_EVERY = 10
TEMPERATURE = 0.5
NOISE = 0.1
RATES = {"adamw": 1e-2, "lars": 3.0}
"""The highest learning rate of each optimizer."""


class Course(NamedTuple):
    """What stays the same throughout a training.

    Attributes:
      graph: the network without its numbers.
      schedule: the learning rate.
      tx: the optimizer.
      views: makes two views of each image.
      key: of all that is drawn.
    """

    graph: Any
    schedule: gx.Schedule
    tx: gx.Transformation
    views: gx.augment.Augmentation
    key: jax.Array


class Training(NamedTuple):
    """How far a training has come: all that is needed to go on.

    Attributes:
      step: how many steps were made.
      params: of the network.
      stats: the running statistics of its norms.
      state: of the optimizer.
      losses: the loss of each step's batch, 0 for those to come.
    """

    step: jax.Array
    params: Any
    stats: Any
    state: Any
    losses: jax.Array


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


@gx.augment.augmentation
def noise(sigma: float) -> gx.augment.Stage:
    """Adds white noise of a standard deviation, and keeps to what an image can be."""

    def draw(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
        return sigma * jax.random.normal(key, (shape[2], *shape[:2]))

    def kernel(drawn: jax.Array, planes: list[jax.Array]) -> list[jax.Array]:
        return [jnp.clip(x + added, 0.0, 1.0).astype(x.dtype) for x, added in zip(planes, drawn, strict=True)]

    return gx.augment.Pixelwise(draw, kernel)


def distortion(shape: tuple[int, int, int]) -> gx.augment.Augmentation:
    """What writing may look like that says the same: neither mirrored nor cut down, but moved, turned and bent."""
    side = min(shape[:2])
    return gx.augment.chain(
        gx.augment.random_affine(20.0, translate=(0.125, 0.125), scale=(0.8, 1.2), shear=(15.0, 15.0)),
        gx.augment.elastic_deformation(alpha=0.5 * side, sigma=0.25 * side),
        noise(NOISE),
        gx.augment.cutout(max(1, side // 4)),
    )


def make_views(shape: tuple[int, int, int]) -> gx.augment.Augmentation:
    """What makes two views of each image, for images of a height, width and number of channels.

    Colour images are photographs, for which SimCLR's own augmentations were made. Others are taken for writing.
    """
    height, width, channels = shape
    if channels == 3:
        return gx.augment.simclr_views((height, width), 0.5, blur=min(height, width) > 32)
    return gx.augment.two_views(distortion(shape))


def make_optimizer(name: str, schedule: gx.Schedule) -> gx.Transformation:
    """One of ``RATES``, in which biases and norms neither decay nor, as SimCLR has it, have rates of their layer."""
    matrices = gx.ndim_at_least(2)
    if name == "lars":
        return gx.lars(schedule, weight_decay=1e-6, mask=matrices, trust_ratio_mask=matrices)
    return gx.adamw(schedule, weight_decay=1e-4, mask=matrices)


def steps_an_epoch(images: int) -> int:
    """How many batches so many images make."""
    return images // min(BATCH_SIZE, images)


def begin(images: np.ndarray, epochs: int, seed: int, optimizer: str = "adamw") -> tuple[Course, Training]:
    """A training that is about to begin.

    Args:
      images: to train on, of shape (N, height, width, channels).
      epochs: how often all of them are to be gone through.
      seed: fixes the initial weights, the order of the images and their views.
      optimizer: one of ``RATES``.

    Returns:
      What stays the same throughout, and where it begins.
    """
    shape = images.shape[1:]
    steps = epochs * steps_an_epoch(len(images))
    schedule = gx.schedules.warmup(steps // 10, gx.schedules.cosine(RATES[optimizer], steps - steps // 10))
    tx = make_optimizer(optimizer, schedule)
    graph, params, stats = nnx.split(Embedder(shape, nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)
    training = Training(jnp.zeros([], jnp.int32), params, stats, tx.init(params), jnp.zeros(steps))
    return Course(graph, schedule, tx, make_views(shape), jax.random.key(seed)), training


def settings(course: Course, data: probe.Data, seed: int) -> dict[str, Any]:
    """All that the result of a training depends on."""
    return {
        "tx": course.tx,
        "views": course.views,
        "temperature": TEMPERATURE,
        "batch": BATCH_SIZE,
        "seed": seed,
        "images": data.digest(),
    }


def pretrain(
    course: Course, training: Training, data: probe.Data, seed: int, folder: pathlib.Path, told: str | None = None
) -> Training:
    """Trains a network to the end, from where an interrupt has left it if there was one.

    Args:
      course: of the training.
      training: its beginning.
      data: the images that it began with.
      seed: that it began with.
      folder: where the run is saved.
      told: what is being done, in words.

    Returns:
      The end of the training.
    """
    images = data.train_images
    steps, batch = len(training.losses), min(BATCH_SIZE, len(images))
    with gx.resume.Run(folder, config=settings(course, data, seed)) as run:
        training = run.restore(training)
        with tqdm(run.steps(steps), initial=run.first, total=steps, unit="step", desc=told) as progress:
            for step in progress:
                chosen = gx.resume.order(seed, step, len(images), batch)
                training = train_step(course.graph, course.tx, course.views, training, images[chosen], course.key)
                run.save(step, training)
                if step % READ_EVERY == 0:
                    progress.set_postfix_str(f"loss {training.losses[step]:.4f}", refresh=False)
    return training


@functools.partial(jax.jit, static_argnames=("graph", "tx", "views"), donate_argnames="old")
def train_step(
    graph: Any, tx: gx.Transformation, views: gx.augment.Augmentation, old: Training, images: jax.Array, key: jax.Array
) -> Training:
    """One update, in the memory of the old."""
    both = jnp.concatenate(views(jax.random.fold_in(key, old.step), images))

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, old.stats, copy=True)
        z1, z2 = jnp.split(model(both), 2)
        return gx.losses.nt_xent(z1, z2, TEMPERATURE), nnx.state(model, nnx.BatchStat)

    (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(old.params)
    updates, state = tx.update(gradients, old.state, old.params)
    params = gx.apply_updates(old.params, updates)
    return Training(old.step + 1, params, stats, state, old.losses.at[old.step].set(loss))


@functools.partial(jax.jit, static_argnames="graph")
def features(graph: Any, params: Any, stats: Any, images: jax.Array) -> jax.Array:
    """What the backbone makes of whole images, by the running statistics."""
    model = nnx.merge(graph, params, stats)
    model.eval()
    return model.backbone(images)


def encode(course: Course, training: Training, images: np.ndarray) -> np.ndarray:
    """The features of images, of shape (N, 128)."""
    return probe.in_parts(functools.partial(features, course.graph, training.params, training.stats), images)


def view_rows(course: Course, images: np.ndarray) -> dict[str, np.ndarray]:
    """Some images and two views of each, by name."""
    view1, view2 = course.views(course.key, images[:10])
    return {"image": images[:10], "view 1": view1, "view 2": view2}


def train(data: probe.Data, epochs: int, seed: int, optimizer: str, folder: pathlib.Path) -> Result:
    """Trains the network, without labels: see ``begin`` and ``pretrain``.

    Returns:
      The course of the run and what the network makes of the images.
    """
    course, training = begin(data.train_images, epochs, seed, optimizer)
    print(course.tx)
    print(course.views)
    training = pretrain(course, training, data, seed, folder)
    encoded = [encode(course, training, x) for x in (data.train_images, data.test_images)]
    return Result(course.schedule, np.asarray(training.losses), view_rows(course, data.train_images), *encoded)


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


def add_optimizer(parser: argparse.ArgumentParser) -> None:
    """The option that says how to pretrain."""
    parser.add_argument("--optimizer", choices=RATES, default="adamw", help="of pretraining (default: %(default)s)")


def main(arguments: list[str] | None = None) -> int:
    """Trains, probes, draws and judges.

    Args:
      arguments: those of the command line; by default what the program was called with.

    Returns:
      The exit code: 1 if the probe is no better on features than on pixels; see ``probe.ended``.
    """
    parser = argparse.ArgumentParser(description="Learns from pairs of views, and probes what was learned.")
    add_optimizer(parser)
    options, data = probe.arguments(parser, arguments, epochs=80)
    return probe.ended(lambda: work(options, data))


def work(options: Any, data: probe.Data) -> int:
    """What ``main`` does once it knows what to do."""
    folder = probe.folder(options, "pretrain_simclr", options.optimizer, options.epochs, options.seed)
    result = train(data, options.epochs, options.seed, options.optimizer, folder)
    pixels = probe.accuracies(data, data.train_images, data.test_images)
    features = probe.accuracies(data, result.train_features, result.test_features)
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "pretrain_simclr.png"
    draw(data, result, pixels, features, picture)
    return probe.judge(pixels, features, picture)


if __name__ == "__main__":
    sys.exit(main())
