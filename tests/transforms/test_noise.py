"""add_noise: its variance, that it repeats, and that no two leaves or steps have the same."""

from __future__ import annotations

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx


def noise_of(tx: gx.Transformation, params: harness.Tree, steps: int) -> harness.Tree:
    zeros = jax.tree.map(lambda p: jnp.zeros((steps, *p.shape), p.dtype), params)
    return harness.eager_updates_of(tx, zeros, params)[0]


@pytest.mark.parametrize(("eta", "gamma"), [(0.3, 0.55), (2.0, 0.0), (0.01, 1.0)])
def test_variance_falls_as_told(eta: float, gamma: float) -> None:
    steps, size = 9, 40_000
    noise = noise_of(gx.add_noise(eta, gamma, 1), {"w": jnp.zeros(size)}, steps)["w"]
    wanted = eta / np.arange(1, steps + 1) ** gamma
    # The variance of a sample variance of normals is 2 s**4 / n: five of its deviations.
    np.testing.assert_allclose(np.var(np.asarray(noise, np.float64), axis=1), wanted, rtol=5 * np.sqrt(2 / size))
    np.testing.assert_allclose(np.mean(np.asarray(noise, np.float64), axis=1), 0, atol=5 * np.sqrt(wanted[0] / size))


def test_noise_is_added_to_the_gradient() -> None:
    params = {"a": jnp.full(5, 2.0)}
    tx = gx.add_noise(0.5, 0.55, 0)
    with_gradient, _ = tx.update(params, tx.init(params))
    alone, _ = tx.update({"a": jnp.zeros(5)}, tx.init(params))
    np.testing.assert_allclose(with_gradient["a"], 2.0 + alone["a"], rtol=1e-6)


@pytest.mark.parametrize(
    "key",
    [7, np.int64(7), jnp.asarray(7), jax.random.key(7), jax.random.PRNGKey(7)],
    ids=["int", "np.int64", "array", "key", "old key"],
)
def test_the_same_key_gives_the_same_noise(key: object) -> None:
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    one, two = (noise_of(gx.add_noise(1.0, 0.5, k), params, 2) for k in (7, key))
    assert harness.distance(one, two) == 0
    other = noise_of(gx.add_noise(1.0, 0.5, 8), params, 2)
    assert harness.distance(one, other) > 0.1


def test_every_leaf_and_every_step_has_noise_of_its_own() -> None:
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4), "c": {"d": jnp.zeros(4)}}
    noise = noise_of(gx.add_noise(1.0, 0.0, 0), params, 5)
    rows = np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(noise)])
    assert len({row.tobytes() for row in rows}) == 15
    correlation = np.corrcoef(rows)
    assert np.abs(correlation - np.eye(15)).max() < 0.999


def test_noise_is_drawn_in_f32_and_rounded_once() -> None:
    tx = gx.add_noise(1.0, 0.0, 0)
    wide, _ = tx.update({"a": jnp.zeros(100)}, tx.init({"a": jnp.zeros(100)}))
    narrow, _ = tx.update({"a": jnp.zeros(100, jnp.bfloat16)}, tx.init({"a": jnp.zeros(100, jnp.bfloat16)}))
    np.testing.assert_array_equal(narrow["a"], wide["a"].astype(jnp.bfloat16))


def test_complex_noise_has_the_variance_in_all() -> None:
    noise = noise_of(gx.add_noise(0.5, 0.0, 0), {"a": jnp.zeros(40_000, jnp.complex64)}, 1)["a"]
    np.testing.assert_allclose(np.var(np.asarray(noise)), 0.5, rtol=0.05)


@pytest.mark.parametrize("key", [1.5, "seed", None, jnp.ones(2), jnp.array(0.5)], ids=str)
def test_what_is_not_a_key(key: object) -> None:
    with pytest.raises(TypeError, match="key"):
        gx.add_noise(1.0, 0.5, key)  # type: ignore[arg-type]
