"""The main job: learns from images without labels, then from a few labels, and measures what the former was worth.

    python examples/pipeline.py --seeds 4 --output pictures

A small network is pretrained on views of images (SimCLR) and then told a few labels of each class, in several ways: a
linear probe on its features, a new head on the frozen backbone, full fine-tuning, fine-tuning pulled toward the start
(L2-SP), and with rates that fall toward the input. Beside that stand the same network trained from scratch, with the
same augmentation and for longer, and a linear probe on raw pixels. Everything is done for several seeds, each with its
own initial weights, views and draw of labels, the same for all methods: differences are taken seed by seed.

After an interrupt the same command goes on, to the same result: at most a minute of work is done twice. The images are
scikit-learn's handwritten digits, or those of ``--data``.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Any, NamedTuple

import finetune
import numpy as np
import pipeline_report as report
import pipeline_table as table
import pretrain_simclr as simclr
import probe
from finetune import Method
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import gradxform as gx

COUNTS = (2, 5, 10)
"""Labelled images of each class."""
PIXELS, FEATURES, SCRATCH, TUNED = "pixels, linear probe", "features, linear probe", "from scratch", "full fine-tuning"
METHODS: dict[str, Method | None] = {
    PIXELS: None,
    SCRATCH: Method(1e-2, pretrained=False),
    FEATURES: None,
    "frozen backbone": Method(1e-2, frozen=True),
    TUNED: Method(3e-3),
    "L2-SP": Method(1e-2, strength=10.0),
    "layer-wise decay": Method(3e-3, decay=0.25),
}
"""How each classifier is trained; the rates and strengths were chosen on a part of the training images: ``--tune``."""
FIRST_SEED = 100
"""Of those that measure; the methods' rates and strengths were chosen with seeds from 0 on."""
MAPPED = 1000
"""Test images in the map of features."""


class Plan(NamedTuple):
    """How much is done.

    Attributes:
      seeds: one for each time that everything is done.
      epochs: of pretraining.
      steps: of training a classifier.
      longer: how many times as many steps from scratch, so that they are no fewer than those of pretraining and of
        training a classifier together.
      optimizer: of pretraining, one of ``simclr.RATES``.
    """

    seeds: range
    epochs: int
    steps: int
    longer: int
    optimizer: str


