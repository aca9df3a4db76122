"""The pipeline runs from end to end, goes on after an interrupt to the same result, and says what its numbers say."""

from __future__ import annotations

import importlib
import itertools
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest
from flax import nnx
from jax import lax

import gradxform as gx

pytestmark = pytest.mark.as_in_use

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
Load = Callable[[str], types.ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports an example as Python does that runs it: with its neighbours at hand. Its programs are large."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    jax.config.update("jax_disable_most_optimizations", True)
    yield importlib.import_module
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def pipeline(load: Load, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The pipeline with little to do: a small network, batches and labels of few, and only noise for augmentation."""
    found = load("pipeline")
    for module in (found.simclr, found.finetune):
        monkeypatch.setattr(module, "distortion", lambda shape: found.simclr.noise(0.1))
    monkeypatch.setattr(load("networks"), "WIDTHS", (4, 4, 4, 8))
    monkeypatch.setattr(found, "COUNTS", (2,))
    run = gx.resume.Run
    monkeypatch.setattr(gx.resume, "Run", lambda *args, **options: run(*args, every=2, **options))
    monkeypatch.setattr(found.simclr, "BATCH_SIZE", 8)
    monkeypatch.setattr(found.finetune, "BATCH_SIZE", 8)
    return found


def saved(path: pathlib.Path, channels: int = 1) -> pathlib.Path:
    """A file of forty images of 8x8 pixels and ten more, the classes told apart by brightness."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("test", 10)):
        y = arrays[f"y_{part}"] = np.arange(count) % 2
        x = rng.integers(0, 128, (count, 8, 8, channels)) + 100 * y[:, None, None, None]
        arrays[f"x_{part}"] = np.uint8(x)
    np.savez(path / "tiny.npz", **arrays)
    return path / "tiny.npz"


def kept(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """The bits of what was pretrained and found, once it was."""
    bits: list[list[bytes]] = []
    for name in ("pretrain", "adapt"):
        function = getattr(pipeline, name)

        def wrapped(*args: Any, function: Any = function) -> Any:
            result = function(*args)
            leaves = jax.tree.leaves(result[1] if isinstance(result, tuple) else result)
            bits.append([np.asarray(x).tobytes() for x in leaves])
            return result

        monkeypatch.setattr(pipeline, name, wrapped)
    return bits


def tables_of(out: str) -> list[str]:
    """What was printed after the checkpoints were named, without the time that it took."""
    lines = out.splitlines()
    return [line for line in lines[2:] if "pictures in" not in line]


def interrupted(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    """A function that ends as if interrupted by hand after so many calls."""
    calls = itertools.count()

    def wrapped(*args: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return function(*args)

    return wrapped


@pytest.mark.long
def test_a_run_that_was_interrupted_ends_as_another(
    pipeline: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, given = pipeline.main, ["--data", str(saved(tmp_path)), "--seeds", "2", "--epochs", "1", "--steps", "3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    compiled, bits = pipeline.finetune.fit._cache_size(), kept(pipeline, monkeypatch)
    code = main([*given, "--output", str(whole)])
    # The rates and strengths are arguments: one program for the frozen backbone, one for all others.
    assert pipeline.finetune.fit._cache_size() == compiled + 2
    expected = capsys.readouterr()
    assert "starts anew" in expected.out and "adapting: 100%" in expected.err
    parted = sorted(path.name for path in (whole / "pipeline-adamw-1-3-tiny").iterdir())
    assert parted == ["adapting-100", "adapting-101", "pretraining-100", "pretraining-101"]
    pixels = matplotlib.image.imread(whole / "pipeline.png")
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1000

    monkeypatch.setattr(pipeline.report, "draw", lambda *drawn: None)
    step, accuracy = pipeline.simclr.train_step, pipeline.finetune.accuracy
    for at, after, left in ((pipeline.simclr, 3, "0/5"), (pipeline.simclr, 4, "2/5"), (pipeline.finetune, 6, "5/5")):
        name = "train_step" if at is pipeline.simclr else "accuracy"
        monkeypatch.setattr(at, name, interrupted(getattr(at, name), after))
        assert main([*given, "--output", str(parts)]) == 130
        err = capsys.readouterr().err
        assert "the same command goes on" in err and left in err
        monkeypatch.setattr(at, name, step if at is pipeline.simclr else accuracy)
    whole_bits, bits[:] = bits[:], []
    assert main([*given, "--output", str(parts)]) == code
    again = capsys.readouterr()
    assert "goes on with" in again.out
    assert tables_of(again.out) == tables_of(expected.out) and len(tables_of(again.out)) == 21
    assert bits == whole_bits[:4]

    # What is done is not done again, and another seed is added to it.
    monkeypatch.setattr(pipeline.simclr, "train_step", None)
    monkeypatch.setattr(pipeline.finetune, "accuracy", None)
    assert main([*given, "--output", str(whole)]) == code
    assert tables_of(capsys.readouterr().out) == tables_of(expected.out)
    for changed in (["--seeds", "3"], ["--steps", "4"], ["--restart"]):
        with pytest.raises(TypeError, match="not callable"):
            main([*given, *changed, "--output", str(whole)])
        assert ("starts anew" in capsys.readouterr().out) == (changed != ["--seeds", "3"])

    # Another optimizer is refused.
    monkeypatch.setattr(pipeline.simclr, "make_optimizer", lambda name, rate: gx.adamw(rate, b1=0.8))
    assert main([*given, "--output", str(parts)]) == 2
    assert "config tx: b1: saved 0.9, now 0.8" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_colour_and_tuning(pipeline: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(saved(tmp_path, 3)), "--seeds", "1", "--epochs", "1", "--steps", "2"]
    pipeline.main([*given, "--output", str(tmp_path)])
    assert capsys.readouterr().out.count("fewer than three seeds do not tell") == 2
    assert pipeline.main([*given, "--tune", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("rate") == 3 * 5 + 2 + 2


def test_bad_arguments_end_the_program(load: Load, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load("pipeline").main
    for given, message in (
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--steps", "-1"], "--steps: expected at least 1, got -1"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--seeds", "two"], "--seeds: invalid int value"),
        (["--data", str(tmp_path / "none.npz")], "--data: expected a .npz file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(given)
        assert message in capsys.readouterr().err


def test_plans_are_by_size(load: Load) -> None:
    pipeline = load("pipeline")
    options = types.SimpleNamespace(quick=False, seeds=None, epochs=None, steps=None, seed=4, optimizer="lars")
    assert pipeline.make_plan(options, (1437, 8, 8, 1)) == (range(4, 8), 70, 200, 9, "lars")
    assert pipeline.make_plan(options, (12_000, 32, 32, 3)) == (range(4, 8), 4, 100, 9, "lars")
    assert pipeline.make_plan(options, (10**9, 8, 8, 1)).epochs == 1
    options.quick, options.epochs = True, 7
    assert pipeline.make_plan(options, (1437, 8, 8, 1))[1:] == (7, 30, 7, "lars")


def test_labels_are_nested_and_held_out_images_are_for_training(load: Load) -> None:
    pipeline, probe = load("pipeline"), load("probe")
    data = probe.load()
    two, five, ten = (pipeline.draw_labels(data, count, 1) for count in (2, 5, 10))
    assert set(two) < set(five) < set(ten) and len(set(ten)) == 100
    for count, drawn in ((2, two), (5, five), (10, ten)):
        assert np.bincount(data.train_labels[drawn]).tolist() == [count] * 10
    assert set(pipeline.draw_labels(data, 2, 2)) != set(two)
    held = pipeline.hold_out(data)
    kept, out, given = (
        {image.tobytes() for image in images} for images in (held.train_images, held.test_images, data.train_images)
    )
    assert kept | out == given and not kept & out
    assert len(held.train_images) + len(held.test_images) == 1437


def test_the_tables_are_of_pairs(load: Load) -> None:
    table = load("pipeline_table")
    found = {
        "scratch": np.array([[0.5, 0.9], [0.6, 0.8], [0.7, 0.7]]),
        "tuned": np.array([[0.71, 0.8], [0.8, 0.9], [0.92, 0.7]]),
    }
    assert table.accuracies(found, (2, 5)).splitlines()[2:] == [
        "                    2             5",
        "scratch   60.0 ± 10.0   80.0 ± 10.0",
        "tuned     81.0 ± 10.5   80.0 ± 10.0",
    ]
    # 0.21, 0.2, 0.22: a standard deviation of 0.01, and Student's t of 2 degrees of freedom is 4.3027.
    half = 100 * 4.3027 * 0.01 / np.sqrt(3)
    np.testing.assert_allclose(table.interval(np.array([0.21, 0.2, 0.22])), (21.0, half), rtol=1e-4)
    title, _, *rows = table.differences(found, (2, 5), "scratch").splitlines()[1:]
    assert "95%" in title and rows == [f"tuned   +21.0 ± {half:.1f}   +0.0 ± 24.8"]
    assert all(np.isnan(table.interval(np.full(n, 0.2))[1]) for n in (1, 2))
    two = {name: xs[:2] for name, xs in found.items()}
    title, _, row = table.differences(two, (2, 5), "scratch").splitlines()[1:]
    assert "mean of 2, too few for an interval" in title and row == "tuned         +20.5          +0.0"


def test_conclusions_need_more_than_the_spread(load: Load) -> None:
    table = load("pipeline_table")
    above = np.array([[0.10, -0.10, 0.10], [0.11, -0.11, -0.05], [0.12, -0.12, 0.02]])
    pays, costs, unclear = table.conclusions("tuned", above, (2, 5, 10)).splitlines()
    assert pays == "2 labels a class, tuned: pretraining pays, +11.0 ± 2.5 points over scratch"
    assert "does not pay but costs, -11.0 ± 2.5" in costs
    assert "10 labels a class, tuned: it is not clear that pretraining pays, +2.3" in unclear
    for few in (above[:1], above[:2]):
        assert table.conclusions("tuned", few, (2, 5, 10)).count("fewer than three seeds do not tell") == 3


def test_a_frozen_backbone_stays(pipeline: Any) -> None:
    finetune, networks = pipeline.finetune, importlib.import_module("networks")
    graph, params, stats = nnx.split(networks.Classifier((8, 8, 1), 2, nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
    images, labels = np.random.default_rng(0).random((40, 8, 8, 1), np.float32), np.arange(40) % 2
    for frozen in (True, False):
        tx = finetune.recipe(finetune.Method(1e-2, frozen=frozen), 3)
        start = jax.tree.map(jax.numpy.copy, (params, stats))
        fitted = finetune.Fitted(jax.numpy.int32(0), *start, tx.init(params))
        fitted = finetune.fit(
            graph,
            finetune.make_augmentation((8, 8, 1)),
            frozen,
            tx,
            fitted,
            images,
            labels,
            np.arange(24).reshape(3, 8),
            jax.random.key(0),
        )
        for old, new in ((params["backbone"], fitted.params["backbone"]), (stats, fitted.stats)):
            same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)]
            assert all(same) if frozen else not any(same)
        assert all((np.abs(x) > 0).any() for x in jax.tree.leaves(fitted.params["head"]))


def test_the_recipe_is_what_it_says(load: Load) -> None:
    finetune = load("finetune")
    params = {"backbone": {"convs": [np.ones(2), np.ones(2)]}, "head": np.ones(2)}
    gradients = jax.tree.map(lambda x: 0.5 * x, params)
    moved = jax.tree.map(lambda x: x + 1.0, params)

    def update(method: Any) -> Any:
        tx = finetune.recipe(method, 1)
        return tx.update(gradients, tx.init(params), moved)[0]

    # One step of Adam is the sign of the gradient, times the rate.
    for method, body in (
        (finetune.Method(0.1), (-0.1, -0.1)),
        (finetune.Method(0.1, decay=0.5), (-0.025, -0.05)),
        (finetune.Method(0.1, strength=3.0), (-0.4, -0.4)),
        (finetune.Method(0.1, frozen=True), (0.0, 0.0)),
    ):
        new = update(method)
        np.testing.assert_allclose([x[0] for x in new["backbone"]["convs"]], body, rtol=1e-5)
        np.testing.assert_allclose(new["head"], -0.1, rtol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [((8, 8), 1), ((8, 8), 2), ((7, 10), 2), ((5, 4), 1)])
def test_convolutions_are_as_laxs(load: Load, size: tuple[int, int], stride: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(3, 3, 3, 5))
    found = load("networks").convolve(x, kernel, (stride, stride), "SAME")
    expected = lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_writing_is_distorted_within_its_range(load: Load) -> None:
    simclr = load("pretrain_simclr")
    noise, images = simclr.noise, np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    changed = np.asarray(simclr.distortion((8, 8, 1))(jax.random.key(0), images))
    assert changed.shape == images.shape and changed.min() >= 0.0 and changed.max() <= 1.0
    assert (np.abs(changed - images).max((1, 2, 3)) > 0.1).all()
    images = np.full((200, 8, 8, 1), 0.5, np.float32)
    noisy = np.asarray(noise(0.1)(jax.random.key(0), images))
    assert abs(noisy.mean() - 0.5) < 0.005 and abs(noisy.std() - 0.1) < 0.005
    assert noise(0.1) == gx.from_config(gx.to_config(noise(0.1)))
    ends = np.asarray(noise(1.0)(jax.random.key(1), images))
    assert ends.min() == 0.0 and ends.max() == 1.0


def test_the_diagram_is_drawn_the_same_twice(load: Load, tmp_path: pathlib.Path) -> None:
    figure = load("figure4")
    for name in ("one", "two"):
        figure.main(["--output", str(tmp_path / name)])
    one, two = ((tmp_path / name / "pipeline.svg").read_bytes() for name in ("one", "two"))
    assert one == two and one.count(b"<path") > 20 and len(one) < 100_000
