"""What is drawn is what the schedules and transformations give."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest

import gradxform as gx
from gradxform.plot.style import lines

matplotlib.use("Agg")

import matplotlib.pyplot as plt

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]

CURVATURE = np.array([0.5, 4.0])


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def bowl(w: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * w**2)


def points(line: Any) -> np.ndarray:
    return np.stack(line.get_data(), axis=-1)


def labels(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_schedules_are_drawn_step_by_step() -> None:
    steps = np.arange(300)
    ax = gx.plot.schedules(
        {"cosine": gx.schedules.cosine(3e-4, 200, 1e-5), "step": gx.schedules.step(1e-3, 0.5, 100)}, 300
    )
    cosine, step = (points(line) for line in ax.lines)
    expected = 1e-5 + 0.5 * (3e-4 - 1e-5) * (1 + np.cos(np.pi * np.minimum(steps, 200) / 200))
    np.testing.assert_array_equal(cosine[:, 0], steps)
    np.testing.assert_allclose(cosine[:, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(step[:, 1], 1e-3 * 0.5 ** (steps // 100), rtol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Step", "Learning rate")
    assert labels(ax) == ["cosine", "step"]


def test_a_sequence_is_labelled_by_the_calls() -> None:
    cosine = gx.schedules.cosine(1.0, 4, 0.5)
    rates = [cosine, gx.schedules.warmup(2, cosine), optax.constant_schedule(0.5)]
    assert [label.replace("\n", " ") for label in labels(gx.plot.schedules(rates, 6))] == [
        "cosine(1.0, 4, end_value=0.5)",
        "warmup(2, cosine(1.0, 4, end_value=0.5))",
        "constant_schedule",
    ]
    chain = gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(cosine, momentum=0.9), optax.adam(0.1))
    (label,) = labels(gx.plot.trajectories(bowl, [chain], (1.0, 1.0), 2))
    assert label.replace("\n", " ") == (
        "chain(clip_by_global_norm(1.0), sgd(cosine(1.0, 4, end_value=0.5), momentum=0.9), chain)"
    )
    assert max(map(len, label.splitlines())) <= 48


def test_functions_of_one_name_are_all_drawn() -> None:
    ax = gx.plot.schedules([optax.constant_schedule(0.5), optax.constant_schedule(0.25)], 3)
    assert [points(line)[0, 1] for line in ax.lines] == [0.5, 0.25]


def test_schedules_of_optax_are_drawn() -> None:
    ax = gx.plot.schedules([optax.linear_schedule(1.0, 0.0, 4), optax.constant_schedule(0.5), lambda t: 0.25], 6)
    drawn = [points(line)[:, 1].tolist() for line in ax.lines]
    assert drawn == [[1.0, 0.75, 0.5, 0.25, 0.0, 0.0], [0.5] * 6, [0.25] * 6]


def test_drawing_goes_into_the_axes_given() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert gx.plot.schedules([gx.schedules.constant(0.5)], 3, ax=right) is right
    assert gx.plot.trajectories(bowl, {"SGD": gx.sgd(0.1)}, (1.0, 1.0), 3, ax=left) is left
    assert len(plt.get_fignums()) == 1
    other = gx.plot.schedules([gx.schedules.constant(0.5)], 3)
    assert other.figure not in (left.figure, right.figure)


def test_trajectories_follow_the_rules() -> None:
    start, steps = np.array([-3.0, 1.0]), 20
    ax = gx.plot.trajectories(bowl, {"SGD": gx.sgd(0.4), "momentum": optax.sgd(0.1, momentum=0.9)}, start, steps)
    sgd, momentum = (points(line) for line in ax.lines[:2])
    np.testing.assert_allclose(sgd, start * (1 - 0.4 * CURVATURE) ** np.arange(steps + 1)[:, None], atol=1e-6)
    w, velocity = start.copy(), np.zeros(2)
    for t in range(steps + 1):
        np.testing.assert_allclose(momentum[t], w, atol=1e-5)
        velocity = 0.9 * velocity + CURVATURE * w
        w = w - 0.1 * velocity
    assert labels(ax) == ["SGD", "momentum"]
    assert ax.get_xlabel() and ax.get_ylabel()


def test_the_picture_holds_every_path_over_contour_lines() -> None:
    ax = gx.plot.trajectories(bowl, [gx.sgd(0.45), gx.adam(0.5)], (-3.0, 1.0), 20)
    paths = np.concatenate([points(line) for line in ax.lines])
    for values, (low, high) in zip(paths.T, (ax.get_xlim(), ax.get_ylim()), strict=True):
        assert low < values.min() and values.max() < high
    (contours,) = ax.collections
    levels = np.asarray(contours.levels)
    corners = np.array([[x, y] for x in ax.get_xlim() for y in ax.get_ylim()])
    assert len(levels) >= 10 and levels[0] > 0 and levels[-1] < np.max(0.5 * corners**2 @ CURVATURE)


def test_limits_are_those_given() -> None:
    ax = gx.plot.trajectories(bowl, [gx.sgd(0.1)], (-3.0, 1.0), 5, xlim=(-4.0, 2.0), ylim=(-1.5, 1.5))
    assert (ax.get_xlim(), ax.get_ylim()) == ((-4.0, 2.0), (-1.5, 1.5))


def test_a_path_that_diverges_needs_limits() -> None:
    diverging = {"SGD": gx.sgd(1e6)}
    with pytest.raises(ValueError, match="xlim: expected a range"):
        gx.plot.trajectories(bowl, diverging, (1.0, 1.0), 50)
    ax = gx.plot.trajectories(bowl, diverging, (1.0, 1.0), 50, xlim=(-2, 2), ylim=(-2, 2))
    ax.figure.canvas.draw()


def test_a_flat_loss_is_drawn() -> None:
    ax = gx.plot.trajectories(lambda w: 0.0 * w[0], [gx.sgd(0.1)], (1.0, 1.0), 2)
    ax.figure.canvas.draw()
    assert ax.get_xlim() == (0.0, 2.0)


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: gx.plot.schedules([gx.schedules.constant(1.0)], 0), ValueError, "steps: expected"),
        (lambda: gx.plot.schedules({"rate": 0.1}, 3), TypeError, r"schedules\['rate'\]: expected a function"),
        (lambda: gx.plot.trajectories(bowl, [gx.sgd(0.1)], (1.0,), 3), ValueError, "start: expected two numbers"),
        (lambda: gx.plot.trajectories(bowl, [gx.sgd(0.1)], (1.0, 1.0), 0), ValueError, "steps: expected"),
        (lambda: gx.plot.trajectories(bowl, {"x": 0.1}, (1.0, 1.0), 3), TypeError, r"transformations\['x'\]"),
        (lambda: gx.plot.trajectories(1.0, [gx.sgd(0.1)], (1.0, 1.0), 3), TypeError, "loss: expected a function"),
    ],
)
def test_bad_arguments_are_named(draw: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw()
    assert not plt.get_fignums()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for draw in (
        lambda: gx.plot.schedules([gx.schedules.constant(1.0)], 3),
        lambda: gx.plot.trajectories(bowl, [gx.sgd(0.1)], (1.0, 1.0), 3),
    ):
        with pytest.raises(ImportError, match=r"pip install 'gradxform\[plot\]'"):
            draw()


def test_the_first_lines_all_look_different() -> None:
    looks = list(itertools.islice(lines(), 28))
    assert len(set(looks)) == 28
    assert len({look.color for look in looks[:7]}) == 7
    assert len({look.dashes for look in looks[:4]}) == 4