def make_plan(options: Any, shape: tuple[int, ...]) -> Plan:
    """How much is done, by the options and by how many images there are and how large."""
    images, height, width, _ = shape
    seeds, views, steps = (2, 20_000, 30) if options.quick else (4, 100_000, 200)
    if height * width > 256:  # a step takes some eight times as long
        views, steps = views // 2, steps // 2
    epochs, steps = options.epochs or min(200, max(1, round(views / images))), options.steps or steps
    longer = -(-(epochs * simclr.steps_an_epoch(images) + steps) // steps)
    return Plan(range(options.seed, options.seed + (options.seeds or seeds)), epochs, steps, longer, options.optimizer)


def methods_of(plan: Plan) -> dict[str, Method | None]:
    """``METHODS``, the one from scratch for as long as the plan has it."""
    return {name: how and how._replace(longer=1 if how.pretrained else plan.longer) for name, how in METHODS.items()}


def settings(data: probe.Data, plan: Plan, seed: int, course: simclr.Course) -> dict[str, Any]:
    """All that the accuracies of a seed depend on."""
    methods = methods_of(plan).items()
    return {
        "pretraining": simclr.settings(course, data, seed),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "counts": COUNTS,
        "batch": finetune.BATCH_SIZE,
        "augment": finetune.make_augmentation(data.train_images.shape[1:]),
        "methods": {name: how and how._asdict() for name, how in methods},
        "tx": {name: finetune.recipe(how, how.longer * plan.steps) for name, how in methods if how},
    }


def pretrain(data: probe.Data, plan: Plan, seed: int, folder: pathlib.Path) -> tuple[simclr.Course, simclr.Training]:
    """Pretrains the network of a seed, or what is left to do of that."""
    course, training = simclr.begin(data.train_images, plan.epochs, seed, plan.optimizer)
    told = f"pretraining {plan.seeds.index(seed) + 1} of {len(plan.seeds)}"
    return course, simclr.pretrain(course, training, data, seed, folder / f"pretraining-{seed}", told)


def backbone_of(training: simclr.Training) -> tuple[Any, Any]:
    """The params and running statistics of a pretrained backbone."""
    return training.params["backbone"], training.stats["backbone"]


def draw_labels(data: probe.Data, count: int, seed: int) -> np.ndarray:
    """The positions of a seed's labelled images among the training images; more labels are the same ones and others."""
    most = probe.draw_few(data, max(COUNTS), np.random.default_rng(seed))
    return most.reshape(-1, max(COUNTS))[:, :count].ravel()


def adapt(
    data: probe.Data,
    plan: Plan,
    seed: int,
    course: simclr.Course,
    training: simclr.Training,
    folder: pathlib.Path,
    bar: tqdm,
) -> np.ndarray:
    """Tells a seed's network a few labels, in all ways, or what is left to do of that.

    Returns:
      The fractions of test images that are recognized, of shape (methods, counts).
    """
    methods = list(methods_of(plan).items())
    with gx.resume.Run(folder / f"adapting-{seed}", config=settings(data, plan, seed, course)) as run:
        found = run.restore(np.zeros((len(METHODS), len(COUNTS))))
        bar.update(run.first)
        if run.first < found.size:
            features = [simclr.encode(course, training, x) for x in (data.train_images, data.test_images)]
        for step in run.steps(found.size):
            j, i = divmod(step, len(methods))
            (method, how), drawn = methods[i], draw_labels(data, COUNTS[j], seed)
            bar.set_postfix_str(f"{COUNTS[j]} labels a class, {method}")
            if how is None:
                train, test = features if method == FEATURES else (data.train_images, data.test_images)
                found[i, j] = probe.accuracy(data, train, test, drawn)
            else:
                found[i, j] = finetune.accuracy(data, how, backbone_of(training), drawn, plan.steps, seed)
            run.save(step, found)
            bar.update()
    return found


def tune(data: probe.Data, plan: Plan, folder: pathlib.Path) -> int:
    """Prints how other settings than those of ``METHODS`` do, by the number of labels a class."""
    pretrained = {seed: pretrain(data, plan, seed, folder)[1] for seed in plan.seeds}
    for name, method in methods_of(plan).items():
        if method is None:
            continue
        grid = [method._replace(rate=factor * method.rate) for factor in (0.3, 1.0, 3.0)]
        if method.strength:
            grid += [method._replace(strength=factor * method.strength) for factor in (0.1, 10.0)]
        if method.decay < 1.0:
            grid += [method._replace(decay=decay) for decay in (0.25, 0.75)]
        for tried in grid:
            found = [
                [
                    finetune.accuracy(data, tried, backbone_of(one), draw_labels(data, count, seed), plan.steps, seed)
                    for count in COUNTS
                ]
                for seed, one in pretrained.items()
            ]
            print(
                f"{name:18} rate {tried.rate:<7g} strength {tried.strength:<5g} decay {tried.decay:<5g}",
                *(f"{100 * mean:6.1f}" for mean in np.mean(found, 0)),
                flush=True,
            )
    return 0


def hold_out(data: probe.Data) -> probe.Data:
    """The training images alone, a quarter of them in the place of the test images."""
    train, test, train_labels, test_labels = train_test_split(
        data.train_images, data.train_labels, test_size=0.25, stratify=data.train_labels, random_state=0
    )
    return probe.Data(data.name, train, test, train_labels, test_labels)


def main(arguments: list[str] | None = None) -> int:
    """Pretrains, adapts, compares and draws.

    Args:
      arguments: those of the command line; by default what the program was called with.

    Returns:
      The exit code: 1 if a linear probe is no better on features than on pixels where labels are fewest; see
      ``probe.ended``.
    """
    parser = argparse.ArgumentParser(description="Learns without labels, then from few, and measures what that gave.")
    parser.add_argument("--seeds", type=int, help="how often everything is done (default: 4; quick: 2)")
    parser.add_argument("--steps", type=int, help="of training each classifier (default: 200; quick: 30)")
    simclr.add_optimizer(parser)
    parser.add_argument("--quick", action="store_true", help="less of everything: a trial whose numbers mean little")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="print the accuracies of other settings on held-out training images, and end",
    )
    options, data = probe.arguments(parser, arguments, epochs=None, seed=FIRST_SEED)
    if options.tune:
        data = hold_out(data)
    plan = make_plan(options, data.train_images.shape)
    part = ("tune",) if options.tune else ()
    folder = probe.folder(options, "pipeline", *part, plan.optimizer, plan.epochs, plan.steps)
    print(
        f"{data.name}: {len(data.train_images):,} training images without labels, {plan.epochs} epochs; "
        f"{len(plan.seeds)} seeds"
    )
    print(f"{'goes on with' if folder.exists() else 'starts anew, with'} checkpoints in {folder}", flush=True)
    if options.tune:
        return probe.ended(lambda: tune(data, plan, folder))
    return probe.ended(lambda: work(data, plan, folder, options.output / "pipeline.png", options.quick))


def work(data: probe.Data, plan: Plan, folder: pathlib.Path, picture: pathlib.Path, quick: bool) -> int:
    """What ``main`` does once it knows what to do."""
    begun = time.perf_counter()
    pretrained = [pretrain(data, plan, seed, folder) for seed in plan.seeds]
    with tqdm(total=len(plan.seeds) * len(METHODS) * len(COUNTS), unit="run", desc="adapting") as bar:
        each = [adapt(data, plan, seed, *one, folder, bar) for seed, one in zip(plan.seeds, pretrained, strict=True)]
    found = dict(zip(METHODS, np.stack(each, 1), strict=True))

    course, training = pretrained[0]
    features = simclr.encode(course, training, data.test_images[:MAPPED])
    losses = np.stack([one.losses for _, one in pretrained])
    report.draw(
        picture,
        data.name,
        course.schedule,
        losses,
        simclr.view_rows(course, data.train_images),
        found,
        COUNTS,
        features,
        data.test_labels[:MAPPED],
    )
    print(table.accuracies(found, COUNTS))
    print(table.differences(found, COUNTS, SCRATCH))
    if quick:
        print("--quick is a trial: so little training says nothing about the methods")
    else:
        for name in (FEATURES, TUNED):
            print(table.conclusions(name, found[name] - found[SCRATCH], COUNTS))
    print(f"{time.perf_counter() - begun:.0f} s; pictures in {picture}")
    if found[FEATURES][:, 0].mean() <= found[PIXELS][:, 0].mean():
        print("the features are no better than the pixels", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
