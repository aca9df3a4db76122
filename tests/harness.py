"""What the numeric tests of transformations and optimizers share: a small nested tree, and runs over it in one scan."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles

import gradxform as gx

STEPS = 30
FEW = 10
SHAPES = {
    "attention": (5, 2, 3),
    "conv": [(2, 2, 3, 4)],
    "encoder": {"bias": (3,), "kernel": (4, 3)},
    "temperature": (),
}
PATHS = ["attention", "conv/0", "encoder/bias", "encoder/kernel", "temperature"]

Tree = Any


def _fill(make: Callable[[tuple[int, ...]], Any]) -> Tree:
    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


@functools.cache
def problem(steps: int = STEPS) -> tuple[Tree, Tree]:
    """Params, and gradients stacked along a leading axis of ``steps``, in float32 as NumPy arrays.

    The gradients of a step have a common scale from 0.03 to 3 beside their noise, every leaf a drift of its own, and
    the first element of every leaf of the encoder never has a gradient.
    """
    random = np.random.RandomState(7)
    params = _fill(lambda shape: np.float32(random.standard_normal(shape)))
    scale = 10.0 ** random.uniform(-1.5, 0.5, size=steps)

    def gradient(shape: tuple[int, ...]) -> np.ndarray:
        drift = random.standard_normal(shape)
        noise = random.standard_normal((steps, *shape)) + 0.5 * drift
        return np.float32(noise * scale.reshape(-1, *[1] * len(shape)))

    gradients = _fill(gradient)
    gradients["encoder"]["bias"][:, 0] = 0
    gradients["encoder"]["kernel"][:, 0, 0] = 0
    return params, gradients


def flat(tree: Tree) -> oracles.Arrays:
    """A tree as a dict from path to a float64 (or complex128) array."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(
            leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def at_step(gradients: Tree, t: int) -> Tree:
    return jax.tree.map(lambda x: x[t], gradients)


def small(trees: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """``problem()`` on three of its leaves: compiling takes as long as there are leaves."""
    params, gradients = ({key: tree[key] for key in ("attention", "encoder")} for tree in trees)
    return params, gradients


def first(gradients: Tree, steps: int = FEW) -> Tree:
    return jax.tree.map(lambda x: x[:steps], gradients)


@contextlib.contextmanager
def precision(bits: int) -> Iterator[Any]:
    """The dtype of ``bits`` bits, with jax's 64-bit types on where they are needed."""
    with jax.enable_x64(bits == 64):
        yield jnp.dtype(f"float{bits}")


def updates_of(tx: optax.GradientTransformation, gradients: Tree, params: Tree) -> tuple[Tree, Tree]:
    """The updates of every step at fixed params, stacked, and the last state; compiled as one scan."""

    def step(state: Tree, gradient: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(gradient, state, params)
        return state, updates

    state, updates = jax.jit(lambda p, g: jax.lax.scan(step, tx.init(p), g))(params, gradients)
    return updates, state


def eager_updates_of(tx: optax.GradientTransformation, gradients: Tree, params: Tree) -> tuple[Tree, Tree]:
    """``updates_of``, one operation after another: for a few steps it is quicker than compiling."""
    state, seen = tx.init(params), []
    for t in range(len(jax.tree.leaves(gradients)[0])):
        updates, state = tx.update(at_step(gradients, t), state, params)
        seen.append(updates)
    return jax.tree.map(lambda *x: np.stack(x), *seen), state


def trajectory_of(
    tx: optax.GradientTransformation, noise: Tree, params: Tree, pull: float = 0.3, *, eager: bool = False
) -> tuple[Tree, Tree]:
    """The params at the end of all steps, and the last state; a step's gradient is ``noise + pull * params``."""
    tx = optax.with_extra_args_support(tx)

    def step(carry: tuple[Tree, Tree], noise: Tree) -> tuple[tuple[Tree, Tree], None]:
        params, state = carry
        gradient = jax.tree.map(lambda n, p: n + jnp.asarray(pull, p.dtype) * p, noise, params)
        updates, state = tx.update(gradient, state, params)
        return (jax.tree.map(lambda p, u: p + u, params, updates), state), None

    if eager:
        carry = jax.tree.map(jnp.asarray, params), tx.init(params)
        for t in range(len(jax.tree.leaves(noise)[0])):
            carry, _ = step(carry, at_step(noise, t))
        return carry
    return jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g))(params, noise)[0]


