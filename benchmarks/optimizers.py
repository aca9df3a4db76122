"""The cost of an optimizer's step: gradxform, optax and torch's fused kernels in turns, against the memory's limit.

A step takes the gradients to new params and a new state: clip, rule, decay, schedule and the addition to the params.
Every peer is given the same params and gradients; gradients stay the same from step to step.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradxform as gx
from benchmarks import harness, trees
from benchmarks.harness import Build, Sample

HELP = "a step of each optimizer over three trees, against optax and torch"
OURS, OPTAX, TORCH = "gradxform", "optax", "torch"


class Missing(Exception):
    """A peer has nothing under this name."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One optimizer, as each peer spells it.

    Attributes:
      arrays: how many arrays of the size of the params the rule has to move a step: the gradient read once (twice
        with a global norm, which must be known before the first param is written), params and moments read and
        written. Factored moments count for nothing.
      ours: makes gradxform's transformation.
      optax: makes optax's.
      torch: given torch and its params, makes a function that steps; None where torch has no fused kernel for it.
    """

    arrays: int
    ours: Callable[[], Any]
    optax: Callable[[], Any]
    torch: Callable[[Any, list[Any]], Callable[[], None]] | None


def _find(module: Any, path: str) -> Any:
    """``module.path``, or Missing: a name that is not there must be seen, and must not end the run."""
    found = module
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise Missing(f"{module.__name__}.{path} does not exist")
    return found


def _our_cosine() -> Any:
    return _find(gx, "schedules.cosine")(3e-4, 1000, 1e-5)


def _optax_cosine() -> Any:
    return optax.cosine_decay_schedule(3e-4, 1000, alpha=1e-5 / 3e-4)


def _torch_adamw(clip: bool) -> Callable[[Any, list[Any]], Callable[[], None]]:
    def make(torch: Any, params: list[Any]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(params, lr=3e-4, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000, eta_min=1e-5)

        def step() -> None:
            if clip:
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            schedule.step()

        return step

    return make


def _torch_sgd(torch: Any, params: list[Any]) -> Callable[[], None]:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True).step


CASES: dict[str, Case] = {
    "clip_adamw": Case(
        8,
        lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(_our_cosine(), weight_decay=0.01)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(_optax_cosine(), weight_decay=0.01)),
        _torch_adamw(clip=True)),
    "adamw": Case(
        7,
        lambda: gx.adamw(_our_cosine(), weight_decay=0.01),
        lambda: optax.adamw(_optax_cosine(), weight_decay=0.01),
        _torch_adamw(clip=False)),
    "sgd_momentum": Case(
        5,
        lambda: _find(gx, "sgd")(0.1, momentum=0.9),
        lambda: optax.sgd(0.1, momentum=0.9),
        _torch_sgd),
    "lion": Case(
        5,
        lambda: _find(gx, "lion")(1e-4, weight_decay=0.01),
        lambda: optax.lion(1e-4, weight_decay=0.01),
        None),
    "adafactor": Case(
        3,
        lambda: _find(gx, "adafactor")(1e-3),
        lambda: optax.adafactor(1e-3),
        None),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio of one of our figures to a peer's that may not be exceeded on CPU."""

    tree: str
    case: str
    figure: str
    peer: str
    limit: float


TARGETS = (
    Target("transformer", "clip_adamw", "step", OPTAX, 0.5),
    Target("transformer", "clip_adamw", "step", TORCH, 1.1),
    Target("transformer", "adamw", "step", OPTAX, 1.02),
    Target("thousand", "clip_adamw", "trace + lowering", OPTAX, 0.4),
    Target("thousand", "clip_adamw", "compilation", OPTAX, 1.0),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--trees", nargs="+", choices=list(trees.TREES), default=list(trees.TREES))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--builds", type=int, default=None, help="builds a case (default 5; 1 with --quick)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints and returns the record."""
    torch = _torch()
    repeats = args.repeats or (10 if args.quick else 40)
    builds = args.builds or (1 if args.quick else 5)
    bandwidth = harness.streaming_bandwidth(1 << (22 if args.quick else 25))
    print(f"streaming bandwidth {bandwidth / 1e9:.1f} GB/s")
    results = []
    for tree in args.trees:
        shapes = trees.TREES[tree]()
        count = trees.parameter_count(shapes)
        own = [_measure(tree, shapes, name, bandwidth, torch, repeats, builds) for name in args.cases]
        _print_tree(f"{tree}: {trees.leaf_count(shapes)} leaves, {count / 1e6:.1f}M parameters", own)
        results += own
    return {"settings": {"repeats": repeats, "builds": builds, "dtype": "float32"}, "bandwidth_bytes_per_s": bandwidth,
            "results": [_record(result) for result in results], "targets": _judge(results)}


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of one case over one tree, by peer."""

    tree: str
    case: str
    limit: float
    steps: dict[str, Sample]
    builds: dict[str, Build]
    missing: dict[str, str]

    def figure(self, name: str, peer: str) -> Sample | None:
        """One figure of a peer by the name that the targets use, where it was measured."""
        if name == "step":
            return self.steps.get(peer)
        build = self.builds.get(peer)
        return None if build is None else {"trace + lowering": build.front, "compilation": build.compile}[name]


def _measure(tree: str, shapes: trees.Shapes, name: str, bandwidth: float, torch: Any, repeats: int,
             builds: int) -> Result:
    case, missing = CASES[name], {}
    params, grads = trees.arrays(shapes, 0.02, seed=0), trees.arrays(shapes, 0.01, seed=1)
    functions: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    for peer, make, add in ((OURS, case.ours, gx.apply_updates), (OPTAX, case.optax, optax.apply_updates)):
        try:
            tx = make()
        except Missing as error:
            missing[peer] = str(error)
            print(f"SKIPPED: {tree} {name} {peer}: {error}")
            continue
        functions[peer] = (_jax_step(tx, add), (_on_device(params), None, _on_device(grads)))
        functions[peer] = (functions[peer][0], (params, jax.eval_shape(tx.init, params), grads))
    built = harness.build_in_turns(functions, builds)
    steps: dict[str, Callable[[], None]] = {}
    for peer in functions:
        steps[peer] = _jax_stepper({OURS: case.ours, OPTAX: case.optax}[peer](), functions[peer][0], params, grads)
    if torch is None:
        missing[TORCH] = "not installed"
    elif case.torch is None:
        missing[TORCH] = "has no fused kernel for this rule"
    else:
        steps[TORCH] = _torch_stepper(torch, case.torch, params, grads)
    samples = harness.in_turns(steps, repeats)
    steps.clear()
    gc.collect()
    return Result(tree, name, 4 * case.arrays * trees.parameter_count(shapes) / bandwidth, samples, built, missing)
