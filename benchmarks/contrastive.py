"""The cost of NT-Xent: gradxform, the dense form in JAX, optax and torch in turns, against the limit of the matmuls.

The loss of N pairs and its gradients with respect to both views, normalization included. Dense is what the formula
says: the similarities of all views, the own one masked, a log-sum-exp by row. Torch does the same eagerly on as many
threads as there are cores. optax's ``ntxent`` takes labels, compares all views feature by feature, and is run a few
times at small sizes. A peer that would take more than half of the free memory is skipped. The limit is the matmuls of a
form that uses the symmetry, 16 N^2 d floating-point operations forward and backward, at the measured rate of a large
matmul. On a GPU only gradxform is measured, in bfloat16, beside that limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradxform as gx
from benchmarks import harness, norms, peers
from benchmarks.harness import Sample

HELP = "NT-Xent and its gradients, against dense JAX, optax and torch"
VARIABLES = norms.VARIABLES
OURS, DENSE, OPTAX, TORCH = "gradxform", "dense jax", "optax", "torch"
SAME_WORK = {"float32": 1e-4, "bfloat16": 3e-2}
"""How far the gradients of two peers may be apart, over the largest number in them."""
OPTAX_PAIRS, OPTAX_SECONDS = 1024, 30.0
"""Up to how many pairs optax is measured, and for about how long; once at least."""
SECONDS = 20.0
"""About how long a case is measured."""
SPEED, MEMORY, NEVER_SLOWER, TO_OPTAX = 1 / 2.5, 0.05, 1.05, 0.01
"""Targets: time to dense and memory to dense at 4,096 pairs, time to dense anywhere, time to optax at 1,024 pairs."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Pairs of views, and how they are compared."""

    pairs: int
    temperature: float = 0.5
    dtype: str = "float32"
    features: int = 128

    def __str__(self) -> str:
        return f"{self.pairs:,} x {self.features}, t={self.temperature:g}, {self.dtype}"

    @property
    def flops(self) -> float:
        """The work of the matmuls, each unordered pair of views once forward and once backward."""
        return 16.0 * self.pairs**2 * self.features


CPU_CASES = (
    *(Case(pairs) for pairs in (256, 512, 1000, 1024, 2048, 4096, 8192, 16384)),
    Case(2048, 0.05),
    Case(2048, 0.01),
    Case(2048, dtype="bfloat16"),
)
QUICK_CASES = (Case(256), Case(1000), Case(4096), Case(1024, 0.01))
GPU_CASES = tuple(
    Case(pairs, dtype="bfloat16", features=features)
    for features in (128, 256, 768)
    for pairs in (4096, 16384, 65536, 262144, 1048576)
)


