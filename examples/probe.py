"""What the examples of pretraining share: images, and a test of what was learned from them with only a few labels.

The test is a linear probe: logistic regression on ten labelled images of each class, once on their pixels and once on
what a network makes of them. Whatever the network has learned without labels is the difference between the two.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pathlib
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import gradxform as gx

OUTPUT = pathlib.Path(__file__).parent / "output"
LABELS = 10
"""Labelled images of each class."""
DRAWS = 10
"""How often they are drawn anew."""


class Data(NamedTuple):
    """Images to train and to test on.

    Attributes:
      name: what they are, for titles.
      train_images: float32 from 0 to 1 of shape (N, height, width, channels).
      test_images: others of the same height, width and channels.
      train_labels: the classes of ``train_images``, integers of shape (N,).
      test_labels: those of ``test_images``.
    """

    name: str
    train_images: np.ndarray
    test_images: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray

    def digest(self) -> str:
        """What tells these images and labels from others."""
        found = hashlib.sha256()
        for x in self[1:]:
            found.update(f"{x.shape} {x.dtype}".encode())
            found.update(np.ascontiguousarray(x))
        return found.hexdigest()


def load(path: pathlib.Path | None = None) -> Data:
    """Loads images.

    Args:
      path: a .npz file of arrays ``x_train``, ``y_train``, ``x_test`` and ``y_test``: images of shape (N, height,
        width) or (N, height, width, channels), uint8 or floats from 0 to 1, and their classes, integers of shape (N,).
        None for scikit-learn's handwritten digits: 1,437 and 360 of them, with the same share of each digit.

    Returns:
      The images as float32 from 0 to 1, with an axis of channels.

    Raises:
      ValueError: the file or one of its arrays is not as described, or a class has too few images to draw labels from.
    """
    if path is None:
        digits = load_digits()
        images = np.float32(digits.images[..., None] / 16.0)
        split = train_test_split(images, digits.target, test_size=360, stratify=digits.target, random_state=0)
        return Data("Handwritten digits", *split)

    arrays = _read(path)
    train_images, test_images = _images("x_train", arrays["x_train"]), _images("x_test", arrays["x_test"])
    if test_images.shape[1:] != train_images.shape[1:]:
        raise ValueError(
            f"x_test: expected images of shape {train_images.shape[1:]} as in x_train, got {test_images.shape[1:]}"
        )
    train_labels = _labels("y_train", arrays["y_train"], len(train_images))
    test_labels = _labels("y_test", arrays["y_test"], len(test_images))
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2 or counts.min() < LABELS:
        raise ValueError(
            f"y_train: expected at least 2 classes and {LABELS} images of each, got "
            f"{dict(zip(classes.tolist(), counts.tolist(), strict=True))}"
        )
    if unknown := set(test_labels.tolist()) - set(classes.tolist()):
        raise ValueError(f"y_test: expected classes that y_train has, got {min(unknown)}")
    return Data(path.stem, train_images, test_images, train_labels, test_labels)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    arrays = {}
    with contextlib.ExitStack() as opened:
        try:
            file = np.load(opened.enter_context(path.open("rb")), allow_pickle=False)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"expected a .npz file, got {path}: {error}") from None
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError(f"expected a .npz file of several arrays, got a single array in {path}")
        for name in ("x_train", "y_train", "x_test", "y_test"):
            if name not in file:
                raise ValueError(f"{name}: no such array in {path}, which has {', '.join(sorted(file)) or 'none'}")
            try:
                arrays[name] = file[name]
            except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{name}: {error}") from None
    return arrays


def _images(name: str, x: np.ndarray) -> np.ndarray:
    if x.ndim not in (3, 4) or not x.size:
        raise ValueError(
            f"{name}: expected shape (N, height, width) or (N, height, width, channels) with none of them "
            f"0, got {x.shape}"
        )
    if x.dtype == np.uint8:
        x = np.float32(x) / np.float32(255.0)
    elif not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{name}: expected uint8, or floats from 0 to 1, got {x.dtype}")
    elif not (x.min() >= 0.0 and x.max() <= 1.0):  # not so for NaN either
        raise ValueError(f"{name}: expected floats from 0 to 1, got {x.min():g} to {x.max():g}")
    return np.float32(x if x.ndim == 4 else x[..., None])


def _labels(name: str, y: np.ndarray, count: int) -> np.ndarray:
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name}: expected integers, got {y.dtype}")
    if y.shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), one label an image, got {y.shape}")
    return y


def accuracies(data: Data, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """How well a linear classifier does that has seen a few labels.

    ``LABELS`` images of each class are drawn, ``DRAWS`` times, always the same. The test images are looked at once, at
    the end.

    Args:
      data: the images, for their labels.
      train: features of the training images, of shape (N, ...).
      test: features of the test images.

    Returns:
      The fraction of test images that are recognized, for each draw.
    """
    rng = np.random.default_rng(0)
    return np.array([accuracy(data, train, test, draw_few(data, LABELS, rng)) for _ in range(DRAWS)])


def draw_few(data: Data, count: int, rng: np.random.Generator) -> np.ndarray:
    """The positions of ``count`` training images of each class, the classes one after another."""
    return np.concatenate(
        [
            rng.choice(np.flatnonzero(data.train_labels == label), count, replace=False)
            for label in np.unique(data.train_labels)
        ]
    )


def accuracy(data: Data, train: np.ndarray, test: np.ndarray, drawn: np.ndarray) -> float:
    """How well a linear classifier does that has seen these labels.

    Features are standardized over all training images, which takes no labels. The strength of the regularization is
    chosen among the few labelled ones, by cross-validation in 5 parts, or as many as a class has images.

    Args:
      data: the images, for their labels.
      train: features of the training images, of shape (N, ...).
      test: features of the test images.
      drawn: the positions of the labelled images among the training images, as many of each class.

    Returns:
      The fraction of test images that are recognized.
    """
    scaler = StandardScaler().fit(train.reshape(len(train), -1))
    few, test = (scaler.transform(x.reshape(len(x), -1)) for x in (train[drawn], test))
    labels = data.train_labels[drawn]
    search = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": np.logspace(-4.0, 1.0, 6)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(min(5, np.unique(labels, return_counts=True)[1].min()), shuffle=True, random_state=0),
    )
    with threadpool_limits(1):  # so few numbers are not worth handing to other cores
        # Directions in which the few do not differ get no weight: without them the classifier is the same, and sooner
        # found.
        axes = PCA(svd_solver="full").fit(few)
        search.fit(axes.transform(few), labels)
        return float(np.mean(search.predict(axes.transform(test)) == data.test_labels))


def in_parts(function: Callable[[np.ndarray], Any], images: np.ndarray, size: int = 500) -> np.ndarray:
    """What ``function`` makes of the images, some at a time: all at once may be more than memory holds."""
    return np.concatenate([np.asarray(function(images[i : i + size])) for i in range(0, len(images), size)])


def percent(accuracies: np.ndarray) -> str:
    """The mean and the standard deviation over the draws, as text."""
    return f"{100 * accuracies.mean():.1f} ± {100 * accuracies.std(ddof=1):.1f}%"


def arguments(
    parser: argparse.ArgumentParser, given: list[str] | None, epochs: int | None, seed: int = 0
) -> tuple[Any, Data]:
    """What a run was called with, and its images.

    Args:
      parser: of the program, with the options that it alone has.
      given: the arguments of the command line; None for what the program was called with.
      epochs: the default of ``--epochs``; None where that depends on the images.
      seed: the default of ``--seed``.

    Returns:
      The options and the images. Where they are not as they should be, the program ends with a message.
    """
    parser.add_argument(
        "--epochs",
        type=int,
        default=epochs,
        help=f"rounds through the images (default: {'fewer the more there are' if epochs is None else epochs})",
    )
    parser.add_argument("--seed", type=int, default=seed, help="of weights, batches and views (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=OUTPUT,
        help="folder of the picture and of what is needed to go on after an interrupt (%(default)s)",
    )
    parser.add_argument("--restart", action="store_true", help="begin anew where a run was interrupted or has ended")
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        metavar="FILE.npz",
        help="other images: arrays x_train and x_test "
        "of shape (N, height, width) or (N, height, width, channels), uint8 or floats from 0 to 1, and "
        "the classes y_train and y_test, integers of shape (N,)",
    )
    options = parser.parse_args(given)
    for name in ("epochs", "steps", "seeds"):
        number = getattr(options, name, None)
        if number is not None and number < 1:
            parser.error(f"--{name}: expected at least 1, got {number}")
    try:
        return options, load(options.data)
    except ValueError as error:
        parser.error(f"--data: {error}")


def folder(options: Any, *names: Any) -> pathlib.Path:
    """Where a run of these options is saved: with ``--restart`` there is nothing there.

    Args:
      options: those of the command line.
      names: of the program, and of what may differ from run to run.
    """
    images = "digits" if options.data is None else options.data.stem
    path = options.output / "-".join(map(str, (*names, images)))
    if options.restart:
        shutil.rmtree(path, ignore_errors=True)
    return path


def ended(work: Callable[[], int]) -> int:
    """The exit code of a program by its work: 130 if that was interrupted, 2 if what is saved is of other settings."""
    try:
        return work()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    except gx.resume.MismatchError as error:
        print(f"{error}\n--restart does, too.", file=sys.stderr)
        return 2


def draw_course(above: Axes, below: Axes, losses: np.ndarray, schedule: gx.Schedule) -> None:
    """Draws the loss of every step and the learning rate below it."""
    above.semilogy(losses, color="#0072B2", linewidth=0.8)
    above.spines[["top", "right"]].set_visible(False)
    above.sharex(below)
    above.tick_params(labelbottom=False)
    gx.plot.schedules({"cosine": schedule}, len(losses), ax=below)
    below.get_legend().remove()
    below.set_ylim(bottom=0.0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)


def draw_accuracies(ax: Axes, pixels: np.ndarray, features: np.ndarray) -> None:
    """Draws the accuracies of all draws of labels, those on pixels beside those on features, and their means."""
    for x, (found, color) in enumerate(((pixels, "#D55E00"), (features, "#0072B2"))):
        ax.plot(x + np.linspace(-0.18, 0.18, len(found)), 100 * found, "o", color=color, markersize=5, alpha=0.8)
        ax.hlines(100 * found.mean(), x - 0.3, x + 0.3, color=color, linewidth=2.0)
        ax.text(x, 0.02, percent(found), transform=ax.get_xaxis_transform(), ha="center")
    low, high = 100 * min(pixels.min(), features.min()), 100 * max(pixels.max(), features.max())
    ax.set_ylim(low - 0.2 * (high - low) - 1.0, high + 0.05 * (high - low) + 0.5)
    ax.set_xlim(-0.5, 1.5)
    ax.set_xticks([0, 1], ["Pixels", "Features"])
    ax.set_ylabel("Test images right [%]")
    ax.set_title(f"Linear probe, {LABELS} labels a class")
    ax.spines[["top", "right"]].set_visible(False)


def draw_rows(axes: np.ndarray, rows: dict[str, np.ndarray]) -> None:
    """Draws images from 0 to 1, a row under each name and a column for each of ``axes[0]``."""
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(row, np.clip(images, 0.0, 1.0), strict=False):
            channels = image.shape[-1]
            # Other numbers of channels than those of gray and colour have no colours of their own: the mean is shown.
            ax.imshow(image if channels == 3 else image.mean(-1), cmap="gray", vmin=0.0, vmax=1.0)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")


def judge(pixels: np.ndarray, features: np.ndarray, picture: pathlib.Path) -> int:
    """Prints what was found; the exit code of a program: 1 if the features are no better than pixels."""
    print(
        f"test accuracy with {LABELS} labels a class, mean and standard deviation of {len(pixels)} draws of labels: "
        f"{percent(features)} on features, {percent(pixels)} on pixels; pictures in {picture}"
    )
    if features.mean() <= pixels.mean():
        print("the features are no better than the pixels", file=sys.stderr)
        return 1
    return 0
