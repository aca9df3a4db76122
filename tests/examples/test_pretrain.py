"""The examples of pretraining run from end to end, and their probe measures what it says."""

from __future__ import annotations

import importlib
import itertools
import pathlib
import re
import types
from collections.abc import Callable
from typing import Any

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

import gradxform as gx

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
NAMES = ("pretrain_mae", "pretrain_simclr")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """Imports an example as Python does that runs it: with its neighbours at hand."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def probe(load: Callable[[str], types.ModuleType]) -> types.ModuleType:
    return load("probe")


def arrays() -> dict[str, np.ndarray]:
    """Forty colour images of 8x8 pixels and ten more, the classes told apart by brightness."""
    rng = np.random.default_rng(0)
    y_train, y_test = np.arange(40) % 2, np.arange(10) % 2
    x_train, x_test = (
        np.uint8(rng.integers(0, 128, (len(y), 8, 8, 3)) + 100 * y[:, None, None, None]) for y in (y_train, y_test)
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def saved(path: pathlib.Path, **changed: Any) -> pathlib.Path:
    """A file of these arrays, some of them changed, or left out where they are None."""
    np.savez(path / "tiny.npz", **{name: x for name, x in {**arrays(), **changed}.items() if x is not None})
    return path / "tiny.npz"


def assert_drawn(path: pathlib.Path) -> None:
    """The picture is large enough to read and shows curves and points, and images below them."""
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1000
    for color in ("#0072B2", "#D55E00"):
        matches = np.abs(pixels - np.array(matplotlib.colors.to_rgb(color))).max(axis=-1) < 0.01
        assert matches.sum() > 300, color
    assert (pixels[int(0.65 * len(pixels)) :] < 0.5).mean() > 0.05


def accuracies_of(out: str) -> tuple[float, float]:
    """What was printed: the percentages on features and on pixels."""
    found = re.search(r"([\d.]+) ± [\d.]+% on features, ([\d.]+) ± [\d.]+% on pixels", out)
    assert found is not None, out
    return float(found[1]), float(found[2])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["pretrain_mae"])  # the other one runs below
def test_a_short_run_prints_and_draws(
    name: str,
    load: Any,
    probe: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(probe, "DRAWS", 2)
    example = load(name)
    results = []
    train = example.train
    monkeypatch.setattr(example, "train", lambda *args: results.append(train(*args)) or results[-1])
    code = example.main(["--epochs", "1", "--seed", "3", "--output", str(tmp_path / "new" / "folder")])

    (result,) = results
    assert len(result.losses) == 1437 // example.BATCH_SIZE and np.isfinite(result.losses).all()
    assert len(result.train_features) == 1437 and len(result.test_features) == 360
    captured = capsys.readouterr()
    features, pixels = accuracies_of(captured.out)
    assert code == (features <= pixels) and 10.0 < features <= 100.0 and 75.0 < pixels < 95.0
    assert "adamw(" in captured.out and "loss" in captured.err
    assert_drawn(tmp_path / "new" / "folder" / f"{name}.png")


@pytest.mark.parametrize("name", ["pretrain_simclr", pytest.param("pretrain_mae", marks=pytest.mark.exhaustive)])
def test_other_images_and_an_interrupt(
    name: str,
    load: Any,
    probe: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(probe, "DRAWS", 2)
    extra = ["--normalize-patches"] if name == "pretrain_mae" else ["--optimizer", "lars"]
    example = load(name)
    results: list[Any] = []
    train, step, run = example.train, example.train_step, gx.resume.Run
    monkeypatch.setattr(example, "train", lambda *args: results.append(train(*args)) or results[-1])
    monkeypatch.setattr(gx.resume, "Run", lambda *args, **options: run(*args, every=1, **options))
    calls = itertools.count()

    def interrupted(*args: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step(*args)

    def main(folder: str, *more: str) -> int:
        given = ["--data", str(saved(tmp_path)), "--epochs", "4", "--output", str(tmp_path / folder), *extra, *more]
        return int(example.main(given))

    main("whole")
    captured = capsys.readouterr()
    assert accuracies_of(captured.out)[1] == 100.0
    assert ("simclr_views" in captured.out) == ("lars(" in captured.out) == (name == "pretrain_simclr")
    assert_drawn(tmp_path / "whole" / f"{name}.png")

    monkeypatch.setattr(example, "draw", lambda *drawn: None)
    monkeypatch.setattr(example, "train_step", interrupted)
    assert main("parts") == 130
    monkeypatch.setattr(example, "train_step", step)
    main("parts")
    assert "2/4" in capsys.readouterr().err
    whole, parts = results
    for field in ("losses", "train_features"):
        np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field))
    monkeypatch.setattr(example, "BATCH_SIZE", 50)
    assert main("parts") == 2
    assert f"config batch: saved {64 if extra[0] == '--optimizer' else 128}, now 50" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_end_the_program(
    name: str, load: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load(name).main
    for given, message in (
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--data", str(tmp_path / "none.npz")], "--data: expected a .npz file"),
        (["--data", str(saved(tmp_path, y_test=None))], "--data: y_test: no such array"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(given)
        assert message in capsys.readouterr().err


def test_mae_refuses_images_that_patches_do_not_divide(
    load: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = {name: arrays()[name][:, :7] for name in ("x_train", "x_test")}
    with pytest.raises(SystemExit, match="2"):
        load("pretrain_mae").main(["--data", str(saved(tmp_path, **cut))])
    assert "--data: x_train: expected height and width in multiples of 2 pixels" in capsys.readouterr().err


BAD = {
    "no x_train": ({"x_train": None}, r"x_train: no such array in .*, which has x_test, y_test, y_train"),
    "rank of x_train": ({"x_train": np.zeros((40, 64), np.uint8)}, r"x_train: expected shape .* got \(40, 64\)"),
    "rank of x_test": ({"x_test": np.zeros((1, 10, 8, 8, 3), np.uint8)}, r"x_test: expected shape .* got \(1, 10, 8"),
    "no test images": ({"x_test": np.zeros((0, 8, 8, 3), np.uint8)}, r"x_test: expected shape .* got \(0, 8"),
    "sizes": ({"x_test": np.zeros((10, 8, 9, 3), np.uint8)}, r"x_test: expected images of shape \(8, 8, 3\) .* \(8, 9"),
    "channels": ({"x_test": np.zeros((10, 8, 8), np.uint8)}, r"x_test: expected images of shape \(8, 8, 3\) .* 8, 1\)"),
    "integers": ({"x_train": np.zeros((40, 8, 8, 3), np.int64)}, "x_train: expected uint8, or floats .* got int64"),
    "complex": ({"x_test": np.zeros((10, 8, 8, 3), complex)}, "x_test: expected uint8, or floats .* got complex128"),
    "objects": ({"x_test": np.full(10, None)}, "x_test: Object arrays cannot be loaded"),
    "0 to 255": (
        {"x_train": np.linspace(0, 255, 40 * 192).reshape(40, 8, 8, 3)},
        "x_train: expected floats from 0 to 1, got 0 to 255",
    ),
    "below 0": ({"x_test": np.full((10, 8, 8, 3), -0.5)}, "x_test: expected floats from 0 to 1, got -0.5 to -0.5"),
    "NaN": ({"x_test": np.full((10, 8, 8, 3), np.nan)}, "x_test: expected floats from 0 to 1, got nan"),
    "lengths": ({"y_train": np.arange(39) % 2}, r"y_train: expected shape \(40,\), one label an image, got \(39,\)"),
    "columns": ({"y_test": np.zeros((10, 1), int)}, r"y_test: expected shape \(10,\), one label an image, got \(10, 1"),
    "labels": ({"y_train": np.zeros(40)}, "y_train: expected integers, got float64"),
    "one class": ({"y_train": np.zeros(40, int)}, r"y_train: expected at least 2 classes .* got {0: 40}"),
    "few of a class": ({"y_train": np.arange(40) % 5}, r"y_train: .* 10 images of each, got {0: 8, 1: 8"),
    "new class": ({"y_test": np.arange(10)}, "y_test: expected classes that y_train has, got 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_by_name(case: str, probe: Any, tmp_path: pathlib.Path) -> None:
    changed, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        probe.load(saved(tmp_path, **changed))


def test_files_of_another_kind_are_refused(probe: Any, tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("images")
    (tmp_path / "empty.npz").touch()
    whole = saved(tmp_path).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[200] ^= 1  # within x_train
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name, message in (
        ("one.npy", "single array"),
        ("text.npz", "expected a .npz file"),
        ("none", "none"),
        ("empty.npz", "expected a .npz file"),
        ("cut.npz", "expected a .npz file"),
        ("flipped.npz", "x_train: Bad CRC-32"),
    ):
        with pytest.raises(ValueError, match=message):
            probe.load(tmp_path / name)


def test_images_become_floats_with_channels(probe: Any, tmp_path: pathlib.Path) -> None:
    given = arrays()
    data = probe.load(saved(tmp_path))
    assert data.name == "tiny" and data.train_images.dtype == np.float32
    np.testing.assert_allclose(255 * data.train_images, given["x_train"], rtol=1e-6)
    gray = {name: np.float16(given[name][..., 0] / 255) for name in ("x_train", "x_test")}
    data = probe.load(saved(tmp_path, **gray))
    assert data.train_images.shape == (40, 8, 8, 1) and data.test_images.dtype == np.float32
    np.testing.assert_array_equal(data.test_images[..., 0], gray["x_test"])
    np.testing.assert_array_equal(data.test_labels, given["y_test"])


def test_the_probe_tells_knowledge_from_noise(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "DRAWS", 3)
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    data = probe.Data("made up", *np.zeros((2, 400, 1, 1, 1)), labels, labels[::-1])
    # A class is a coordinate, beside a hundred that are noise.
    known, noise = np.eye(4)[labels], rng.normal(size=(2, 400, 100))
    assert probe.accuracies(data, known, known[::-1]).tolist() == [1.0] * 3
    assert (np.abs(probe.accuracies(data, *noise) - 0.25) < 0.09).all()
    # The weights and centres of features do not matter.
    mixed = [np.concatenate([10 * x, n], 1) for x, n in zip((known, known[::-1]), noise, strict=True)]
    found = probe.accuracies(data, *mixed)
    assert (found > 0.3).all()
    scales, shifts = rng.uniform(0.5, 2.0, 104), rng.normal(size=104)
    np.testing.assert_allclose(probe.accuracies(data, *(x * scales + shifts for x in mixed)), found, atol=0.01)


def test_the_probe_sees_few_labels(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "DRAWS", 2)
    seen = []

    class Search(probe.GridSearchCV):
        def fit(self, x: Any, y: Any) -> Any:
            seen.append(y)
            return super().fit(x, y)

    monkeypatch.setattr(probe, "GridSearchCV", Search)
    data = probe.load()
    first = probe.accuracies(data, data.train_images, data.test_images)
    assert [np.bincount(labels).tolist() for labels in seen] == [[10] * 10] * 2
    assert first[0] != first[1]
    np.testing.assert_array_equal(probe.accuracies(data, data.train_images, data.test_images), first)


def test_the_exit_code_says_whether_features_are_better(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    low, high = np.array([0.8, 0.9]), np.array([0.9, 1.0])
    assert probe.judge(low, high, pathlib.Path("x.png")) == 0
    assert capsys.readouterr().out.count("95.0 ± 7.1% on features, 85.0 ± 7.1% on pixels; pictures in x.png") == 1
    assert probe.judge(high, low, pathlib.Path("x.png")) == probe.judge(low, low, pathlib.Path("x.png")) == 1
    assert "no better" in capsys.readouterr().err


def test_parts_are_the_whole(probe: Any) -> None:
    x = np.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(probe.in_parts(lambda part: part + 1, x, size=3), x + 1)


def test_reconstructions_keep_what_is_seen(load: Any) -> None:
    example = load("pretrain_mae")
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    graph, params = example.nnx.split(example.Autoencoder(16, 4, example.nnx.Rngs(0)))
    for normalize in (False, True):
        rows = example.reconstruct(graph, 2, normalize, params, images, example.jax.random.key(0))
        original, seen, filled = rows.values()
        np.testing.assert_array_equal(original, images)
        hidden = seen != images
        assert (hidden.sum((1, 2, 3)) == 48).all() and (seen[hidden] == 0.5).all()
        np.testing.assert_array_equal(filled[~hidden], images[~hidden])
        assert (filled[hidden] != images[hidden]).all()