@dataclasses.dataclass(frozen=True)
class Peer:
    """What to time, what it gives, and the bytes of the compiled function besides arguments and results."""

    step: Callable[[], None]
    gradients: Callable[[], list[np.ndarray]]
    temp_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """One case by peer.

    Attributes:
      case: what was measured.
      limit_s: the time of the matmuls at the measured rate.
      samples: the times; optax's are of fewer rounds.
      to_ours: the ratio of each peer's time to ours, of the same rounds.
      temp: see ``Peer``.
      apart: how far a peer's gradients are from ours, over the largest number in them.
      skipped: why a peer was not measured.
      others: the cores that other processes kept busy meanwhile.
    """

    case: Case
    limit_s: float
    samples: dict[str, Sample]
    to_ours: dict[str, float]
    temp: dict[str, int]
    apart: dict[str, float]
    skipped: dict[str, str]
    others: float

    def record(self) -> dict[str, Any]:
        """This result as JSON."""
        by_peer = {
            peer: {
                **sample.record(),
                "to_ours": self.to_ours.get(peer),
                "times_limit": sample.median / self.limit_s,
                "temp_bytes": self.temp.get(peer),
                "apart": self.apart.get(peer),
            }
            for peer, sample in self.samples.items()
        }
        return {
            **dataclasses.asdict(self.case),
            "limit_s": self.limit_s,
            "peers": by_peer,
            "skipped": self.skipped,
            "others_cores": round(self.others, 2),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--pairs", nargs="+", type=int, default=None, help="measure only cases of these sizes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints and returns the record."""
    on_cpu = jax.devices()[0].platform == "cpu"
    torch = peers.import_torch() if on_cpu else None
    if torch is not None:
        torch.set_num_threads(harness.cores())
    elif on_cpu:
        print("SKIPPED: torch is not installed")
    cases = (QUICK_CASES if args.quick else CPU_CASES) if on_cpu else GPU_CASES[::4] if args.quick else GPU_CASES
    cases = tuple(case for case in cases if args.pairs is None or case.pairs in args.pairs)
    rates = {
        dtype: harness.undisturbed(functools.partial(matmul_rate, dtype), args.patience)[0]
        for dtype in sorted({case.dtype for case in cases})
    }
    for dtype, rate in rates.items():
        print(f"matmul, {dtype}: {rate / 1e9:,.0f} GFLOP/s")
    results = []
    for case in cases:
        results.append(_measure(case, rates[case.dtype], torch, on_cpu, args))
        _print(results[-1])
    return {
        "settings": {
            "repeats": args.repeats or _rounds(args),
            "quick": args.quick,
            "torch_threads": None if torch is None else torch.get_num_threads(),
        },
        "matmul_flops_per_s": rates,
        "results": [result.record() for result in results],
        "targets": _judge(results) if on_cpu else [],
    }


def matmul_rate(dtype: str) -> float:
    """Floating-point operations a second of a large square matmul."""
    size = 4096 if jax.devices()[0].platform == "cpu" else 16384
    x = jnp.ones((size, size), dtype)
    call = jax.jit(lambda x: jnp.dot(x, x, precision="highest", preferred_element_type=jnp.float32))
    step = _timed_call(call, (x,))
    return float(2 * size**3 / harness.in_turns({"matmul": step}, 5, 1)["matmul"].median)


def _timed_call(call: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], None]:
    """A call to time: done when its results are there."""

    def step() -> None:
        jax.block_until_ready(call(*args))

    return step


def dense(z1: jax.Array, z2: jax.Array, temperature: float) -> jax.Array:
    """NT-Xent as its formula reads."""
    u = jnp.concatenate([z1, z2])
    u = u / jnp.linalg.norm(u.astype(jnp.float32), axis=-1, keepdims=True).astype(u.dtype)
    logits = jnp.dot(u, u.T, preferred_element_type=jnp.float32) / temperature
    places = jnp.arange(u.shape[0])
    logits = jnp.where(places[:, None] == places[None], -1e9, logits)
    positives = jnp.sum(u.astype(jnp.float32) * jnp.roll(u, z1.shape[0], 0), axis=-1) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - positives)


def _measure(case: Case, rate: float, torch: Any, on_cpu: bool, args: argparse.Namespace) -> Result:
    z1, z2 = (
        jnp.asarray(z, case.dtype)
        for z in np.random.default_rng(0).standard_normal((2, case.pairs, case.features), np.float32)
    )
    running: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    running[OURS] = _jax_peer(lambda a, b: gx.losses.nt_xent(a, b, case.temperature), z1, z2)
    if on_cpu:
        room = _free_bytes() / 2
        compared = _jax_peer(lambda a, b: dense(a, b, case.temperature), z1, z2)
        matrix = 4 * (2 * case.pairs) ** 2
        if (compared.temp_bytes or 0) > room:
            skipped[DENSE] = f"needs {(compared.temp_bytes or 0) / 2**30:.1f} GiB, over half of what is free"
        else:
            running[DENSE] = compared
        # Similarities, their exponentials and the gradients of both.
        if torch is not None and 4 * matrix > room:
            skipped[TORCH] = f"needs about {4 * matrix / 2**30:.1f} GiB, over half of what is free"
        elif torch is not None:
            running[TORCH] = _torch_peer(torch, case, z1, z2)
    apart = {
        name: _apart(peer.gradients(), running[OURS].gradients()) for name, peer in running.items() if name != OURS
    }
    steps = {name: peer.step for name, peer in running.items()}
    once = sum(sample.median for sample in harness.in_turns(steps, 1, 1).values())
    repeats = args.repeats or max(3, min(_rounds(args), int((4 if args.quick else SECONDS) / once)))
    samples, others = harness.undisturbed(lambda: harness.in_turns(steps, repeats, 1), args.patience)
    to_ours = {name: sample.ratio(samples[OURS]) for name, sample in samples.items()}
    temp = {name: peer.temp_bytes for name, peer in running.items() if peer.temp_bytes is not None}
    if on_cpu and case == Case(case.pairs):
        if case.pairs > (256 if args.quick else OPTAX_PAIRS):
            skipped[OPTAX] = "takes too long"
        else:
            peer = _optax_peer(case, z1, z2)
            both = harness.in_turns({OURS: running[OURS].step, OPTAX: peer.step}, 1, 0)
            rounds = min(repeats, int(OPTAX_SECONDS / both[OPTAX].median))
            if rounds > 1:
                both = harness.in_turns({OURS: running[OURS].step, OPTAX: peer.step}, rounds, 0)
            samples[OPTAX], to_ours[OPTAX] = both[OPTAX], both[OPTAX].ratio(both[OURS])
            temp[OPTAX] = peer.temp_bytes or 0
    for name, difference in apart.items():
        if not difference < SAME_WORK[case.dtype]:
            print(
                f"WARNING: {case}: the gradients of {name} differ from ours by {difference:.1e}; "
                "the two did not do the same work"
            )
    return Result(case, case.flops / rate, samples, to_ours, temp, apart, skipped, others)


def _rounds(args: argparse.Namespace) -> int:
    return 10 if args.quick else 40


def _free_bytes() -> float:
    info = pathlib.Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s*(\d+) kB", info.read_text(), re.MULTILINE) if info.exists() else None
    return int(found.group(1)) * 1024.0 if found else 16.0 * 2**30


def _jax_peer(loss: Callable[..., jax.Array], z1: jax.Array, z2: jax.Array) -> Peer:
    call = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(z1, z2).compile()
    return Peer(
        _timed_call(call, (z1, z2)),
        lambda: [np.asarray(g, np.float32) for g in call(z1, z2)[1]],
        int(call.memory_analysis().temp_size_in_bytes),
    )


def _optax_peer(case: Case, z1: jax.Array, z2: jax.Array) -> Peer:
    labels = jnp.tile(jnp.arange(case.pairs), 2)
    return _jax_peer(
        lambda a, b: jnp.mean(optax.losses.ntxent(jnp.concatenate([a, b]), labels, case.temperature)), z1, z2
    )


def _torch_peer(torch: Any, case: Case, z1: jax.Array, z2: jax.Array) -> Peer:
    views = [torch.tensor(np.asarray(z, np.float32)).to(getattr(torch, case.dtype)).requires_grad_() for z in (z1, z2)]
    target = torch.arange(2 * case.pairs).roll(case.pairs)

    def gradients() -> Any:
        u = torch.nn.functional.normalize(torch.cat(views), dim=1)
        logits = (u @ u.T).float() / case.temperature
        logits.fill_diagonal_(-1e9)
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), views)

    def step() -> None:
        gradients()

    return Peer(step, lambda: [g.float().numpy() for g in gradients()])


def _apart(gradients: list[np.ndarray], ours: list[np.ndarray]) -> float:
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(gradients, ours, strict=True))


def _print(result: Result) -> None:
    rows = [
        [
            name,
            f"{1e3 * sample.median:.2f}",
            f"{sample.spread:.0%}",
            str(len(sample.seconds)),
            f"{result.to_ours[name]:.2f}",
            f"{sample.median / result.limit_s:.2f}",
            f"{result.temp[name] / 2**20:.1f}" if name in result.temp else "-",
            f"{result.apart[name]:.0e}" if name in result.apart else "-",
        ]
        for name, sample in result.samples.items()
    ]
    harness.table(str(result.case), ("peer", "ms", "spread", "n", "to ours", "x limit", "temp MiB", "apart"), rows)
    for name, reason in result.skipped.items():
        print(f"SKIPPED: {name}: {reason}")
    if result.others > harness.QUIET:
        print(f"WARNING: measured while other processes kept {result.others:.1f} cores busy")


def _judge(results: list[Result]) -> list[dict[str, Any]]:
    """Prints how our figures stand to the targets, and returns that."""
    found = {result.case: result for result in results}
    judged = []

    def judge(name: str, case: Case, peer: str, limit: float, *, memory: bool = False) -> None:
        result, ratio, others = found.get(case), None, 0.0
        if result is not None and peer in result.samples:
            ratio = result.temp[OURS] / result.temp[peer] if memory else 1 / result.to_ours[peer]
            others = 0.0 if memory else result.others
        verdict = harness.verdict(ratio, limit, others)
        print(
            f"  {name}, {case}: at most {limit:g} of {peer}{'' if ratio is None else f', measured {ratio:.3f}'}: "
            f"{verdict}"
        )
        judged.append(
            {
                "figure": name,
                **dataclasses.asdict(case),
                "peer": peer,
                "limit": limit,
                "measured": ratio,
                "verdict": verdict,
            }
        )

    print("\ntargets on CPU (gradxform over a peer)")
    judge("time", Case(4096), DENSE, SPEED)
    judge("memory", Case(4096), DENSE, MEMORY, memory=True)
    judge("time", Case(1024), OPTAX, TO_OPTAX)
    for result in results:
        if DENSE in result.samples:
            judge("time", result.case, DENSE, NEVER_SLOWER)
    return judged
