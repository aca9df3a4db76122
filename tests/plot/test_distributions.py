"""What is drawn of arrays is what a histogram of them holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import gradxform as gx
from gradxform.plot.style import lines

matplotlib.use("Agg")

import matplotlib.pyplot as plt

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def normal(shape: tuple[int, ...] = (40, 5, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outlines(ax: Any) -> list[Any]:
    return [patch for patch in ax.patches if not patch.get_fill()]


def labels(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_densities_on_shared_bins() -> None:
    values = {"conv": normal(), "norm": 3 * normal((100,), seed=1) - 1}
    ax = gx.plot.distributions(values, bins=20)
    low, high = min(x.min() for x in values.values()), max(x.max() for x in values.values())
    for outline, x in zip(outlines(ax), values.values(), strict=True):
        heights, edges, _ = outline.get_data()
        np.testing.assert_allclose(edges, np.linspace(low, high, 21), rtol=1e-6)
        np.testing.assert_allclose(heights, np.histogram(x, edges, density=True)[0], rtol=1e-6)
        np.testing.assert_allclose(np.sum(heights * np.diff(edges)), 1.0)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Value", "Density")
    np.testing.assert_allclose(ax.get_xlim(), (low, high))
    assert ax.get_ylim()[0] == 0.0 and ax.get_ylim()[1] > max(outline.get_data()[0].max() for outline in outlines(ax))


def test_counts() -> None:
    ax = gx.plot.distributions({"x": np.array([0, 1, 1, 3])}, bins=3, density=False)
    (outline,) = outlines(ax)
    np.testing.assert_array_equal(outline.get_data()[0], [1, 2, 1])
    assert ax.get_ylabel() == "Count"


def test_the_range_cuts_the_picture_and_not_the_numbers() -> None:
    """Density and legend are those of the whole array: half of it lies outside."""
    ax = gx.plot.distributions({"x": np.array([0.25, 0.75, 10.0, -10.0])}, bins=2, range=(0.0, 1.0))
    heights, edges, _ = outlines(ax)[0].get_data()
    np.testing.assert_allclose(edges, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(heights, [0.5, 0.5])
    assert ax.get_xlim() == (0.0, 1.0)
    assert labels(ax) == ["x: mean 0.25, std 7.08"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([-1.0, 1.0]), "mean 0.00, std 1.00"),
        (np.array([1.0, 2.0]) - 1e-9, "mean 1.500, std 0.500"),
        (np.array([3000.0, 3000.04]), "mean 3000.0200, std 0.0200"),
        (np.array([-2e6, 2e6]), "mean 0, std 2e+06"),
        (np.array([1e-12, 3e-12]), "mean 2e-12, std 1e-12"),
        (np.array([-1.0, 1.0]) - 1e-9, "mean 0.00, std 1.00"),
        (np.full(7, 2.5), "mean 2.5, std 0"),
        (np.array([0, 10]), "mean 5.00, std 5.00"),
    ],
)
def test_the_legend_gives_mean_and_standard_deviation(values: np.ndarray, told: str) -> None:
    assert labels(gx.plot.distributions({"layer 1": values})) == [f"layer 1: {told}"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float32", "int8"])
def test_every_real_dtype_is_drawn_without_rounding(dtype: str) -> None:
    x = jnp.asarray(4 * normal(), dtype)
    ax = gx.plot.distributions({"x": x}, bins=10)
    exact = np.asarray(x).astype(np.float64)
    np.testing.assert_allclose(outlines(ax)[0].get_data()[0], np.histogram(exact, 10, density=True)[0])
    assert labels(ax) == [f"x: mean {exact.mean():.2f}, std {exact.std():.2f}"]


def test_what_is_not_finite_is_counted_in_the_legend() -> None:
    x = np.append(normal((1000,)), [np.nan, np.inf, -np.inf])
    ax = gx.plot.distributions({"x": x, "y": normal((10,))})
    heights, edges, _ = outlines(ax)[0].get_data()
    np.testing.assert_allclose(np.sum(heights * np.diff(edges)), 1.0)
    assert labels(ax)[0].endswith(", 3 not finite")
    assert "finite" not in labels(ax)[1]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e20])
def test_an_array_of_one_number_has_width(value: float) -> None:
    ax = gx.plot.distributions({"x": np.full((2, 2), value, np.float32)})
    low, high = ax.get_xlim()
    assert low < value < high
    ax.figure.canvas.draw()


def test_lines_look_as_in_the_other_pictures() -> None:
    ax = gx.plot.distributions({str(i): normal(seed=i) for i in range(9)})
    for outline, line in zip(outlines(ax), lines(), strict=False):
        assert matplotlib.colors.to_hex(outline.get_edgecolor()).upper() == line.color
    styles = [outline.get_linestyle() for outline in outlines(ax)]
    assert len({str(style) for style in styles[:4]}) == 4
    ax.figure.canvas.draw()


def test_drawing_goes_into_the_axes_given() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert gx.plot.distributions({"x": normal()}, ax=right) is right
    assert len(plt.get_fignums()) == 1 and not left.patches
    assert gx.plot.distributions({"x": normal()}).figure is not right.figure


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: gx.plot.distributions([normal()]), TypeError, "values: expected a mapping .* got list"),
        (lambda: gx.plot.distributions({}), ValueError, "values: expected at least one array"),
        (lambda: gx.plot.distributions({"x": np.zeros(0)}), ValueError, r"values\['x'\]: .* finite number, got 0"),
        (lambda: gx.plot.distributions({"x": np.full(3, np.nan)}), ValueError, r"values\['x'\]: .* got 3 that are not"),
        (lambda: gx.plot.distributions({"x": np.array(["a"])}), TypeError, r"values\['x'\]: expected .* real numbers"),
        (lambda: gx.plot.distributions({"x": np.ones(3, complex)}), TypeError, r"values\['x'\]: .* dtype complex128"),
        (lambda: gx.plot.distributions({"x": np.array([True])}), TypeError, r"values\['x'\]: .* dtype bool"),
        (lambda: gx.plot.distributions({"x": normal()}, bins=0), ValueError, "bins: expected"),
        (lambda: gx.plot.distributions({"x": normal()}, bins=2.5), TypeError, "bins: expected an integer"),
        (lambda: gx.plot.distributions({"x": normal()}, range=(1.0,)), ValueError, "range: expected two finite"),
        (lambda: gx.plot.distributions({"x": normal()}, range=(0.0, np.inf)), ValueError, "range: expected two finite"),
        (lambda: gx.plot.distributions({"x": normal()}, range="ab"), ValueError, "range: expected two finite"),
        (lambda: gx.plot.distributions({"x": normal()}, range=(1, 1)), ValueError, "range: expected the lower number"),
    ],
)
def test_bad_arguments_are_named(draw: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw()
    assert not plt.get_fignums()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'gradxform\[plot\]'"):
        gx.plot.distributions({"x": normal()})
