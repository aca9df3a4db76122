"""The examples run as a newcomer runs them and leave pictures behind."""

from __future__ import annotations

import importlib.util
import pathlib
import types
from typing import Any

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from gradxform.plot.style import COLORS

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_drawn(path: pathlib.Path, colors: int) -> None:
    """The picture is large enough to read and shows a line in each of the first ``colors`` colours."""
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000
    for color in COLORS[:colors]:
        matches = np.abs(pixels - np.array(matplotlib.colors.to_rgb(color))).max(axis=-1) < 0.01
        assert matches.sum() > 500, color


def test_figures(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("figures")
    results = []
    activations = example.activations
    monkeypatch.setattr(example, "activations", lambda norm: results.append(activations(norm, steps=5)) or results[-1])
    example.main(["--output", str(tmp_path / "new" / "folder")])
    drawn = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in drawn] == ["normalization.png", "schedules.png", "trajectories.png"]
    for path in drawn:
        assert_drawn(path, colors=4)

    (without, nothing), *normalized = results
    assert len(without) == 4 and not nothing
    for (before, after), axes in zip(normalized, [(0, 1, 2), (-1,)], strict=True):
        # Over its own axes each norm gives mean 0 and variance 1, up to what its scales and biases have learned.
        assert list(before) == list(after) == ["layer 1", "layer 2", "layer 3", "layer 4"]
        assert np.abs(moments(after, axes) - [[0.0], [1.0]]).max() < 0.05
        assert np.abs(moments(before, axes) - [[0.0], [1.0]]).max() > 0.5


def moments(activations: dict[str, Any], axes: tuple[int, ...]) -> np.ndarray:
    """The means over some axes of all layers in one row, and the standard deviations below."""
    layers = [np.asarray(x) for x in activations.values()]
    return np.stack([np.concatenate([np.ravel(f(x, axes)) for x in layers]) for f in (np.mean, np.std)])


def test_train_digits_reaches_its_goal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("train_digits")
    results = []
    train = example.train
    monkeypatch.setattr(example, "train", lambda *args: results.append(train(*args)) or results[-1])
    assert example.main(["--output", str(tmp_path)]) == 0

    (result,) = results
    assert len(result.losses) == 1000
    assert 2.0 < result.losses[0] < 3.0  # log(10) for one who guesses
    assert result.losses[-20:].mean() < 0.02
    assert result.accuracy >= 0.97
    captured = capsys.readouterr()
    assert "chain(" in captured.out and f"test accuracy {result.accuracy:.2%}" in captured.out
    assert "rate 3.00e-04" in captured.err and "gradient norm" in captured.err
    assert_drawn(tmp_path / "train_digits.png", colors=1)


def test_train_bf16_keeps_half_the_bytes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("train_bf16")
    monkeypatch.setattr(example, "LAYERS", 1)
    runs: dict[str, Any] = {}
    train = example.train
    example.train = lambda name, **options: runs.setdefault(name, train(name, **options))
    assert example.main(["--steps", "20", "--output", str(tmp_path)]) == 0

    wide, small = runs.values()
    assert 11.9 < wide.bytes_per_param < 12.1 and small.bytes_per_param < 6.1
    assert 5.0 < wide.losses[0] < 6.0  # log(256) for one who guesses
    assert abs(small.losses - wide.losses).max() < 0.1 and small.losses[-1] < 4.0
    assert "remainder" in capsys.readouterr().out
    assert_drawn(tmp_path / "train_bf16.png", colors=0)  # the two lines lie over each other


def test_train_digits_fails_below_its_goal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("train_digits")
    run = example.Result(example.gx.schedules.cosine(3e-4, 5, 1e-5), np.linspace(2.3, 1.0, 5), accuracy=0.969)
    monkeypatch.setattr(example, "train", lambda steps, seed, folder: run)
    assert example.main(["--steps", "5", "--output", str(tmp_path)]) == 1
    assert "below the goal of 97%" in capsys.readouterr().err


def test_train_digits_refuses_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        load("train_digits").main(["--steps", "0"])
    assert "--steps: expected at least 1, got 0" in capsys.readouterr().err


def test_the_digits_are_split_evenly() -> None:
    train_images, test_images, train_labels, test_labels = load("train_digits").load()
    assert (train_images.shape, test_images.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert train_images.min() >= 0.0 and train_images.max() == 1.0
    assert np.bincount(test_labels, minlength=10).min() >= 34
    assert not {image.tobytes() for image in test_images} & {image.tobytes() for image in train_images}
    assert set(train_labels) == set(range(10))
