"""Averages that go on moving: a mean of squares whose gradient falls a hundredfold, stored by every codec."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_checks import NEAREST, STOCHASTIC, P

import gradxform as gx

pytestmark = pytest.mark.long

SHAPE = (16, 256)
HALF = np.arange(4096).reshape(SHAPE) % 2 == 0
"""Of the elements, whose gradient falls."""
SPREAD = {"bf16": 0.03, "fp8": 0.16, "row": 0.12, "32": 0.12, "dynamic": 0.12}
"""Of the roots around the exact ones, by codec, where steps are small enough for the mean of the roots to be right too.

From step to step a mean of squares ``v`` moves by ``(1 - b2) |g**2 - v|``, so that rounding to codes ``d v`` apart adds
that times ``d v`` to its variance, and ``b2`` takes ``2 (1 - b2)`` of it: ``0.48 d v**2`` are left, whatever ``b2`` is,
and 0.35 times the root of ``d`` as the spread of the root. Within 0.12 takes 6 codes an octave of ``v``. fp8 has 4.
"""


@functools.cache
def squares(codec: gx.precision.Codec | None, b2: float, steps: int) -> np.ndarray:
    """Adam's second moment after some steps, of which the first quarter has gradients of 1."""
    tx = gx.chain(gx.scale_by_adam(b2=b2))
    tx = tx if codec is None else P.compress_state(tx, codec)

    def step(state: Any, t: Any) -> tuple[Any, None]:
        g = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), SHAPE)
        return tx.update({"w": g * jnp.where(HALF & (t >= steps // 4), 0.01, 1.0)}, state)[1], None

    state = tx.init({"w": jnp.zeros(SHAPE)})
    state = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps))[0])(state)
    return np.asarray(P.decompress(state)[0].nu["w"], np.float64)


def check(name: str, codec: gx.precision.Codec, b2: float, steps: int) -> None:
    exact, stored = squares(None, b2, steps), squares(codec, b2, steps)
    for which, within in ((HALF, 0.15), (~HALF, 0.02)):
        # Of the average itself: the codes of one element scatter around it, and a root is below it for that.
        assert abs(np.sqrt(stored[which].mean() / exact[which].mean()) - 1) < within
    if name in SPREAD:
        ratio = np.sqrt(stored / exact)
        assert abs(ratio[HALF].mean() - 1) < 0.15 and abs(ratio[~HALF].mean() - 1) < 0.02
        assert ratio[~HALF].std() < SPREAD[name]


@pytest.mark.parametrize("name", ["bf16", "fp8", "row", "int4 row"])
def test_an_average_follows(name: str) -> None:
    """As below in a tenth of the steps: a step is a hundredth, which is below half a code of all but bfloat16."""
    check(name, STOCHASTIC[name], 0.99, 800)


@pytest.mark.parametrize("name", ["fp8", "row", "int4 row"])
def test_to_the_nearest_it_does_not(name: str) -> None:
    with pytest.raises(AssertionError):
        check(name, NEAREST[name], 0.99, 800)
    assert np.sqrt(squares(NEAREST[name], 0.99, 800)[HALF].mean() / squares(None, 0.99, 800)[HALF].mean()) > 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["bf16", "fp8", "row", "32", "dynamic", "int4"])
def test_an_average_follows_over_8000_steps(name: str) -> None:
    check(name, STOCHASTIC[name], 0.999, 8000)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["bf16", "fp8", "row", "32", "dynamic", "int4"])
def test_to_the_nearest_it_does_not_over_8000_steps(name: str) -> None:
    with pytest.raises(AssertionError):
        check(name, NEAREST[name], 0.999, 8000)
