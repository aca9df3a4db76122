"""The cost of an optimizer's step: gradxform, optax and torch's fused kernels in turns, against the memory's limit.

A step takes the gradients to new params and a new state: clip, rule, decay, schedule and the addition to the params.
Every peer is given the same params and gradients, and the gradients stay the same from step to step. The limit is
the bytes that the rule has to move over the measured streaming bandwidth.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import gradxform as gx
from benchmarks import harness, peers, trees
from benchmarks.harness import Build, Sample

HELP = "a step of each optimizer over three trees, against optax and torch"
OURS, OPTAX, TORCH = "gradxform", "optax", "torch"
SAME_WORK = 1e-4
"""How far the params of two peers may be apart at the end; they move by 0.01 and more."""


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
      torch: makes torch's step; None where torch has no fused kernel for the rule.
    """

    arrays: int
    ours: Callable[[], Any]
    optax: Callable[[], Any]
    torch: peers.TorchMaker | None = None


def _ours(path: str) -> Any:
    """``gx.path``, or Missing: a name that is not there must be seen, and must not end the run."""
    found: Any = gx
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise Missing(f"gradxform.{path} does not exist")
    return found


def _our_adamw() -> Any:
    return _ours("adamw")(_ours("schedules.cosine")(3e-4, 1000, 1e-5), weight_decay=0.01)


def _optax_adamw() -> Any:
    return optax.adamw(optax.cosine_decay_schedule(3e-4, 1000, alpha=1e-5 / 3e-4), weight_decay=0.01)


def _torch_adamw(torch: Any, params: list[Any]) -> peers.Step:
    optimizer = torch.optim.AdamW(params, lr=3e-4, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000, eta_min=1e-5)

    def step() -> None:
        optimizer.step()
        schedule.step()

    return step


def _torch_clip_adamw(torch: Any, params: list[Any]) -> peers.Step:
    adamw = _torch_adamw(torch, params)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adamw()

    return step


def _torch_sgd(torch: Any, params: list[Any]) -> peers.Step:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True).step


