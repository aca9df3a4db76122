"""The kernel that looks pixels up on a TPU, interpreted: in every pixel what the portable look-ups find."""

from __future__ import annotations

import functools
from typing import Any

import geometry_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradxform.augment.geometry import lookup, lookup_tpu
from gradxform.augment.geometry.borders import Border
from gradxform.augment.geometry.displacement import Displacement
from gradxform.augment.geometry.placement import Affine, Map, composed
from gradxform.augment.pixels.canvas import Canvas
from gradxform.core.platform import by_platform

pytestmark = pytest.mark.long

TURNS: Any = np.array(
    [
        [0.8, -0.6, 3.0, 0.6, 0.8, -4.0],
        [1, 0, 0, 0, 1, 0],
        [0.9, 0.2, 1.3, -0.1, 1.3, 0.7],
        [-1.5, 0.2, 130.0, 0.3, 0.5, 1.0],
    ],
    np.float32,
)


@pytest.fixture
def on_tpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From then on the form of TPUs is taken here, interpreted, a row a turn."""

    def taken() -> None:
        walk = lookup_tpu.looked_up
        monkeypatch.setattr(lookup_tpu, "AHEAD", 1)
        monkeypatch.setattr(lookup_tpu, "looked_up", functools.partial(walk, interpret=True))
        monkeypatch.setattr(lookup, "by_platform", lambda *args, tpu: by_platform(*args, cpu=tpu))

    return taken


def turned(numbers: Any, height: int, width: int) -> list[Map]:
    return [Affine(*(numbers[i] for i in range(6)))]


def sheared(numbers: Any, height: int, width: int) -> list[Map]:
    return [Affine(1.0, numbers[1], numbers[2], 0.0, 1.0, 0.0)]


def warped(numbers: Any, height: int, width: int) -> list[Map]:
    """A field of some pixels, of many in one place, and then a rotation."""
    y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
    field = Displacement(3 * jnp.sin(x / 5 + numbers[2]) - 0.3, 4 * jnp.cos(x / 9 - y / 4) + 50 * (x + y == 0))
    return composed([*turned(numbers, height, width), field])


CASES: dict[str, Any] = {
    "one pixel": (turned, (1, 1, 1), (3, 2), np.uint8, "constant"),
    "two tiles": (turned, (20, 140, 3), (20, 140), np.uint8, "reflect"),
    "three tiles, two words": (warped, (13, 300, 5), (9, 270), np.uint8, "edge"),
    "floats": (turned, (9, 200, 2), (9, 131), np.float32, "constant"),
    "rows stay": (sheared, (10, 129, 4), (10, 129), np.uint8, "constant"),
}


@pytest.mark.parametrize("case", CASES)
def test_between_pixels(case: str, on_tpu: Any) -> None:
    maps, shape, size, dtype, mode = CASES[case]
    image = oracles.noise(*shape, dtype)
    border = Border(mode, tuple(np.linspace(0.2, 1, shape[2]).tolist()), 0)

    def moved(numbers: Any, image: Any) -> Any:
        return lookup.bilinear(Canvas.of(image), border, maps(numbers, *size), *size).image()

    wanted = jax.jit(jax.vmap(moved, (0, None)))(TURNS, image)
    on_tpu()
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda *args: moved(*args), (0, None)))(TURNS, image), wanted)


FOUND: dict[str, Any] = {
    "in Pillow's arithmetic": (turned, (20, 140), np.uint32, "constant", True),
    "planes of bytes": (turned, (9, 20, 3), np.int8, "reflect", False),
    "flags of a field": (warped, (30, 40), np.bool_, "edge", False),
}


@pytest.mark.parametrize("case", FOUND)
def test_nearest_elements(case: str, on_tpu: Any) -> None:
    maps, shape, dtype, mode, fixed = FOUND[case]
    array: Any = np.random.RandomState(0).randint(0, 256, shape).astype(dtype)

    def moved(numbers: Any) -> Any:
        return lookup.picked(
            jnp.asarray(array), Border(mode, 0.0, 0), maps(numbers, *shape[:2]), *shape[:2], jnp.asarray(7), fixed
        )

    turns = TURNS * np.array([1, 0.5, 0.3, 1, 1, 1], np.float32) if fixed else TURNS
    wanted = jax.jit(jax.vmap(moved))(turns)
    on_tpu()
    found = jax.jit(jax.vmap(lambda numbers: moved(numbers)))(turns)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_slopes_are_those_of_the_portable_form(on_tpu: Any) -> None:
    """By pixels and by the map, forward and backward; the value is the kernel's."""
    image = oracles.noise(6, 7, 2, np.float32)

    def value(numbers: Any, image: Any) -> Any:
        found = lookup.bilinear(Canvas.of(image), Border("constant", 0.3, 0), warped(numbers, 6, 7), 6, 7).image()
        return jnp.sum(found * jnp.arange(found.size).reshape(found.shape))

    at = (jnp.asarray(TURNS[0]), image)
    along = jax.tree.map(lambda x: jnp.linspace(-1, 1, x.size).reshape(x.shape), at)

    def slopes(f: Any) -> Any:
        return jax.jit(lambda: (jax.value_and_grad(f, (0, 1))(*at), jax.jvp(f, at, along)))()

    wanted = slopes(value)
    on_tpu()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), slopes(lambda *args: value(*args)), wanted)


def test_a_large_image_is_left_to_the_portable_form() -> None:
    rule = lookup._Bilinear(1024, 1024, "edge", False, (None,) * 6, True, True, (3,))
    assert lookup_tpu.fits(rule, 1024, 1024)

    def program(size: int) -> str:
        still = Affine(1.0, 0.0, jnp.float32(0.0), 0.0, 1.0, 0.0)
        looked_up = jax.jit(lambda word: lookup.picked(word, None, [still], 8, 8, jnp.asarray(0), False))
        traced = looked_up.trace(jax.ShapeDtypeStruct((size, size), jnp.uint32))
        return str(traced.lower(lowering_platforms=("tpu",)).as_text())

    assert "tpu_custom_call" in program(100)
    assert "tpu_custom_call" not in program(2000)
