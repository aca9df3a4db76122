"""What the tests of codecs share: all of them, numbers to store, and codes as integers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradxform as gx
from gradxform.precision.noise import noise

P = gx.precision
STOCHASTIC: dict[str, gx.precision.Codec] = {
    "bf16": P.bf16(),
    "fp8": P.fp8(),
    "row": P.int8_blockwise(),
    "32": P.int8_blockwise(32),
    "odd blocks": P.int8_blockwise(100),
    "linear": P.int8_blockwise(code="linear"),
    "dynamic": P.int8_blockwise(256, "dynamic"),
    "int4": P.int4_blockwise(),
    "int4 row": P.int4_blockwise("row"),
}
NEAREST = {name: codec.replace(rounding="nearest") for name, codec in STOCHASTIC.items()}
SIGNS = {"both signs": False, "squares": True}
STEP = {"bf16": 2.0**-7, "fp8": 0.25, "row": 0.125, "32": 0.125, "odd blocks": 0.125, "int4": 1.0, "int4 row": 1.0}
"""The largest step between two codes, by the number below it; of squares under fp8 1.125**2 - 1."""


def numbers(shape: tuple[int, ...] = (12, 257), orders: float = 1.0, seed: int = 0) -> np.ndarray:
    """Numbers of both signs over some orders of magnitude, some of them 0, one row of them nothing else."""
    random = np.random.RandomState(seed)
    x = random.standard_normal(shape) * 10 ** random.uniform(-orders, 0, shape)
    x[0], x[1, :3] = 0, 0
    return np.float32(x)


def there(codec: Any, x: Any, t: int, above: bool) -> Any:
    return codec.encode(x, noise(5, jnp.int32(t), 3, jnp.shape(x), 32), nonnegative=above)


def raw(code: Any) -> list[np.ndarray]:
    """The arrays of a code as integers."""
    arrays = [np.asarray(x) for x in jax.tree.leaves(code)]
    return [
        x
        if x.dtype.kind in "iu" or x.dtype.itemsize not in (1, 2, 4) or "int" in str(x.dtype)
        else x.view(f"u{x.dtype.itemsize}")
        for x in arrays
    ]


def same_codes(a: Any, b: Any) -> bool:
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(raw(a), raw(b), strict=True))
