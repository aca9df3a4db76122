"""Trains a small convolutional network on images in files, from the folder to the chip.

    python examples/train_images.py --data DIR --size 64 --steps 2000 --output pictures

``DIR/CLASS/NAME.jpg`` (or ``.png``) are read by Grain, decoded and put into batches ahead of time, and augmented on the
device within the compiled step. Without ``--data`` the files are scikit-learn's digits on pieces of photographs, which
are written first. Now and then reading, augmenting and training are each measured by themselves. The place among the
files is saved with the params and the optimizer's state: after Ctrl-C, or however the run ended, the same command goes
on with the batch after those, to the same result to the bit. At most a minute of work is done twice.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from image_files import Batch, Decode, Feed, Files, find, once, write_digits
from networks import Classifier
from tqdm import tqdm

import gradxform as gx

OUTPUT = pathlib.Path(__file__).parent / "output"
BATCH_SIZE = 64
QUICK = 40
MEASURE_EVERY, MEASURE_AT = 200, 20
READ_EVERY = 10
MEASURED = 16
"""Batches that are read, and times that a batch is augmented and trained on, in one measurement."""
GOAL = 0.9
"""Of the digits; for other images it is to do better than who always names the largest class."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TAKEN = ("image",)
"""What of a batch the augmentation is given."""


class Course(NamedTuple):
    """What stays the same throughout a training.

    Attributes:
      graph: the network without its numbers.
      tx: the optimizer.
      augment: the augmentation.
      key: of all that is drawn.
    """

    graph: Any
    tx: gx.Transformation
    augment: gx.augment.Augmentation
    key: jax.Array


