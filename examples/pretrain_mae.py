"""Learns from images without labels by filling in what is hidden: a masked autoencoder.

    python examples/pretrain_mae.py --seed 0 --output pictures

Three quarters of the patches of an image are taken away; a small transformer encodes the others, and a smaller one
guesses the missing pixels from that (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022). With
ten labels a class, logistic regression on what the encoder makes of an image is then better than on its pixels. The
images are scikit-learn's handwritten digits, or those of ``--data``. After an interrupt the same command goes on, to
the same result: at most a minute of work is done twice.
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
READ_EVERY = 20
RATIO = 0.75
RATE = 3e-3
WIDTH, HEADS, DEPTH = 64, 4, 3
DECODER_WIDTH, DECODER_HEADS, DECODER_DEPTH = 32, 4, 2


class Block(nnx.Module):
    """A transformer's block: each token looks at all, then at itself."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = gx.norm.nnx.LayerNorm(width, rngs=rngs)
        self.attend = nnx.Linear(width, 3 * width, rngs=rngs)
        self.mix = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = gx.norm.nnx.LayerNorm(width, rngs=rngs)
        self.widen = nnx.Linear(width, 2 * width, rngs=rngs)
        self.narrow = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        heads = self.attend(self.norm1(x)).reshape(batch, length, self.heads, 3 * width // self.heads)
        query, key, value = jnp.split(heads, 3, axis=-1)
        x += self.mix(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))
        return x + self.narrow(nnx.gelu(self.widen(self.norm2(x))))


