"""Codecs by themselves: what comes back, on average and at the ends."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_checks import NEAREST, SIGNS, STEP, STOCHASTIC, P, numbers, same_codes, there

import gradxform as gx
from gradxform.precision.noise import noise

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]

DRAWS = 100
BOTH = {**STOCHASTIC, **{f"{name}, nearest": codec for name, codec in NEAREST.items()}}
eyes = functools.partial(pytest.mark.parametrize, "above", SIGNS.values(), ids=SIGNS)


def draw(codec: gx.precision.Codec, x: Any, above: bool, draws: int = DRAWS) -> np.ndarray:
    """What comes back of some numbers, with other noise each time."""

    def one(t: Any) -> Any:
        return codec.decode(there(codec, x, t, above), nonnegative=above)

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(draws)), np.float64)


@eyes()
@pytest.mark.parametrize("name", BOTH)
def test_what_was_decoded_has_the_same_code_again(name: str, above: bool) -> None:
    codec, x = BOTH[name], numbers(orders=6)
    x = np.abs(x) if above else x
    both = jax.jit(
        lambda x, s, t: (
            code := there(codec, x, s, above),
            there(codec, codec.decode(code, nonnegative=above), t, above),
        )
    )
    for t in range(4):
        assert same_codes(*both(x, t, t + 100))


@eyes()
@pytest.mark.parametrize("name", STOCHASTIC)
def test_rounding_is_right_on_average(name: str, above: bool) -> None:
    x = numbers((4, 160), orders=0.7)
    x = np.abs(x) if above else x
    back = draw(STOCHASTIC[name], x, above)
    assert (back[:, x == 0] == 0).all()
    step = {"fp8": 1.125**2 - 1, "linear": 0.125}.get(name, STEP.get(name)) if above else STEP.get(name)
    # A step is that of a minifloat, or of a linear code by the largest of the block.
    steps = np.full_like(x, np.abs(x).max() / 64) if step is None else step * np.abs(x) * 1.0001
    # What is not below the least code of a block.
    big = np.abs(x) > (0 if step is None else 0.2 if name.startswith("int4") else 0.02)
    # Five standard deviations of the mean: a coin between two codes has half a step.
    assert (np.abs(back.mean(0) - x) <= 2.5 * steps / np.sqrt(DRAWS) + 1e-4 * np.abs(x))[big].all()
    assert (np.abs(back - x) <= steps)[:, big].all()
    assert abs(back.mean(0).sum() - x.sum()) < 5 * np.sqrt((back.var(0) / DRAWS).sum()) + 1e-4 * np.abs(x).sum()


@eyes()
@pytest.mark.parametrize("name", NEAREST)
def test_the_nearest_of_the_codes(name: str, above: bool) -> None:
    x = np.abs(numbers((4, 160), orders=0.5)) if above else numbers((4, 160), orders=0.5)
    back = draw(NEAREST[name], x, above, 2)
    assert (back[0] == back[1]).all()
    codes = draw(STOCHASTIC[name], x, above, 60)
    closest = np.abs(codes - x).min(0)
    # A root is rounded by its square, a minifloat by the float's bits: the middle of two codes either way.
    assert (np.abs(back[0] - x) <= closest * 1.0001 + 1e-9).mean() > 0.99


@pytest.mark.parametrize("name", BOTH)
def test_squares_above_0_stay_above_0(name: str) -> None:
    x = np.float32([[1.0, 1e-12, 1e-20, 1e-30, 0.0], [1e-36, 1e-30, 0.0, 1e-37, 1e-25]])
    back = draw(BOTH[name], x, True, 20)
    assert ((back > 0) == (x > 0)).all()


@pytest.mark.parametrize("name", ["fp8", "row", "int4"])
def test_a_first_moment_without_a_gradient_ends(name: str) -> None:
    """Held at the least code it would be 2.8 rates a step, for ever."""
    codec = STOCHASTIC[name]
    x = jnp.zeros((1, 64)).at[0, 0].set(1.0).at[0, 1].set(1e-3)

    def decay(t: Any, x: Any) -> Any:
        return codec.decode(there(codec, x * jnp.where(jnp.arange(64) == 0, 1.0, 0.9), t, False))

    assert float(jax.lax.fori_loop(0, 600, decay, x)[0, 1]) == 0.0


@pytest.mark.parametrize("name", STOCHASTIC)
def test_overflow_saturates_and_nan_stays(name: str) -> None:
    # The inverse of a scale as large as the largest number is no float32.
    codec, top = STOCHASTIC[name], 1e37 if name == "dynamic" else float(jnp.finfo(jnp.float32).max)
    back = draw(codec, np.float32([[top, -top, 1.0]]), False, 8)
    limit = 3.5 if name == "fp8" else top
    assert np.isfinite(back).all() and (back[:, 0, 0] > 0.45 * limit).all() and (back[:, 0, 1] < -0.45 * limit).all()
    assert not np.isfinite(draw(codec, np.float32([[np.nan, 1.0]]), False, 8)[:, 0, 0]).any()
    assert not np.isfinite(draw(codec, np.float32([[np.nan, 1.0]]), True, 8)[:, 0, 0]).any()


def test_the_top_of_fp8_is_a_power_of_two_times_7_over_4() -> None:
    for top, held in ((3.5, 3.5), (3.0, 3.5), (3.6, 7.0), (0.01, 1.75 / 128)):
        code = P.fp8(top).encode(jnp.array([1e9, 1e-30]))
        assert P.fp8(top).decode(code).tolist() == [held, 0.0]
        assert P.fp8(top).decode(P.fp8(top).encode(jnp.array(1e9), nonnegative=True), nonnegative=True) == held**2


def test_codes_of_bitsandbytes_are_the_dynamic_ones() -> None:
    """The 256 numbers of its map are decoded as they are, with a scale of their own."""
    codec = P.int8_blockwise(256, "dynamic")
    both = codec.decode((jnp.arange(256, dtype=jnp.uint8), jnp.ones(1)))
    np.testing.assert_allclose(both[jnp.array([0, 127, 128, 255])], [-0.9929688, 0.0, 5.5e-07, 1.0], rtol=1e-6)
    assert np.all(np.diff(np.asarray(both)) > 0) and both[127] == 0 and both[255] == 1
    squares = codec.decode((jnp.arange(256, dtype=jnp.uint8), jnp.ones(1)), nonnegative=True)
    np.testing.assert_allclose(squares[jnp.array([0, 1, 2, 254, 255])], [0, 3.25e-7, 7.75e-7, 0.99648434, 1], rtol=1e-6)


def test_noise_is_uniform_and_not_correlated() -> None:
    shape = (256, 256)
    draws = np.stack(
        [
            np.asarray(noise(seed, jnp.int32(t), leaf, shape, 32)) / 2.0**32
            for seed, t, leaf in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 2, 0))
        ]
    )
    size = draws[0].size
    for one in draws:
        counts = np.histogram(one, 64, (0, 1))[0]
        assert ((counts - size / 64) ** 2 / (size / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)
        for shift in ((0, 1), (1, 0), (1, 1), (0, 2)):
            assert abs(np.corrcoef(one.ravel(), np.roll(one, shift, (0, 1)).ravel())[0, 1]) < 5 / np.sqrt(size)
    between = np.corrcoef(draws.reshape(5, -1)) - np.eye(5)
    assert np.abs(between).max() < 5 / np.sqrt(size)


def test_rounding_is_binomial_over_steps() -> None:
    up = np.stack([np.asarray(noise(0, jnp.int32(t), 0, (4096,), 32)) < 2**32 * 0.03 for t in range(400)]).sum(0)
    assert abs(up.mean() - 12) < 5 * np.sqrt(400 * 0.03 * 0.97 / 4096)
    assert abs(up.var() / (400 * 0.03 * 0.97) - 1) < 5 * np.sqrt(2 / 4096)


@pytest.mark.parametrize("row, size", [(6, 6), (100, 50), (257, 64), (130, 65), (96, 48)])
def test_blocks_divide_the_row_where_they_can(row: int, size: int) -> None:
    block = 65 if row == 130 else 64
    codes, exponents = P.int8_blockwise(block).encode(jnp.ones((2, row)))
    assert codes.shape == (2, row) and exponents.shape == (2, -(-row // size))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: P.int8_blockwise().encode(jnp.arange(4)),
            TypeError,
            "real floating-point numbers to encode, got int32",
        ),
        (lambda: P.bf16().encode(jnp.ones(3, jnp.complex64)), TypeError, "got complex64"),
        (lambda: P.int8_blockwise().encode(1.0), ValueError, "one axis at least to divide into blocks, got a scalar"),
        (lambda: P.int4_blockwise(1), ValueError, "block: expected an integer >= 2, got 1"),
        (lambda: P.int8_blockwise("rows"), TypeError, "block: expected an integer >= 2 or 'row', got 'rows'"),
        (
            lambda: P.int8_blockwise(code="log"),
            ValueError,
            "code: expected one of 'float', 'linear', 'dynamic', got 'log'",
        ),
        (lambda: P.bf16("up"), ValueError, "rounding: expected one of 'stochastic', 'nearest', got 'up'"),
        (lambda: P.fp8(0.0), ValueError, "top: expected a real number > 0, got 0.0"),
        (lambda: P.fp8(-1.0), ValueError, "top: expected a real number > 0, got -1.0"),
    ],
)
def test_what_is_wrong_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_a_user_s_codec_is_a_value_with_a_name() -> None:
    @P.codec
    def sevenths(of: int = 7) -> Any:
        return (lambda x, noise: jnp.round(x * of).astype(jnp.int8), lambda code: code / jnp.float32(of))

    assert sevenths() == sevenths(7) != sevenths(5) and "sevenths(of=7)" in repr(sevenths())
    tx = P.compress_state(gx.trace(0.9), "sevenths")
    _, state = tx.update({"w": jnp.full((64, 64), 2 / 7)}, tx.init({"w": jnp.ones((64, 64))}))
    assert state.trace["w"].code.dtype == jnp.int8 and float(P.decompress(state).trace["w"][0, 0]) == np.float32(2 / 7)

    @P.codec
    def wrong() -> Any:
        return lambda x, noise: x

    with pytest.raises(TypeError, match=r"wrong: expected the factory to return a pair \(encode, decode\)"):
        wrong()
