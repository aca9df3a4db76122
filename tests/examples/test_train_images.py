"""From files to the chip: what is read, where a run goes on, and what it says in the end."""

from __future__ import annotations

import importlib
import itertools
import pathlib
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import gradxform as gx

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """How files are read, with its neighbours at hand."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("image_files")


@pytest.fixture
def example(files: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The example with little to do: a small network, few images, and an augmentation that is quick to compile."""
    found = importlib.import_module("train_images")
    monkeypatch.setattr(importlib.import_module("networks"), "WIDTHS", (4, 8))
    for name, value in {"BATCH_SIZE": 8, "MEASURE_AT": 3, "MEASURED": 2}.items():
        monkeypatch.setattr(found, name, value)
    run = gx.resume.Run
    monkeypatch.setattr(gx.resume, "Run", lambda *args, **options: run(*args, every=2, **options))
    monkeypatch.setattr(
        found,
        "make_augmentation",
        lambda size, writing: gx.augment.chain(
            gx.augment.random_crop((size, size)), gx.augment.random_flip_left_right(), gx.augment.normalize(0.5, 0.25)
        ),
    )
    jax.config.update("jax_disable_most_optimizations", True)
    yield found
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twenty bright and twenty dark images of many sizes, in all that an image file may hold."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for i in range(40):
        height, width = rng.integers(9, 25, 2)
        pixels = np.uint8(rng.integers(0, 100, (height, width, 3)) + (150 if i % 2 else 0))
        path = root / ("dark", "bright")[i % 2] / f"{i}{('.jpg', '.png', '.JPEG')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).convert(("RGB", "L")[i % 4 == 3]).save(path)
    (root / "notes").mkdir()
    (root / "dark" / "notes.txt").write_text("no image")
    return root