CASES: dict[str, Case] = {
    "clip_adamw": Case(
        8,
        lambda: gx.chain(gx.clip_by_global_norm(1.0), _our_adamw()),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), _optax_adamw()),
        _torch_clip_adamw,
    ),
    "adamw": Case(7, _our_adamw, _optax_adamw, _torch_adamw),
    "sgd_momentum": Case(5, lambda: _ours("sgd")(0.1, momentum=0.9), lambda: optax.sgd(0.1, momentum=0.9), _torch_sgd),
    "lion": Case(5, lambda: _ours("lion")(1e-4, weight_decay=0.01), lambda: optax.lion(1e-4, weight_decay=0.01)),
    "adafactor": Case(3, lambda: _ours("adafactor")(1e-3), lambda: optax.adafactor(1e-3)),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The largest ratio of one of our figures to a peer's, on CPU."""

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


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of one case over one tree, by peer.

    Attributes:
      tree: its name.
      case: its name.
      limit_s: the time that moving the bytes takes.
      steps: the times of a step.
      builds: what it took to build it.
      missing: why a peer has no figures.
      apart: how far a peer's params are from ours at the end.
      others: the cores that other processes kept busy meanwhile.
    """

    tree: str
    case: str
    limit_s: float
    steps: dict[str, Sample]
    builds: dict[str, Build]
    missing: dict[str, str]
    apart: dict[str, float]
    others: float

    def figure(self, name: str, peer: str) -> Sample | None:
        """A figure by the name that the targets use, where it was measured."""
        if name == "step":
            return self.steps.get(peer)
        build = self.builds.get(peer)
        return None if build is None else {"trace + lowering": build.front, "compilation": build.compile}[name]

    def ratio(self, name: str, peer: str) -> float | None:
        """Our figure over a peer's, where both were measured."""
        ours, theirs = self.figure(name, OURS), self.figure(name, peer)
        return None if ours is None or theirs is None else ours.ratio(theirs)

    def record(self) -> dict[str, Any]:
        """This result as JSON."""
        by_peer = {
            peer: {
                "step": sample.record(),
                "times_limit": sample.median / self.limit_s,
                **({"build": self.builds[peer].record()} if peer in self.builds else {}),
            }
            for peer, sample in self.steps.items()
        }
        ratios = {
            f"{name} to {peer}": self.ratio(name, peer)
            for name in ("step", "trace + lowering", "compilation")
            for peer in (OPTAX, TORCH)
        }
        return {
            "tree": self.tree,
            "case": self.case,
            "limit_s": self.limit_s,
            "peers": by_peer,
            "ratios": {name: ratio for name, ratio in ratios.items() if ratio is not None},
            "missing": self.missing,
            "params_apart": self.apart,
            "others_cores": round(self.others, 2),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--trees", nargs="+", choices=list(trees.TREES), default=list(trees.TREES))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--builds", type=int, default=None, help="builds of each case (default 3; 1 with --quick)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints and returns the record."""
    torch = peers.import_torch()
    if torch is None:
        print("SKIPPED: torch is not installed; its rows are left out")
    repeats = args.repeats or (10 if args.quick else 40)
    builds = args.builds or (1 if args.quick else 3)
    bandwidth, _ = harness.undisturbed(harness.streaming_bandwidth, args.patience)
    print(f"streaming bandwidth: {bandwidth / 1e9:.1f} GB/s")
    results: list[Result] = []
    for tree in args.trees:
        shapes = trees.TREES[tree]()
        own = [
            _measure(tree, shapes, name, bandwidth, torch, Effort(repeats, builds, args.patience))
            for name in args.cases
        ]
        _print(f"{tree}: {trees.leaf_count(shapes)} leaves, {trees.parameter_count(shapes) / 1e6:.1f}M parameters", own)
        results += own
    return {
        "settings": {"repeats": repeats, "builds": builds, "dtype": "float32"},
        "bandwidth_bytes_per_s": bandwidth,
        "results": [result.record() for result in results],
        "targets": _judge(results),
    }


class Effort(NamedTuple):
    """How often to step and to build, and how long to wait for a quiet machine."""

    repeats: int
    builds: int
    patience: float


def _measure(tree: str, shapes: trees.Shapes, name: str, bandwidth: float, torch: Any, effort: Effort) -> Result:
    case = CASES[name]
    params, grads = trees.arrays(shapes, 0.02, seed=0), trees.arrays(shapes, 0.01, seed=1)
    missing: dict[str, str] = {}
    updates: dict[str, tuple[Any, Callable[..., Any]]] = {}
    for peer, make, add in ((OURS, case.ours, gx.apply_updates), (OPTAX, case.optax, optax.apply_updates)):
        try:
            tx = make()
        except Missing as error:
            missing[peer] = str(error)
        else:
            updates[peer] = tx, peers.jax_update(tx, add)
    functions = {
        peer: (update, (params, jax.eval_shape(tx.init, params), grads)) for peer, (tx, update) in updates.items()
    }
    built, busy_building = harness.undisturbed(
        lambda: harness.build_in_turns(functions, effort.builds), effort.patience
    )
    running = {peer: peers.jax_peer(tx, update, params, grads) for peer, (tx, update) in updates.items()}
    if torch is None:
        missing[TORCH] = "not installed"
    elif case.torch is None:
        missing[TORCH] = "no fused kernel for this rule"
    else:
        try:
            running[TORCH] = peers.torch_peer(torch, case.torch, params, grads)
        except RuntimeError as error:
            missing[TORCH] = str(error)
    for peer, reason in missing.items():
        print(f"SKIPPED: {tree}, {name}, {peer}: {reason}")
    limit = 4 * case.arrays * trees.parameter_count(shapes) / bandwidth
    steps = {peer: value.step for peer, value in running.items()}
    samples, busy_stepping = harness.undisturbed(lambda: harness.in_turns(steps, effort.repeats), effort.patience)
    apart = {
        peer: value.difference(running[OURS]) for peer, value in running.items() if peer != OURS and OURS in running
    }
    for peer, difference in apart.items():
        if not difference < SAME_WORK:
            print(
                f"WARNING: {tree}, {name}: the params of {peer} differ from ours by {difference:.1e}; "
                "the two did not do the same work"
            )
    return Result(tree, name, limit, samples, built, missing, apart, max(busy_building, busy_stepping))


def _print(title: str, results: list[Result]) -> None:
    header = (
        "case",
        "peer",
        "step ms",
        "spread",
        "to optax",
        "to torch",
        "x limit",
        "trace s",
        "lower s",
        "compile s",
        "temp MB",
        "fusions",
    )
    rows = []
    for result in results:
        for peer, sample in result.steps.items():
            ratios = [
                f"{sample.ratio(result.steps[other]):.2f}" if other in result.steps and other != peer else "-"
                for other in (OPTAX, TORCH)
            ]
            build = result.builds.get(peer)
            built = (
                ["-"] * 5
                if build is None
                else [
                    f"{build.trace.median:.3f}",
                    f"{build.lower.median:.3f}",
                    f"{build.compile.median:.2f}",
                    f"{build.temp_bytes / 1e6:.1f}",
                    str(build.fusions),
                ]
            )
            rows.append(
                [
                    result.case,
                    peer,
                    f"{1e3 * sample.median:.2f}",
                    f"{sample.spread:.0%}",
                    *ratios,
                    f"{sample.median / result.limit_s:.2f}",
                    *built,
                ]
            )
    harness.table(title, header, rows)
    noisy = [f"{result.case} ({result.others:.1f})" for result in results if result.others > harness.QUIET]
    if noisy:
        print(f"WARNING: measured while other processes kept cores busy: {', '.join(noisy)}")


def _judge(results: list[Result]) -> list[dict[str, Any]]:
    """Prints how our figures stand to the targets, and returns that."""
    if jax.devices()[0].platform != "cpu":
        print("\nthe targets are for CPU")
        return []
    print("\ntargets on CPU (gradxform over peer)")
    found = {(result.tree, result.case): result for result in results}
    judged = []
    for target in TARGETS:
        result = found.get((target.tree, target.case))
        ratio = None if result is None else result.ratio(target.figure, target.peer)
        verdict = harness.verdict(ratio, target.limit, 0.0 if result is None else result.others)
        measured = "" if ratio is None else f", measured {ratio:.3f}"
        print(
            f"  {target.tree}, {target.case}, {target.figure}, to {target.peer}: "
            f"at most {target.limit}{measured}: {verdict}"
        )
        judged.append({**dataclasses.asdict(target), "measured": ratio, "verdict": verdict})
    return judged
