"""Every recipe, brick and wrapper computes what it did when ``golden/recipe_bits.npz`` was made, to the last bit.

That holds where the compiler and the features of the CPU are those the file was made with. Elsewhere sums may be added
in another order, a product and a sum rounded once or twice, and exp and log are other polynomials; there the last step
has to agree to the rounding errors of 20 steps, and the structure of the state exactly. ``GRADXFORM_BITS=1`` asks for
the bits on any machine. Eager runs are made where a branch may ask what is traced; ``-m exhaustive`` makes the others.
"""

from __future__ import annotations

import os
import pathlib
import runpy
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MAKE = runpy.run_path(str(GOLDEN / "make_recipe_bits.py"))
ROUNDING = 1e-6
"""Of a value and of the largest of its leaf, in float32; SSE 4.2 and jaxlib 0.12 were seen to move 1.4e-7."""


def load() -> tuple[str, dict[str, dict[str, Any]]]:
    """The machine of the golden file, and its digests, structure and last leaves (as bytes) by case and mode."""
    with np.load(GOLDEN / "recipe_bits.npz") as file:
        golden = dict(file)
    ends = iter(np.split(np.cumsum(golden["sizes"], dtype=np.int64), np.cumsum(golden["counts"], dtype=np.int64)[:-1]))
    data, start = golden["last"].tobytes(), 0
    cases = {}
    structures = golden["structures"].tobytes().decode().split("\n")
    for name, digests, structure in zip(golden["names"].tolist(), golden["digests"], structures, strict=True):
        leaves = []
        for end in next(ends).tolist():
            leaves.append(data[start:end])
            start = end
        cases[name] = {"digests": digests, "structure": structure, "leaves": leaves}
    return str(golden["machine"]), cases


EAGER = {
    "adamw",
    "accumulate",
    "gradual_unfreeze",
    "masked_chain",
    "nested_wrappers",
    "optax_inside",
    "partition",
    "skip_nonfinite",
}
"""Where an eager run may take another branch than a compiled one; elsewhere the operations are the same."""
MACHINE, WANTED = load()
STRICT = os.environ.get("GRADXFORM_BITS") == "1" or MAKE["machine"]() == MACHINE


def test_every_case_is_in_the_file() -> None:
    assert list(WANTED) == [f"{name}, {mode}" for name in MAKE["CASES"] for mode in ("jitted", "eager")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive)
        if name.endswith(", eager") and name.removesuffix(", eager") not in EAGER
        else name
        for name in WANTED
    ],
)
def test_updates_and_states_have_their_bits(name: str) -> None:
    key, _, mode = name.rpartition(", ")
    wanted = WANTED[name]
    steps = list(MAKE["run"](MAKE["CASES"][key], mode == "jitted"))
    structure, leaves = steps[-1]
    assert structure == wanted["structure"]
    assert [leaf.nbytes for leaf in leaves] == [len(raw) for raw in wanted["leaves"]]
    golden = [
        np.frombuffer(raw, leaf.dtype).reshape(leaf.shape) for leaf, raw in zip(leaves, wanted["leaves"], strict=True)
    ]
    if STRICT:
        for i, (got, want) in enumerate(zip(leaves, golden, strict=True)):
            assert got.tobytes() == want.tobytes(), f"last step, leaf {i}: {got.tolist()} is not {want.tolist()}"
        got = np.array([MAKE["digest"](*step) for step in steps])
        other = np.flatnonzero(got != wanted["digests"]).tolist()
        assert not other, f"the last step is the same, but those of indices {other} are not"
        return
    for i, (got, want) in enumerate(zip(leaves, golden, strict=True)):
        if not jnp.issubdtype(got.dtype, jnp.inexact):
            np.testing.assert_array_equal(got, want, err_msg=f"leaf {i}")
            continue
        close = ROUNDING if got.dtype == jnp.float32 else float(jnp.finfo(got.dtype).eps)
        got, want = got.astype(np.float64), want.astype(np.float64)
        np.testing.assert_allclose(got, want, rtol=close, atol=close * np.abs(want).max(initial=0), err_msg=f"leaf {i}")
