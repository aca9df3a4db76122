"""What the tests of masks share: statistical bounds, keys of both styles, and things that are no keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NO_KEYS: dict[str, Any] = {
    "an integer": 0,
    "a float": 0.5,
    "None": None,
    "a string": "key",
    "a list": [0, 0],
    "integers": np.zeros(2, np.int32),
    "a matrix": np.zeros((2, 2), np.uint32),
    "three words": np.zeros(3, np.uint32),
    "floats": np.zeros(2, np.float32),
}


def keys(seed: int = 0) -> list[Any]:
    """The same key in all styles."""
    return [jax.random.key(seed), jax.random.PRNGKey(seed), np.asarray(jax.random.PRNGKey(seed))]


def assert_uniform(counts: Any) -> None:
    """Counts of equally likely outcomes: Pearson's chi-square within five standard deviations of what it should be."""
    counts = np.asarray(counts, np.float64)
    expected = counts.sum() / counts.size
    assert expected >= 5
    freedom = counts.size - 1
    statistic = np.sum((counts - expected) ** 2) / expected
    assert statistic < freedom + 5 * np.sqrt(2 * freedom), (statistic, freedom)


def assert_share(hits: Any, of: Any, probability: float) -> None:
    """A number of hits within five standard deviations of a binomial one."""
    hits, of = float(hits), float(of)
    assert abs(hits - of * probability) <= 5 * np.sqrt(of * probability * (1 - probability)) + 1e-9, hits / of


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert jnp.array_equal(x, y)
