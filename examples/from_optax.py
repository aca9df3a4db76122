"""What one writes with optax beside what one writes here: each pair is run step by step and compared.

    python examples/from_optax.py

Every function below is one idiom: first optax's way, then this library's. Both train the same small network on the same
batches; printed is the largest difference of any parameter after any step. ``gradxform/NAMES.md`` has all names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

import gradxform as gx

STEPS = 8
WITHIN = 5e-6
"""Of parameters near 1, in float32: bias corrections without cancellation are here, and not there."""

Params = Any
Pair = tuple[Iterator[Params], Iterator[Params]]
IDIOMS: dict[str, Callable[[], Pair]] = {}


def idiom(function: Callable[[], Pair]) -> Callable[[], Pair]:
    """Adds a pair to the table by the first line of its docstring."""
    IDIOMS[(function.__doc__ or "").splitlines()[0].rstrip(".")] = function
    return function


def start() -> Params:
    """The parameters of a small network."""
    random = np.random.default_rng(0)
    shapes = {"body": {"bias": (8,), "kernel": (4, 8)}, "head": {"kernel": (8, 2)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape) / 2, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def loss(params: Params, step: Any) -> jax.Array:
    """The squared error on the batch of a step."""
    x = jnp.sin(jnp.arange(64.0).reshape(16, 4) * (step + 1))
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"])
    return jnp.mean((hidden @ params["head"]["kernel"] - x[:, :2]) ** 2)


def train(tx: Any, *, bad_step: int | None = None) -> Iterator[Params]:
    """The params after each step; the loop is the same for either library."""
    params = start()
    state = tx.init(params)

    @jax.jit
    def update(params: Params, state: Any, step: Any) -> Any:
        grads = jax.grad(loss)(params, step)
        if bad_step is not None:
            grads = jax.tree.map(lambda g: jnp.where(step == bad_step, jnp.nan, g), grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(STEPS):
        params, state = update(params, state, step)
        yield params


@idiom
def usual() -> Pair:
    """A clip, AdamW along a warm-up and a cosine, no decay of biases."""
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, 0.02, 3, STEPS, 0.002),
            weight_decay=0.1,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )
    # The steps of the cosine are its own, and its third argument is the value at the end.
    ours = gx.chain(
        gx.clip_by_global_norm(1.0),
        gx.adamw(
            gx.schedules.warmup(3, gx.schedules.cosine(0.02, STEPS - 3, 0.002)),
            weight_decay=0.1,
            mask=gx.ndim_at_least(2),
        ),
    )
    return train(theirs), train(ours)


@idiom
def alpha() -> Pair:
    """A cosine to a tenth of the rate, squared."""
    return (
        train(optax.sgd(optax.cosine_decay_schedule(0.1, STEPS, alpha=0.1, exponent=2.0))),
        train(gx.sgd(gx.schedules.cosine(0.1, STEPS, end_value=0.01, exponent=2.0))),
    )


@idiom
def join() -> Pair:
    """One schedule after another."""
    theirs = optax.join_schedules([optax.linear_schedule(0.0, 0.1, 3), optax.exponential_decay(0.1, 2, 0.5)], [3])
    ours = gx.schedules.join([gx.schedules.linear(0.0, 0.1, 3), gx.schedules.exponential(0.1, np.log(2) / 2)], [3])
    return train(optax.sgd(theirs)), train(gx.sgd(ours))


@idiom
def frozen() -> Pair:
    """A frozen part, which a clip does not count."""
    labels = {"body": "frozen", "head": "train"}
    theirs = optax.multi_transform(
        {"train": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.02)), "frozen": optax.set_to_zero()}, labels
    )
    ours = gx.selective_transform(gx.chain(gx.clip_by_global_norm(0.1), gx.adam(0.02)), freeze_mask="^body/")
    return train(theirs), train(ours)


@idiom
def parts() -> Pair:
    """An optimizer for each part."""
    labels = {"body": "slow", "head": "fast"}
    return (
        train(optax.multi_transform({"slow": optax.sgd(0.01, 0.9), "fast": optax.adam(0.02)}, labels)),
        train(gx.partition({"slow": gx.sgd(0.01, 0.9), "fast": gx.adam(0.02)}, labels)),
    )


@idiom
def micro_batches() -> Pair:
    """Gradients of two micro-batches for a step."""
    return (
        train(optax.MultiSteps(optax.adam(0.02), 2).gradient_transformation()),
        train(gx.accumulate(gx.adam(0.02), 2)),
    )


@idiom
def not_finite() -> Pair:
    """A step with NaN in it left out."""
    return (
        train(optax.apply_if_finite(optax.adam(0.02), 3), bad_step=4),
        train(gx.skip_nonfinite(gx.adam(0.02), 3), bad_step=4),
    )


@idiom
def muon() -> Pair:
    """Muon, with the head left to Adam."""
    matrix = optax.contrib.MuonDimensionNumbers()
    theirs = optax.contrib.muon(
        0.02, muon_weight_dimension_numbers={"body": {"bias": None, "kernel": matrix}, "head": {"kernel": None}}
    )
    return train(theirs), train(gx.muon(0.02, matrices="^body/kernel"))


@idiom
def mixed_chain() -> Pair:
    """A part of optax's in a chain of ours, and one of ours in a wrapper of optax's."""

    def theirs(lib: Any) -> Any:
        return optax.chain(optax.clip(0.1), lib.adam(0.02), optax.ema(0.5))

    return train(theirs(optax)), train(gx.chain(optax.clip(0.1), optax.chain(gx.adam(0.02)), optax.ema(0.5)))


@idiom
def another_rate() -> Pair:
    """The rate changed while it runs, without compiling again."""

    def theirs() -> Iterator[Params]:
        tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.02)
        params = start()
        state = tx.init(params)
        update = jax.jit(tx.update)
        for step in range(STEPS):
            state.hyperparams["learning_rate"] = jnp.float32(0.02 / (1 + step))
            updates, state = update(jax.grad(loss)(params, step), state, params)
            params = optax.apply_updates(params, updates)
            yield params

    def ours() -> Iterator[Params]:
        tx = gx.adam(0.02)
        params = start()
        state = tx.init(params)
        update = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params))  # tx is an argument
        for step in range(STEPS):
            tx = tx.replace(learning_rate=0.02 / (1 + step))
            updates, state = update(tx, jax.grad(loss)(params, step), state, params)
            params = gx.apply_updates(params, updates)
            yield params

    return theirs(), ours()


@idiom
def average() -> Pair:
    """An average of the weights along the run, to evaluate with."""

    def along(lib: Any) -> Iterator[Params]:
        mean = start()
        for params in train(lib.sgd(0.1)):
            mean = lib.incremental_update(params, mean, 0.2)
            yield mean

    return along(optax), along(gx)


@idiom
def own() -> Pair:
    """A rule of one's own, behind momentum."""

    def signs(updates: Any) -> Any:
        return jax.tree.map(lambda u: jnp.sign(u) * jnp.abs(u) ** 0.5, updates)

    theirs = optax.chain(optax.trace(0.9), optax.stateless(lambda updates, params: signs(updates)), optax.scale(-0.01))

    @gx.transformation
    def root(power: float = 0.5) -> Any:  # prints, pickles, and its power can be differentiated
        return gx.Leafwise(lambda now, g, p: jnp.sign(g) * jnp.abs(g) ** power)

    return train(theirs), train(gx.chain(gx.trace(0.9), root(), gx.scale(-0.01)))


