"""AdamW, a cosine learning rate and a clip by the global norm over 1,000 fixed gradients: the truth, torch and here.

``golden/make_listing1.py`` made torch's side. In float64 torch's ``clip_grad_norm_`` divides by ``norm + 1e-6``, which
alone moves the end by 4e-9; so the golden file has torch's run with the exact clip as well, and each of the two
is compared with a chain that clips by the same formula: ``clip_by_global_norm(1.0, eps=1e-6)`` is torch's.
"""

from __future__ import annotations

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

GOLDEN = pathlib.Path(__file__).parent / "golden"
STEPS = 1000

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def problem() -> tuple[Arrays, Arrays]:
    return runpy.run_path(str(GOLDEN / "make_listing1.py"))["problem"]()


@pytest.fixture(scope="module")
def golden(problem: tuple[Arrays, Arrays]) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "listing1.npz") as file:
        arrays = dict(file)
    sums = [np.sum(g.astype(np.float64) ** 2) for g in problem[1].values()]
    np.testing.assert_allclose(sums, arrays["gradient_sums"], rtol=1e-12)  # torch saw these very gradients
    return arrays


@pytest.fixture(scope="module")
def truth(problem: tuple[Arrays, Arrays]) -> Arrays:
    return oracle(*problem)


def oracle(params: Arrays, gradients: Arrays) -> Arrays:
    """Loshchilov and Hutter (2019), algorithm 2, with the decay times the rate, after Pascanu et al. (2013)."""
    x = {name: value.astype(np.float64) for name, value in params.items()}
    m = {name: np.zeros_like(value) for name, value in x.items()}
    v = {name: np.zeros_like(value) for name, value in x.items()}
    for t in range(1, STEPS + 1):
        g = {name: value[t - 1].astype(np.float64) for name, value in gradients.items()}
        norm = np.sqrt(sum(np.sum(value**2) for value in g.values()))
        rate = 1e-5 + 0.5 * (3e-4 - 1e-5) * (1 + np.cos(np.pi * (t - 1) / STEPS))
        for name in x:
            clipped = g[name] * min(1.0, 1.0 / norm)
            m[name] = 0.9 * m[name] + 0.1 * clipped
            v[name] = 0.999 * v[name] + 0.001 * clipped**2
            step = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
            x[name] = (1 - rate * 0.01) * x[name] - rate * step
    return x


def listing1(clip: gx.Transformation) -> gx.Transformation:
    return gx.chain(clip, gx.adamw(gx.schedules.cosine(3e-4, STEPS, 1e-5), weight_decay=0.01))


def train(tx: gx.Transformation, params: Arrays, gradients: Arrays) -> Arrays:
    """All steps in one scan, in the widest dtype that jax allows here."""

    def step(carry: tuple, gradient: Arrays) -> tuple[tuple, None]:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (gx.apply_updates(params, updates), state), None

    dtype = jnp.result_type(float)
    params, gradients = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, gradients))
    (params, _), _ = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g))(params, gradients)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))
    return {name: np.asarray(value) for name, value in params.items()}


def distance(a: Arrays, b: Arrays) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a)


def run_of(golden: dict[str, np.ndarray], run: str) -> Arrays:
    return {name.removeprefix(f"{run}/"): value for name, value in golden.items() if name.startswith(f"{run}/")}


def test_the_clip_works_on_some_steps_and_rests_on_others(problem: tuple[Arrays, Arrays]) -> None:
    squares = sum(np.sum(g.astype(np.float64).reshape(STEPS, -1) ** 2, axis=1) for g in problem[1].values())
    assert 0.3 < np.mean(np.sqrt(squares) > 1.0) < 0.7


def test_torch_agrees_with_the_paper_in_float64(golden: dict[str, np.ndarray], truth: Arrays) -> None:
    assert distance(run_of(golden, "torch_f64_exact_clip"), truth) < 1e-14
    assert 1e-9 < distance(run_of(golden, "torch_f64"), truth) < 1e-8


def test_float32_ends_nearer_the_truth_than_torch(
    problem: tuple[Arrays, Arrays], golden: dict[str, np.ndarray], truth: Arrays
) -> None:
    torch_f32 = distance(run_of(golden, "torch_f32"), truth)
    np.testing.assert_allclose(torch_f32, golden["torch_f32_distance"], rtol=1e-3)
    ours = distance(train(listing1(gx.clip_by_global_norm(1.0)), *problem), truth)
    assert ours < 1e-5 < torch_f32


@pytest.mark.parametrize(
    ("clip", "run"),
    [(gx.clip_by_global_norm(1.0), "torch_f64_exact_clip"), (gx.clip_by_global_norm(1.0, eps=1e-6), "torch_f64")],
    ids=["clip-of-the-paper", "clip-of-torch"],
)
def test_float64_ends_where_torch_does(
    clip: gx.Transformation, run: str, problem: tuple[Arrays, Arrays], golden: dict[str, np.ndarray]
) -> None:
    with jax.enable_x64(True):
        ours = train(listing1(clip), *problem)
    assert distance(ours, run_of(golden, run)) < 1e-12
