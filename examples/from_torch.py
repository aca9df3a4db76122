"""What one writes with torch beside what one writes here: each pair is run step by step in float64 and compared.

    python examples/from_torch.py

Every class below is one idiom: ``torch`` is torch's way, ``here`` this library's. Both start from the same weights and
are given the same gradients; printed is the largest difference of any number after any step. Where torch is not
installed, what it computed is read from ``tests/golden/from_torch.npz``. ``gradxform/NAMES.md`` has all names.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradxform as gx

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "from_torch.npz"
STEPS = 12
WITHIN = 1e-10
Arrays = dict[str, np.ndarray]
IDIOMS: dict[str, type] = {}


def idiom(pair: type) -> type:
    """Adds a pair to the table by its name."""
    IDIOMS[pair.__name__] = pair
    return pair


def start() -> Arrays:
    """The weights, as JAX lays them out; torch has the kernel the other way round, which no optimizer sees."""
    random = np.random.RandomState(7)
    return {
        "bias": random.standard_normal(5),
        "head": random.standard_normal((5, 2)),
        "kernel": random.standard_normal((4, 5)),
    }


def gradients() -> list[Arrays]:
    """The gradients of all steps, some of them larger than a clip allows."""
    random = np.random.RandomState(8)
    return [
        {name: random.standard_normal(w.shape) * (0.1 + step % 4) for name, w in start().items()}
        for step in range(STEPS)
    ]


def train_torch(make: Any, after: Any = None, *, clip: float | None = None, every: int = 1) -> Iterator[Arrays]:
    """The loop of torch: ``make(params)`` returns the optimizer and its scheduler, or None."""
    import torch

    params = {name: torch.nn.Parameter(torch.as_tensor(w)) for name, w in start().items()}
    optimizer, scheduler = make(params)
    for step, grads in enumerate(gradients(), start=1):
        for name, p in params.items():
            if p.requires_grad:
                new = torch.as_tensor(grads[name]) / every
                p.grad = new if p.grad is None else p.grad + new
        if step % every == 0:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(params.values(), clip)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
        yield {name: p.detach().numpy().copy() for name, p in params.items()} if after is None else after(params)


def train(tx: gx.Transformation) -> Iterator[Arrays]:
    """The loop here: a pure step of the params and the state."""
    params = jax.tree.map(jnp.asarray, start())
    state = tx.init(params)

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return gx.apply_updates(params, updates), state

    for grads in gradients():
        params, state = update(params, state, grads)
        yield params


@idiom
class ClipAdamWCosine:
    """The clip and the schedule are part of the value: there is nothing to step beside it."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """Three objects, in the right order."""
        import torch

        def make(params: Any) -> Any:
            optimizer = torch.optim.AdamW(params.values(), lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
            return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=0.001)

        return train_torch(make, clip=1.0)

    @staticmethod
    def here() -> Iterator[Arrays]:
        """One value; eps is torch's own addition to the norm."""
        return train(
            gx.chain(
                gx.clip_by_global_norm(1.0, eps=1e-6),
                gx.adamw(gx.schedules.cosine(0.01, STEPS, 0.001), b1=0.9, b2=0.999, weight_decay=0.1),
            )
        )