def test_a_folder_is_split_by_class(files: types.ModuleType, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    found = files.find(folder)
    assert found.classes == ["bright", "dark"]
    assert sorted(label for _, label in found.test) == [0] * 4 + [1] * 4 and len(found.train) == 32
    assert len({path for path, _ in found.train + found.test}) == 40
    assert all(pathlib.Path(path).parent.name == found.classes[label] for path, label in found.train + found.test)
    assert files.find(folder) == found
    with pytest.raises(ValueError, match=r"two classes or more.*found none"):
        files.find(tmp_path)
    for name, count in (("a", 5), ("b", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").touch()
    with pytest.raises(ValueError, match="b: expected at least 5 images, found 4"):
        files.find(tmp_path)


def test_images_of_all_sizes_become_one(files: types.ModuleType, tmp_path: pathlib.Path) -> None:
    ramp = np.tile(np.uint8(np.arange(40) * 5)[None, :, None], (20, 1, 3))
    path = str(tmp_path / "ramp.png")
    Image.fromarray(ramp).save(path)
    # The shorter side becomes 10, and the middle 8 x 8 of that is seen: 16 x 16 pixels of the file, from column 12 on.
    cropped = files.Decode(8, 10).map((path, 3))
    assert cropped["image"].shape == (8, 8, 3) and cropped["label"] == 3
    np.testing.assert_array_equal(cropped["size"], [8, 8])
    middle = np.arange(2.0 * 8).reshape(8, 2).mean(1)
    np.testing.assert_allclose(cropped["image"][4, 1:-1, 0], 5 * (12 + middle[1:-1]), atol=1)
    padded = files.Decode(24, None).map((path, 3))
    np.testing.assert_array_equal(padded["size"], [12, 24])
    assert padded["image"].shape == (24, 24, 3) and not padded["image"][12:].any()
    np.testing.assert_allclose(padded["image"][5, 1:-1, 0], 5 * (np.arange(1, 23) + 0.5) * 40 / 24 - 2.5, atol=1)
    # A camera's picture that is to be turned; and one that is smaller than what is asked for.
    turned = Image.fromarray(ramp)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    np.testing.assert_array_equal(files.Decode(48, None).map((str(tmp_path / "turned.jpg"), 0))["size"], [40, 20])
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.jpg: cannot be read as an image"):
        files.Decode(8, 10).map((str(tmp_path / "broken.jpg"), 0))


def test_a_feed_goes_on_from_a_place(files: types.ModuleType, folder: pathlib.Path) -> None:
    """By threads and by processes: the same batches, also where some were read ahead."""
    train, decode = files.find(folder).train, files.Decode(8, 8)
    seen = {}
    for workers in (0, 1):
        feed = files.Feed(train, decode, 8, 0, workers)
        begun = feed.get_state()
        first = [next(feed) for _ in range(3)]
        feed.read(2)
        place = feed.get_state()
        later = [next(feed) for _ in range(5)]
        feed.read(1)
        for at, batches in ((place, later), (begun, first)):
            feed.set_state(at)
            for batch in batches:
                jax.tree.map(np.testing.assert_array_equal, next(feed), batch)
        feed.close()
        seen[workers] = first + later
    jax.tree.map(np.testing.assert_array_equal, seen[0], seen[1])
    order = [np.concatenate([batch["image"] for batch in seen[0][i : i + 4]]) for i in (0, 4)]
    in_order = [np.sort(images.reshape(32, -1).astype(np.int64) @ np.arange(192)) for images in order]
    np.testing.assert_array_equal(*in_order)  # each round goes through all files,
    assert (order[0] != order[1]).any()  # in an order of its own


def test_each_file_is_tested_once(files: types.ModuleType, folder: pathlib.Path) -> None:
    found = files.find(folder).train
    batches = list(files.once(found, files.Decode(8, 8), 20))
    assert [count for _, count in batches] == [20, 12]
    assert [batch["image"].shape for batch, _ in batches] == [(20, 8, 8, 3)] * 2
    labels = np.concatenate([batch["label"][:count] for batch, count in batches])
    np.testing.assert_array_equal(labels, [label for _, label in found])


def keeping(example: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """The bits of what each training has ended with, once it has."""
    kept: list[list[bytes]] = []
    train = example.train

    def wrapped(*args: Any) -> Any:
        training = train(*args)
        kept.append([np.asarray(x).tobytes() for x in jax.tree.leaves(training)])
        return training

    monkeypatch.setattr(example, "train", wrapped)
    return kept


def test_a_run_that_was_stopped_ends_as_another(
    example: types.ModuleType,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After Ctrl-C, or an end without warning, it goes on with the step after the last one saved."""
    kept = keeping(example, monkeypatch)
    run = lambda name, *options: example.main(  # noqa: E731
        ["--data", str(folder), "--size", "8", "--quick", "--output", str(tmp_path / name), *options]
    )
    assert run("whole") == 0
    out = capsys.readouterr().out
    assert "32 images in 2 classes to train on, 8 to test on" in out and "starts anew at step 0" in out
    assert re.search(r"each part alone: read [\d,]+, augment [\d,]+, train [\d,-]+\ntogether: [\d,]+\n", out)
    assert "held-out accuracy 100.00%" in out

    step = example.train_step
    # At the third call two steps were saved; then of six calls three are a measurement.
    for after, error, goes_on in ((3, KeyboardInterrupt, 0), (7, ZeroDivisionError, 2)):
        monkeypatch.setattr(example, "train_step", after_calls(step, after, error))
        if error is KeyboardInterrupt:
            assert run("stopped") == 130
            assert "the same command goes on" in capsys.readouterr().err
        else:
            with pytest.raises(ZeroDivisionError):
                run("stopped")
            assert f"goes on at step {goes_on}" in capsys.readouterr().out
    monkeypatch.setattr(example, "train_step", step)
    assert run("stopped") == 0
    assert "goes on at step 4" in capsys.readouterr().out
    whole, stopped = kept
    assert whole == stopped

    assert run("whole", "--goal", "1.1") == 1
    assert "below the goal of 110.0%" in capsys.readouterr().err
    adamw = gx.adamw
    monkeypatch.setattr(gx, "adamw", lambda *args, **options: adamw(*args, **options | {"b1": 0.8}))
    assert run("whole") == 2
    assert "config tx: 1/b1: saved 0.9, now 0.8" in capsys.readouterr().err


def after_calls(step: Callable[..., Any], count: int, error: type[BaseException]) -> Callable[..., Any]:
    """A step that fails at one of its calls."""
    calls = itertools.count(1)

    def wrapped(*args: Any) -> Any:
        if next(calls) == count:
            raise error
        return step(*args)

    return wrapped


@pytest.mark.parametrize(
    "wrong, message",
    [(["--steps", "0"], "--steps: expected at least 1, got 0"), (["--data", "nowhere"], "two classes or more")],
)
def test_wrong_arguments_are_refused(
    example: types.ModuleType, wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        example.main(wrong)
    assert message in capsys.readouterr().err


def test_the_device_makes_images_of_the_networks_size(files: types.ModuleType) -> None:
    example = importlib.import_module("train_images")
    batch = {"image": jax.ShapeDtypeStruct((8, 36, 36, 3), "uint8")}
    seen = jax.eval_shape(
        lambda key, batch: example.augmented(example.make_augmentation(32, True), key, batch), jax.random.key(0), batch
    )
    assert (seen.shape, seen.dtype) == ((8, 32, 32, 3), "float32")


def test_the_digits_are_written_once(
    files: types.ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = files.load_digits()
    digits.images, digits.target = digits.images[:30], digits.target[:30]
    monkeypatch.setattr(files, "load_digits", lambda: digits)
    files.write_digits(tmp_path / "digits")
    monkeypatch.delattr(files, "load_digits")
    files.write_digits(tmp_path / "digits")
    paths = sorted((tmp_path / "digits").glob("*/*"), key=lambda path: path.name)
    assert [int(path.parent.name) for path in paths] == digits.target.tolist()
    sizes = set()
    for path in paths:
        with Image.open(path) as image:
            sizes.add(image.size)
    assert len(sizes) > 20 and {path.suffix for path in paths} == {".jpg", ".png"}