def oracle_trajectory(rule: oracles.Rule, noise: Tree, params: Tree, pull: float = 0.3) -> oracles.Arrays:
    """``trajectory_of`` in float64 NumPy."""
    flat_noise = flat(noise)
    steps = len(next(iter(flat_noise.values())))
    return oracles.trajectory_of(
        rule, lambda t, w: {name: flat_noise[name][t - 1] + pull * w[name] for name in w}, flat(params), steps
    )


def assert_updates(
    tx: optax.GradientTransformation,
    rule: oracles.Rule,
    bits: int,
    *,
    rtol: float | None = None,
    gradients: Tree = None,
    params: Tree = None,
    eager: bool = False,
) -> None:
    """The updates of ``tx`` are those of ``rule``, each leaf to ``rtol``; an eager run takes ``FEW`` steps."""
    default_params, default_gradients = problem()
    params = default_params if params is None else params
    gradients = default_gradients if gradients is None else gradients
    rtol = (1e-5 if bits == 32 else 1e-11) if rtol is None else rtol
    if eager:
        gradients = first(gradients)
    steps = len(jax.tree.leaves(gradients)[0])
    wanted = oracles.updates_of(rule, [flat(at_step(gradients, t)) for t in range(steps)], flat(params))
    dtype = jnp.dtype(f"float{bits}")
    cast = functools.partial(
        jax.tree.map, lambda x: jnp.asarray(x, jnp.result_type(dtype, jnp.complex64) if np.iscomplexobj(x) else dtype)
    )
    got, _ = (eager_updates_of if eager else updates_of)(tx, cast(gradients), cast(params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        assert leaf.dtype == jax.tree.leaves(cast(gradients))[0].dtype or np.iscomplexobj(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        expected = np.stack([step[name] for step in wanted])
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(
            leaf, expected, rtol=rtol, atol=rtol / 10 * np.abs(expected).max(initial=0), err_msg=name
        )


def distance(a: Tree, b: Tree) -> float:
    """The largest difference of two trees of one structure."""
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    return max(float(np.max(np.abs(a[name] - b[name]), initial=0)) for name in a)


def filled(like: Tree, value: float, dtype: Any = None) -> Tree:
    """A tree of ``value`` with the shapes (and the dtypes) of ``like``."""
    return jax.tree.map(lambda x: jnp.full(jnp.shape(x), value, dtype or jnp.result_type(x)), like)


def one_step(tx: gx.Transformation, gradients: Tree, params: Tree) -> tuple[Tree, Tree]:
    """One update from a fresh state."""
    return tx.update(jax.tree.map(jnp.asarray, gradients), tx.init(params), params)


# Every optimizer, with arguments that make its rules work on a small tree: matrices are factored, sgd has momentum.
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "rmsprop": {"centered": True, "momentum": 0.9},
    "adagrad": {},
    "adam": {},
    "adamw": {},
    "adabelief": {},
    "adafactor": {"min_dim_size_to_factor": 2, "momentum": 0.9},
    "amsgrad": {},
    "lamb": {},
    "lars": {},
    "lion": {},
    "muon": {},
    "nadam": {"momentum_decay": 4e-3},
    "nadamw": {},
    "radam": {},
    "yogi": {},
}


def recipe(name: str, learning_rate: Any = 1e-3, **changes: Any) -> gx.Transformation:
    """An optimizer by name."""
    return getattr(gx, name)(learning_rate, **(RECIPES[name] | changes))


def same_bytes(a: Tree, b: Tree) -> bool:
    """Whether two trees have one structure and the same bits in every leaf, signs of zero and NaN included."""
    raw = lambda x: np.asarray(  # noqa: E731
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and raw(x).tobytes() == raw(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