@idiom
class NoDecayOfBiases:
    """Parameter groups are masks."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """Two groups, by hand."""
        import torch

        def make(params: Any) -> Any:
            groups = [
                {"params": [p for p in params.values() if p.ndim >= 2], "weight_decay": 0.1},
                {"params": [p for p in params.values() if p.ndim < 2], "weight_decay": 0.0},
            ]
            return torch.optim.AdamW(groups, lr=0.01), None

        return train_torch(make)

    @staticmethod
    def here() -> Iterator[Arrays]:
        """A selector."""
        return train(gx.adamw(0.01, weight_decay=0.1, mask=gx.ndim_at_least(2)))


@idiom
class RatesByPart:
    """Groups of other rates are transformations by label."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """A group for each rate."""
        import torch

        return train_torch(
            lambda params: (
                torch.optim.SGD(
                    [
                        {"params": [params["head"]], "lr": 0.1},
                        {"params": [params["bias"], params["kernel"]], "lr": 0.01},
                    ],
                    momentum=0.9,
                    nesterov=True,
                ),
                None,
            )
        )

    @staticmethod
    def here() -> Iterator[Arrays]:
        """A partition."""
        return train(
            gx.partition(
                {"fast": gx.sgd(0.1, 0.9, nesterov=True), "slow": gx.sgd(0.01, 0.9, nesterov=True)},
                {"head": "fast", "bias": "slow", "kernel": "slow"},
            )
        )


@idiom
class AdamWithL2:
    """The Adam of torch adds its weight decay to the gradient, before the moments."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """One argument."""
        import torch

        def make(params: Any) -> Any:
            optimizer = torch.optim.Adam(params.values(), lr=0.05, weight_decay=0.1)
            return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)

        return train_torch(make)

    @staticmethod
    def here() -> Iterator[Arrays]:
        """Two bricks say where it goes."""
        return train(gx.chain(gx.add_decayed_weights(0.1), gx.adam(gx.schedules.step(0.05, 0.5, every=4))))


@idiom
class WarmUpThenMilestones:
    """Schedulers in sequence are one schedule."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """A scheduler of schedulers."""
        import torch

        def make(params: Any) -> Any:
            rates = torch.optim.lr_scheduler
            optimizer = torch.optim.SGD(params.values(), lr=0.1)
            return optimizer, rates.SequentialLR(
                optimizer,
                [
                    rates.LinearLR(optimizer, start_factor=0.25, total_iters=4),
                    rates.MultiStepLR(optimizer, [2, 5], 0.1),
                ],
                [4],
            )

        return train_torch(make)

    @staticmethod
    def here() -> Iterator[Arrays]:
        """The milestones count from the end of the warm-up, there and here."""
        return train(gx.sgd(gx.schedules.warmup(4, gx.schedules.piecewise(0.1, {2: 0.1, 5: 0.1}), init_value=0.025)))


@idiom
class Accumulation:
    """Two micro-batches for a step."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """The loss is divided, and every second backward pass followed by a step."""
        import torch

        return train_torch(lambda params: (torch.optim.Adam(params.values(), lr=0.05), None), every=2)

    @staticmethod
    def here() -> Iterator[Arrays]:
        """A wrapper."""
        return train(gx.accumulate(gx.adam(0.05), every=2))


@idiom
class FrozenPart:
    """What does not train has no state, no decay, and no part in a clip."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """A flag on the parameters."""
        import torch

        def make(params: Any) -> Any:
            params["kernel"].requires_grad_(False)
            return torch.optim.AdamW([p for p in params.values() if p.requires_grad], lr=0.05, weight_decay=0.1), None

        return train_torch(make)

    @staticmethod
    def here() -> Iterator[Arrays]:
        """A mask; the params stay as they are."""
        return train(gx.selective_transform(gx.adamw(0.05, weight_decay=0.1), freeze_mask="^kernel"))


@idiom
class AveragedWeights:
    """The average of the weights is a tree beside them."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """A decay of 0.8 is ..."""
        import torch

        mean = {name: torch.as_tensor(w.copy()) for name, w in start().items()}

        def after(params: Any) -> Arrays:
            torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)(list(mean.values()), list(params.values()), 0)
            return {name: m.numpy().copy() for name, m in mean.items()}

        return train_torch(lambda params: (torch.optim.SGD(params.values(), lr=0.1), None), after)

    @staticmethod
    def here() -> Iterator[Arrays]:
        """... a step of 0.2."""
        mean = start()
        for params in train(gx.sgd(0.1)):
            mean = gx.incremental_update(params, mean, 0.2)
            yield mean


@idiom
class BatchNorm:
    """Running statistics go in and come out; ``momentum`` is the share that stays."""

    @staticmethod
    def torch() -> Iterator[Arrays]:
        """A module with buffers, channels second."""
        import torch

        norm = torch.nn.BatchNorm1d(5, momentum=0.1, dtype=torch.float64)
        for grads in gradients():
            y = norm(torch.as_tensor(grads["head"].T))
            yield {
                "mean": norm.running_mean.numpy().copy(),
                "var": norm.running_var.numpy().copy(),
                "y": y.detach().numpy(),
            }

    @staticmethod
    def here() -> Iterator[Arrays]:
        """A function, channels last; torch keeps the unbiased variance."""
        stats = gx.norm.BatchStats(jnp.zeros(5), jnp.ones(5))
        for grads in gradients():
            y, stats = gx.norm.batch_norm(
                jnp.asarray(grads["head"].T),
                stats,
                jnp.ones(5),
                jnp.zeros(5),
                momentum=0.9,
                epsilon=1e-5,
                running_var="unbiased",
                use_running_average=False,
            )
            yield {"mean": stats.mean, "var": stats.var, "y": y}


def stacked(steps: Iterator[Arrays]) -> Arrays:
    """What every step left, along a leading axis."""
    return {name: np.stack(values) for name, values in _transposed(map(dict, steps)).items()}


def _transposed(steps: Iterator[Arrays]) -> dict[str, list[np.ndarray]]:
    made: dict[str, list[np.ndarray]] = {}
    for step in steps:
        for name, value in step.items():
            made.setdefault(name, []).append(np.asarray(value))
    return made


def golden(name: str) -> Arrays:
    """What torch's side of an idiom computed when the file was made."""
    with np.load(GOLDEN) as file:
        return {key.partition("/")[2]: file[key] for key in file if key.partition("/")[0] == name}


def compare(name: str, theirs: Arrays) -> np.ndarray:
    """The largest difference of any number after each step."""
    with jax.enable_x64(True):
        ours = stacked(IDIOMS[name].here())
    assert ours.keys() == theirs.keys()
    return np.max([np.abs(ours[key] - theirs[key]).reshape(STEPS, -1).max(1) for key in ours], axis=0)


def main(arguments: list[str] | None = None) -> int:
    """Runs all pairs; 1 if any differs."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    installed = importlib.util.find_spec("torch") is not None
    if not installed:
        print(f"torch is not installed: compared with what it computed, in {GOLDEN.name}")
    worst = 0.0
    for name, pair in IDIOMS.items():
        found = compare(name, stacked(pair.torch()) if installed else golden(name)).max()
        worst = max(worst, found)
        print(f"{name:22} {(pair.__doc__ or '').splitlines()[0]:90} {found:.1e}")
    print(f"{len(IDIOMS)} idioms, {STEPS} steps each: torch and gradxform differ by at most {worst:.1e}")
    return int(not worst < WITHIN)


if __name__ == "__main__":
    raise SystemExit(main())
