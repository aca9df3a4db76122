"""Images in files, a folder for each class: found, decoded and put into batches by Grain, a worker ahead of the device.

The order of the files depends on a seed alone, not on how many workers there are, and the place in it can be kept.
"""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator
from multiprocessing import parent_process
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_images

SUFFIXES = (".jpg", ".jpeg", ".png")
HELD_OUT = 5
"""One of so many files is to test on."""
THREADS = min(16, os.cpu_count() or 1)
AHEAD = 2 * THREADS
"""Batches that threads have ready at most."""
AHEAD_EACH = 4
"""Batches that a process has ready at most."""

Batch = dict[str, np.ndarray]
"""8-bit ``image`` (B, side, side, 3), ``size`` (B, 2), the height and width of what is no padding, and ``label``."""


class Files(NamedTuple):
    """What is in a folder.

    Attributes:
      classes: their names, in the order of the labels.
      train: paths and labels to train on.
      test: and those to test on, the same for every seed.
    """

    classes: list[str]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]

    def digest(self) -> str:
        """What tells these files from others: their names and how long they are."""
        names = [(path, os.path.getsize(path)) for path, _ in self.train + self.test]
        return hashlib.sha256(repr(names).encode()).hexdigest()


def find(folder: pathlib.Path) -> Files:
    """The images of a folder, ``CLASS/NAME.jpg`` or ``.png``, of which a fifth of each class is held out.

    Raises:
      ValueError: there are fewer than two classes, or too few images of one.
    """
    found = {}
    for of_class in sorted(path for path in folder.glob("*") if path.is_dir()):
        files = sorted(str(path) for path in of_class.rglob("*") if path.suffix.lower() in SUFFIXES)
        if files:
            found[of_class.name] = files
    if len(found) < 2:
        raise ValueError(
            f"{folder}: expected a folder of images for each of two classes or more, as in "
            f"{folder / 'cat' / '1.jpg'}, found {list(found) or 'none'}"
        )
    train, test = [], []
    for label, (name, files) in enumerate(found.items()):
        if len(files) < HELD_OUT:
            raise ValueError(f"{folder / name}: expected at least {HELD_OUT} images, found {len(files)}")
        order = np.random.default_rng(0).permutation(len(files))
        held_out = set(order[: len(files) // HELD_OUT])
        for i, path in enumerate(files):
            (test if i in held_out else train).append((path, label))
    return Files(list(found), train, test)


class Decode(grain.transforms.Map):
    """A file's image in 8 bits, brought to a square that all images of a batch have.

    Args:
      side: of the square.
      short: how long the shorter side becomes before the square is cut from the middle; None: nothing is cut off,
        the image is made smaller where it is too large and padded with black below and on the right.
    """

    def __init__(self, side: int, short: int | None):
        self.side, self.short = side, short

    def map(self, file: tuple[str, int]) -> Batch:
        """One image with its true size and its label."""
        path, label = file
        try:
            with Image.open(path) as opened:
                opened.draft("RGB", (self.side, self.side))  # a JPEG comes out at a half or less where that is enough
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            raise ValueError(f"{path}: cannot be read as an image: {error}") from None
        pixels, size = self._padded(image) if self.short is None else self._cropped(image, self.short)
        return {"image": pixels, "size": np.array(size, np.int32), "label": np.int32(label)}

    def _cropped(self, image: Image.Image, short: int) -> tuple[np.ndarray, tuple[int, int]]:
        (width, height), half = image.size, min(image.size) * self.side / short / 2
        box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
        return np.asarray(image.resize((self.side, self.side), Image.Resampling.BILINEAR, box)), (self.side, self.side)

    def _padded(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        image.thumbnail((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = np.zeros((self.side, self.side, 3), np.uint8)
        pixels[: image.height, : image.width] = np.asarray(image)
        return pixels, (image.height, image.width)


class Feed:
    """Batches without end, in a new order each time round; ``get_state`` is the place after the last that was taken.

    Args:
      files: to go through.
      decode: makes an image of a file.
      batch_size: how many make a batch.
      seed: fixes the order.
      workers: so many processes read; with 0, threads of this one. Pillow decodes while other threads run, so that
        processes, which first have to start, pay where much is done to an image in Python.
    """

    def __init__(self, files: list[tuple[str, int]], decode: Decode, batch_size: int, seed: int, workers: int = 0):
        order = grain.MapDataset.source(files).seed(seed).shuffle().repeat().map(decode).batch(batch_size)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain asks these for its settings, and nobody else has read them
            several = order.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
                grain.MultiprocessingOptions(workers, AHEAD_EACH), worker_init_fn=_stays_with_its_parent
            )
        else:
            several = order.to_iter_dataset(grain.ReadOptions(THREADS, AHEAD))
        self.depth = workers * (AHEAD_EACH + 2) if workers else AHEAD
        """Batches that are read ahead at most."""
        self._iterator = iter(several)
        self._place = self._iterator.get_state()
        self._ready: collections.deque[tuple[Batch, Any]] = collections.deque()

    def get_state(self) -> Any:
        """The place after the last batch that was taken, whatever was read ahead: a dict that JSON can hold."""
        return self._place

    def set_state(self, place: Any) -> None:
        """Goes on from a place."""
        self._ready.clear()
        self._place = place
        self._iterator.set_state(place)

    def read(self, count: int) -> Batch:
        """Reads so many batches, to be taken later; the last of them."""
        for _ in range(count):
            self._ready.append((next(self._iterator), self._iterator.get_state()))
        return self._ready[-1][0]

    def __next__(self) -> Batch:
        """The next batch."""
        if not self._ready:
            self.read(1)
        batch, self._place = self._ready.popleft()
        return batch

    def close(self) -> None:
        """Ends the workers."""
        self._iterator.close()


def once(files: list[tuple[str, int]], decode: Decode, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Each file once, in batches with the count of images in it; the last is filled up with repetitions."""
    for batch in (
        grain.MapDataset.source(files).map(decode).batch(batch_size).to_iter_dataset(grain.ReadOptions(THREADS, AHEAD))
    ):
        yield {name: np.resize(x, (batch_size, *x.shape[1:])) for name, x in batch.items()}, len(batch["label"])


def _stays_with_its_parent(index: int, count: int) -> None:
    """What a process that reads does first: it leaves Ctrl-C to its parent, and ends when that ends, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def write_digits(folder: pathlib.Path) -> None:
    """Writes scikit-learn's handwritten digits, each onto a piece of a photograph, unless that was done before.

    The pieces have all shapes, from 36x36 to 72x108 pixels; half of the files are JPEG, half are PNG.
    """
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    rng, photographs, digits = np.random.default_rng(0), load_sample_images().images, load_digits()
    for i, (digit, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        photograph = photographs[i % len(photographs)]
        short = int(rng.integers(36, 73))
        height, width = rng.permutation([short, round(short * rng.uniform(1.0, 1.5))])
        y, x = rng.integers(0, [photograph.shape[0] - height, photograph.shape[1] - width])
        piece = photograph[y : y + height, x : x + width]
        side = round(short * rng.uniform(0.8, 1.0))
        mask = Image.fromarray(np.uint8(digit * 255 / 16)).resize((side, side), Image.Resampling.BICUBIC)
        ink = rng.integers(0, 64, 3) + (192 if piece.mean() < 128 else 0)
        image = Image.fromarray(piece)
        image.paste(tuple(map(int, ink)), (int(width - side) // 2, int(height - side) // 2), mask)
        path = partial / str(label) / f"{i:04}{rng.choice(['.jpg', '.png'])}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {"compress_level": 1}))
    partial.rename(folder)