class Training(NamedTuple):
    """How far a training has come: all that is needed to go on, but for the place among the files.

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


def make_augmentation(size: int, writing: bool) -> gx.augment.Augmentation:
    """What the device does to an image of each batch. A digit cut in half or mirrored is none, so those are not."""
    return gx.augment.chain(
        gx.augment.random_resized_crop((size, size), scale=(0.6 if writing else 0.25, 1.0)),
        gx.augment.random_flip_left_right(0.0 if writing else 0.5),
        gx.augment.rand_augment(num_ops=2, magnitude=5 if writing else 9),
        gx.augment.normalize(MEAN, STD),
    )


def begin(files: Files, size: int, steps: int, seed: int, writing: bool) -> tuple[Course, Training]:
    """A training that is about to begin."""
    schedule = gx.schedules.warmup(steps // 10, gx.schedules.cosine(1e-2, steps - steps // 10))
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(schedule, weight_decay=0.01, mask=gx.ndim_at_least(2)))
    model = Classifier((size, size, 3), len(files.classes), nnx.Rngs(seed))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    training = Training(jnp.zeros([], jnp.int32), params, stats, tx.init(params), jnp.zeros(steps))
    return Course(graph, tx, make_augmentation(size, writing), jax.random.key(seed)), training


@functools.partial(jax.jit, static_argnames="augment")
def augmented(augment: gx.augment.Augmentation, key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """The images that the network sees."""
    return augment(key, {name: batch[name] for name in TAKEN})["image"]


@functools.partial(jax.jit, static_argnames=("graph", "tx", "augment"), donate_argnames="old")
def train_step(
    graph: Any,
    tx: gx.Transformation,
    augment: gx.augment.Augmentation,
    key: jax.Array,
    old: Training,
    batch: dict[str, jax.Array],
) -> Training:
    """One update, in the memory of the old, augmentation included."""
    images = augmented(augment, jax.random.fold_in(key, old.step), batch)

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, old.stats, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), batch["label"])
        return losses.mean(), nnx.state(model, nnx.BatchStat)

    (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(old.params)
    updates, state = tx.update(gradients, old.state, old.params)
    params = gx.apply_updates(old.params, updates)
    return Training(old.step + 1, params, stats, state, old.losses.at[old.step].set(loss))


def measure_device(course: Course, training: Training, batch: Batch) -> dict[str, float]:
    """Seconds for an image to be augmented, and those that a step takes beyond that; the training stays as it is."""
    jax.block_until_ready(training)
    copies = [jax.tree.map(jnp.copy, training) for _ in range(MEASURED + 1)]
    augment = _seconds(lambda: augmented(course.augment, course.key, batch))
    step = _seconds(lambda: train_step(*course, copies.pop(), batch))
    return {"augment": augment / BATCH_SIZE, "train": (step - augment) / BATCH_SIZE}


def measure_reading(feed: Feed) -> dict[str, float]:
    """Seconds for an image to be read, the device at rest. What is read is trained on later.

    Workers have some batches ready: those are taken first, and not counted.
    """
    feed.read(feed.depth)
    begun = time.perf_counter()
    feed.read(MEASURED)
    return {"read": (time.perf_counter() - begun) / (MEASURED * BATCH_SIZE)}


def _seconds(function: Callable[[], Any]) -> float:
    """The median of some runs, each waited for, after one that compiles."""
    times = []
    for _ in range(MEASURED + 1):
        begun = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - begun)
    return float(np.median(times[1:]))


def rates(seconds: dict[str, float]) -> str:
    """Images a second in words, part by part."""
    return ", ".join(f"{part} {f'{1 / s:,.0f}' if s > 0 else '-'}" for part, s in seconds.items())


def train(course: Course, training: Training, feed: Feed, run: gx.resume.Run) -> Training:
    """Goes on with a training to its end.

    Args:
      course: of the training.
      training: its beginning, or where an interrupt has left it; its memory is used up.
      feed: the batches from there on.
      run: that saves it.

    Returns:
      The training, at its end.
    """
    steps = len(training.losses)
    measured: list[dict[str, float]] = []
    begun = paused = 0.0
    with tqdm(total=steps * BATCH_SIZE, initial=run.first * BATCH_SIZE, unit="image", unit_scale=True) as progress:
        for step in run.steps(steps):
            batch = next(feed)
            if step % MEASURE_EVERY == MEASURE_AT:
                since = time.perf_counter()
                seconds = measure_device(course, training, batch)
                paused += time.perf_counter() - since
                measured.append(measure_reading(feed) | seconds)
            training = train_step(*course, training, batch)
            run.save(step, training, feed)
            progress.update(BATCH_SIZE)
            if step % READ_EVERY == 0:
                progress.set_postfix_str(f"loss {training.losses[step]:.3f}", refresh=False)
            if step == run.first:  # which was compiled
                jax.block_until_ready(training)
                begun = time.perf_counter()
    seconds = time.perf_counter() - begun - paused
    if measured:
        medians = {part: float(np.median([one[part] for one in measured])) for part in measured[0]}
        print(f"images a second, each part alone: {rates(medians)}")
    if steps > run.first + 1:
        print(f"together: {BATCH_SIZE * (steps - run.first - 1) / seconds:,.0f}")
    return training


@functools.partial(jax.jit, static_argnames="graph")
def guesses(graph: Any, params: Any, stats: Any, images: jax.Array) -> jax.Array:
    """The labels that the network gives to 8-bit images."""
    model = nnx.merge(graph, params, stats)
    model.eval()
    return model(gx.augment.normalize(MEAN, STD)(jax.random.key(0), images)).argmax(-1)


def accuracy(course: Course, training: Training, files: Files, size: int) -> float:
    """The fraction of held-out images that are recognized."""
    right = 0
    for batch, count in once(files.test, Decode(size, short_side(size)), BATCH_SIZE):
        found = np.asarray(guesses(course.graph, training.params, training.stats, batch["image"]))
        right += int((found == batch["label"])[:count].sum())
    return right / len(files.test)


def short_side(size: int) -> int:
    """How long the shorter side of an image is made of which the network sees a square: 256 pixels for one of 224."""
    return size * 8 // 7


def main(arguments: list[str] | None = None) -> int:
    """Trains and judges.

    Args:
      arguments: those of the command line; by default what the program was called with.

    Returns:
      The exit code: 1 if fewer held-out images than the goal are recognized; 130 if the run was interrupted, in which
      case the same command goes on; 2 if what is saved is of other settings.
    """
    parser = argparse.ArgumentParser(description="Trains a small network on a folder of images for each class.")
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        metavar="DIR",
        help="with CLASS/NAME.jpg or .png; a fifth of each "
        "class is held out (default: digits on photographs, which are written to the output)",
    )
    parser.add_argument("--size", type=int, default=32, help="of the square that the network sees (%(default)s)")
    parser.add_argument(
        "--fit",
        choices=("crop", "pad"),
        default="crop",
        help="how images of all sizes get to one "
        "before they are augmented: cut to a square, or padded to it (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=600, help=f"of {BATCH_SIZE} images (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read (default: none, but threads)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    parser.add_argument(
        "--goal",
        type=float,
        help=f"fraction of held-out images to recognize (default: {GOAL} of the "
        "digits; else more than are in the largest class)",
    )
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="folder of the checkpoints (%(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} steps, whose accuracy means little")
    parser.add_argument("--restart", action="store_true", help="begin anew where there is a checkpoint")
    options = parser.parse_args(arguments)
    for name, least in (("size", 8), ("steps", 1), ("workers", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name}: expected at least {least}, got {getattr(options, name)}")
    steps = QUICK if options.quick else options.steps
    folder, writing = options.output / "train_images", options.data is None
    if writing:
        write_digits(folder / "digits")
    try:
        files = find(folder / "digits" if writing else options.data)
    except ValueError as error:
        parser.error(f"--data: {error}")
    largest = max(np.bincount([label for _, label in files.test])) / len(files.test)
    goal = options.goal or (GOAL if writing and not options.quick else largest + 1 / len(files.test))
    print(f"{len(files.train):,} images in {len(files.classes)} classes to train on, {len(files.test):,} to test on")

    course, training = begin(files, options.size, steps, options.seed, writing)
    print(course.tx, course.augment, sep="\n")
    saved = folder / "-".join(map(str, ("digits" if writing else options.data.name, options.size, steps, options.seed)))
    if options.restart:
        shutil.rmtree(saved, ignore_errors=True)
    config = {
        "tx": course.tx,
        "augment": course.augment,
        "files": files.digest(),
        "batch": BATCH_SIZE,
        "fit": options.fit,
        "workers": options.workers,
        "seed": options.seed,
        "grain": version("grain"),
    }
    side = short_side(options.size)
    feed = Feed(
        files.train, Decode(side, side if options.fit == "crop" else None), BATCH_SIZE, options.seed, options.workers
    )
    try:
        with gx.resume.Run(saved, config=config) as run:
            training = run.restore(training, feed)
            begins = "goes on" if run.first else "starts anew"
            print(f"{begins} at step {run.first}; checkpoints in {saved}", flush=True)
            training = train(course, training, feed, run)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    except gx.resume.MismatchError as error:
        print(f"{error}\n--restart does, too.", file=sys.stderr)
        return 2
    finally:
        feed.close()
    found = accuracy(course, training, files, options.size)
    print(f"held-out accuracy {found:.2%}")
    if found < goal:
        print(f"the held-out accuracy is below the goal of {goal:.1%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