@idiom
def train_state() -> Pair:
    """Flax's TrainState."""

    def along(lib: Any) -> Iterator[Params]:
        state = TrainState.create(apply_fn=loss, params=start(), tx=lib.adamw(0.02))
        for step in range(STEPS):
            state = state.apply_gradients(grads=jax.grad(loss)(state.params, step))
            yield state.params

    return along(optax), along(gx)


@idiom
def optimizer_of_nnx() -> Pair:
    """Flax NNX's Optimizer, at a rate that was computed."""
    rate = jnp.float32(0.01) * 2

    def along(tx: Any) -> Iterator[Params]:
        model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for step in range(STEPS):
            x = jnp.sin(jnp.arange(64.0).reshape(16, 4) * (step + 1))
            grads = nnx.grad(lambda model, x=x: jnp.mean((model(x) - x[:, :2]) ** 2))(model)
            optimizer.update(model, grads)
            yield nnx.to_pure_dict(nnx.state(model, nnx.Param))

    # The optimizer keeps its tx as a static attribute, in which Flax wants no arrays; in optax's closure it sees none.
    return along(optax.adam(rate)), along(gx.adam(float(rate)))


def compare(pair: Pair) -> list[float]:
    """The largest difference of any parameter after each step."""
    return [
        max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
        for x, y in zip(*pair, strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Runs all pairs; 1 if any differs."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    worst = 0.0
    for name, pair in IDIOMS.items():
        found = max(compare(pair()))
        worst = max(worst, found)
        print(f"{name:85} {found:.1e}")
    print(f"{len(IDIOMS)} idioms, {STEPS} steps each: optax and gradxform differ by at most {worst:.1e}")
    return int(not worst < WITHIN)


if __name__ == "__main__":
    raise SystemExit(main())