class Autoencoder(nnx.Module):
    """An encoder of the patches that are seen, and a decoder that guesses all of them."""

    def __init__(self, length: int, features: int, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Linear(features, WIDTH, rngs=rngs)
        self.positions = nnx.Param(normal(rngs.params(), (length, WIDTH)))
        self.encoder = nnx.List([Block(WIDTH, HEADS, rngs) for _ in range(DEPTH)])
        self.norm = gx.norm.nnx.LayerNorm(WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(WIDTH, DECODER_WIDTH, rngs=rngs)
        self.hidden = nnx.Param(jnp.zeros(DECODER_WIDTH))
        self.decoder_positions = nnx.Param(normal(rngs.params(), (length, DECODER_WIDTH)))
        self.decoder = nnx.List([Block(DECODER_WIDTH, DECODER_HEADS, rngs) for _ in range(DECODER_DEPTH)])
        self.decoder_norm = gx.norm.nnx.LayerNorm(DECODER_WIDTH, rngs=rngs)
        self.predict = nnx.Linear(DECODER_WIDTH, features, rngs=rngs)

    def encode(self, patches: jax.Array, ids_keep: jax.Array | None = None) -> jax.Array:
        """The tokens of the patches that are kept, of shape (batch, num_keep, WIDTH); by default of all."""
        x = self.embed(patches) + self.positions[...]
        if ids_keep is not None:
            x = gx.masking.gather_tokens(x, ids_keep)
        for block in self.encoder:
            x = block(x)
        return self.norm(x)

    def __call__(self, patches: jax.Array, masked: gx.masking.RandomMask) -> jax.Array:
        """Guesses of all patches from those that are kept, of the shape of ``patches``."""
        x = self.narrow(self.encode(patches, masked.ids_keep))
        x = gx.masking.scatter_tokens(x, masked.ids_restore, self.hidden[...]) + self.decoder_positions[...]
        for block in self.decoder:
            x = block(x)
        return self.predict(self.decoder_norm(x))


class Result(NamedTuple):
    """What came of a run.

    Attributes:
      schedule: the learning rate.
      losses: the mean squared error of each step's batch.
      rows: some test images, what is seen of them and what the network makes of that, by name.
      train_features: of the training images, of shape (N, patches * WIDTH).
      test_features: of the test images.
    """

    schedule: gx.Schedule
    losses: np.ndarray
    rows: dict[str, np.ndarray]
    train_features: np.ndarray
    test_features: np.ndarray


def patch_size(images: np.ndarray) -> int:
    """The side of a patch: 2 pixels for small images, 4 for others.

    Raises:
      ValueError: it does not divide the height and width of the images.
    """
    height, width = images.shape[1:3]
    patch = 2 if max(height, width) <= 16 else 4
    if height % patch or width % patch:
        raise ValueError(
            f"x_train: expected height and width in multiples of {patch} pixels, the side of a patch, got "
            f"{height} x {width}"
        )
    return patch


def hide(key: jax.Array, patches: jax.Array) -> gx.masking.RandomMask:
    """Which patches of each image are hidden."""
    batch, length, _ = patches.shape
    return gx.masking.random_masking(key, batch, length, max(1, gx.masking.num_kept(length, RATIO)))


@functools.partial(jax.jit, static_argnames=("graph", "tx", "patch", "normalize"), donate_argnames=("params", "state"))
def train_step(
    graph: Any,
    tx: gx.Transformation,
    patch: int,
    normalize: bool,
    params: Any,
    state: Any,
    images: jax.Array,
    key: jax.Array,
    step: int,
) -> tuple[Any, Any, jax.Array]:
    """One update: the new params and state, in the memory of the old, and the loss before it."""
    patches = gx.masking.patchify(images, patch)
    masked = hide(jax.random.fold_in(key, step), patches)
    targets = gx.masking.normalize_patches(patches) if normalize else patches

    def loss_of(params: Any) -> jax.Array:
        return gx.losses.masked_mse(nnx.merge(graph, params)(patches, masked), targets, masked.mask)

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(gradients, state, params)
    return gx.apply_updates(params, updates), state, loss


@functools.partial(jax.jit, static_argnames=("graph", "patch"))
def features(graph: Any, patch: int, params: Any, images: jax.Array) -> jax.Array:
    """What the encoder makes of whole images: the tokens of all patches side by side."""
    tokens = nnx.merge(graph, params).encode(gx.masking.patchify(images, patch))
    return tokens.reshape(len(tokens), -1)


def reconstruct(
    graph: Any, patch: int, normalize: bool, params: Any, images: np.ndarray, key: jax.Array
) -> dict[str, np.ndarray]:
    """Images, what is seen of them, and the same with the rest filled in; by name, each of the shape of ``images``."""
    patches = gx.masking.patchify(jnp.asarray(images), patch)
    masked = hide(key, patches)
    guesses = nnx.merge(graph, params)(patches, masked)
    if normalize:
        # The network has guessed patches without their mean and contrast, which the picture takes from the original.
        guesses = guesses * patches.std(-1, keepdims=True, ddof=1) + patches.mean(-1, keepdims=True)
    grid = (images.shape[1] // patch, images.shape[2] // patch)
    hidden = masked.mask[..., None]
    rows = {"image": patches, "seen": jnp.where(hidden, 0.5, patches), "filled in": jnp.where(hidden, guesses, patches)}
    return {name: np.asarray(gx.masking.unpatchify(row, patch, grid)) for name, row in rows.items()}


def train(data: probe.Data, epochs: int, seed: int, normalize: bool, folder: pathlib.Path) -> Result:
    """Trains the network, without labels.

    Args:
      data: the images.
      epochs: how often all training images are gone through.
      seed: fixes the initial weights, the order of the images and what is hidden of them.
      normalize: whether the network is to guess patches less their mean and divided by their standard deviation.
      folder: where the run is saved.

    Returns:
      The course of the run and what the network makes of the images.
    """
    images = data.train_images
    patch, batch = patch_size(images), min(BATCH_SIZE, len(images))
    steps = epochs * (len(images) // batch)
    schedule = gx.schedules.warmup(steps // 10, gx.schedules.cosine(RATE, steps - steps // 10))
    tx = gx.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.05, mask=gx.ndim_at_least(2))
    print(tx)

    _, length, size = jax.eval_shape(lambda x: gx.masking.patchify(x, patch), images[:1]).shape
    graph, params = nnx.split(Autoencoder(length, size, nnx.Rngs(seed)), nnx.Param)
    key = jax.random.key(seed)
    config = {
        "tx": tx,
        "hidden": RATIO,
        "patch": patch,
        "normalize": normalize,
        "heads": (HEADS, DECODER_HEADS),
        "batch": BATCH_SIZE,
        "seed": seed,
        "images": data.digest(),
    }
    with gx.resume.Run(folder, config=config) as run:
        params, state, losses = run.restore((params, tx.init(params), jnp.zeros(steps)))
        with tqdm(run.steps(steps), initial=run.first, total=steps, unit="step") as progress:
            for step in progress:
                chosen = images[gx.resume.order(seed, step, len(images), batch)]
                params, state, loss = train_step(graph, tx, patch, normalize, params, state, chosen, key, step)
                losses = losses.at[step].set(loss)
                run.save(step, (params, state, losses))
                if step % READ_EVERY == 0:
                    progress.set_postfix_str(f"loss {loss:.4f}", refresh=False)

    encoded = [probe.in_parts(functools.partial(features, graph, patch, params), x) for x in (images, data.test_images)]
    rows = reconstruct(graph, patch, normalize, params, data.test_images[:10], jax.random.key(seed + 1))
    return Result(schedule, np.asarray(losses), rows, *encoded)


def draw(data: probe.Data, result: Result, pixels: np.ndarray, features: np.ndarray, path: pathlib.Path) -> None:
    """Draws the loss of every step and the learning rate, the probe beside them, and some images filled in."""
    steps = len(result.losses)
    fig = plt.figure(figsize=(10.0, 8.4), layout="constrained")
    curves, below = fig.subfigures(2, height_ratios=(1.5, 1))
    axes = curves.subplot_mosaic("LP;RP", width_ratios=(2, 1), height_ratios=(2, 1))
    probe.draw_course(axes["L"], axes["R"], result.losses, result.schedule)
    axes["L"].set_ylabel("Mean squared error")
    axes["L"].set_title(f"{data.name}: the {RATIO:.0%} that are hidden, {steps:,} steps")
    probe.draw_accuracies(axes["P"], pixels, features)
    below.suptitle("Test images")
    probe.draw_rows(below.subplots(3, 10), result.rows)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> int:
    """Trains, probes, draws and judges.

    Args:
      arguments: those of the command line; by default what the program was called with.

    Returns:
      The exit code: 1 if the probe is no better on features than on pixels; see ``probe.ended``.
    """
    parser = argparse.ArgumentParser(description="Trains a masked autoencoder and probes what it has learned.")
    parser.add_argument("--normalize-patches", action="store_true", help="guess patches less mean and contrast")
    options, data = probe.arguments(parser, arguments, epochs=300)
    try:
        patch_size(data.train_images)
    except ValueError as error:
        parser.error(f"--data: {error}")
    return probe.ended(lambda: work(options, data))


def work(options: Any, data: probe.Data) -> int:
    """What ``main`` does once it knows what to do."""
    kind = "normalized" if options.normalize_patches else "plain"
    folder = probe.folder(options, "pretrain_mae", kind, options.epochs, options.seed)
    result = train(data, options.epochs, options.seed, options.normalize_patches, folder)
    pixels = probe.accuracies(data, data.train_images, data.test_images)
    features = probe.accuracies(data, result.train_features, result.test_features)
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "pretrain_mae.png"
    draw(data, result, pixels, features, picture)
    return probe.judge(pixels, features, picture)


if __name__ == "__main__":
    sys.exit(main())
