"""The cost of a norm: gradxform, flax.linen, flax.nnx and torch in turns, against the memory's limit.

Forward takes x to y, and the running statistics to new ones where there are some. Forward and backward takes x and the
gradient of y to y, the gradients of x, scale and bias, and the new running statistics. Flax computes as it does by
default, torch eagerly on as many threads as there are cores, every peer with float32 scales and a y of the dtype of x.
The limit is the bytes that have to be moved (x and y; backward x and the gradient of y again, and the gradient of x)
over the measured streaming bandwidth. What a backward pass keeps is counted as a jitted forward pass would return it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import gradxform as gx
from benchmarks import harness, peers
from benchmarks.harness import Sample

HELP = "forward and backward passes of four norms, against flax.linen, flax.nnx and torch"
VARIABLES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Nothing can be donated to a pass that keeps its input: memory once got stays, or each array is faulted in anew. The
threads of torch sleep when they have nothing to do, instead of taking the cores from the peer whose turn it is."""

OURS, LINEN, NNX, TORCH = "gradxform", "flax.linen", "flax.nnx", "torch"
FORWARD, BOTH = "forward", "forward + backward"
ARRAYS = {FORWARD: 2, BOTH: 5}
"""How many arrays of the size of x have to be moved."""

DTYPES = ("float32", "bfloat16")
SAME_WORK = {"float32": 1e-4, "bfloat16": 3e-2}
"""How far any array of two peers may be apart, over the largest number in it."""
TORCH_BFLOAT16 = 0.2
"""The same for torch in bfloat16, whose layer norm on CPU sums the gradients of scale and bias in bfloat16."""

Arrays = dict[str, Any]
Call = Callable[[jax.Array, Arrays, Arrays], tuple[jax.Array, Arrays]]
"""A norm as a pure function: x, the params and the running statistics to y and new running statistics."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One norm, as each peer spells it.

    Attributes:
      shape: of x, the features last.
      params: the names of the params.
      running: whether it keeps running statistics.
      ours: gradxform's.
      linen: makes flax.linen's module for a dtype.
      nnx: makes flax.nnx's for a dtype.
      torch: torch's, of torch, x, params and statistics, with the features on axis 1.
    """

    shape: tuple[int, ...]
    params: tuple[str, ...]
    running: bool
    ours: Call
    linen: Callable[[Any], Any]
    nnx: Callable[[Any], Any]
    torch: Callable[[Any, Any, Arrays, Arrays], Any]


def _our_batch(x: jax.Array, params: Arrays, stats: Arrays) -> tuple[jax.Array, Arrays]:
    y, new = gx.norm.batch_norm(x, gx.norm.BatchStats(**stats), **params, use_running_average=False, dtype=x.dtype)
    return y, {"mean": new.mean, "var": new.var}


def _in_dtype_of(x: Any, params: Arrays) -> list[Any]:
    # Not on every device has torch a fused kernel for a float32 scale of a bfloat16 x.
    return [value.to(x.dtype) for value in params.values()]


def _torch_batch(torch: Any, x: Any, params: Arrays, stats: Arrays) -> Any:
    return torch.nn.functional.batch_norm(
        x, stats["mean"], stats["var"], params["scale"], params["bias"], training=True, momentum=0.01, eps=1e-5
    )


CASES: dict[str, Case] = {
    "LayerNorm": Case(
        (8192, 1024),
        ("scale", "bias"),
        False,
        lambda x, params, stats: (gx.norm.layer_norm(x, **params, dtype=x.dtype), stats),
        lambda dtype: linen.LayerNorm(dtype=dtype),
        lambda dtype: nnx.LayerNorm(1024, dtype=dtype, rngs=nnx.Rngs(0)),
        lambda torch, x, params, _: torch.nn.functional.layer_norm(x, x.shape[1:], *_in_dtype_of(x, params), 1e-6),
    ),
    "RMSNorm": Case(
        (8192, 1024),
        ("scale",),
        False,
        lambda x, params, stats: (gx.norm.rms_norm(x, **params, dtype=x.dtype), stats),
        lambda dtype: linen.RMSNorm(dtype=dtype),
        lambda dtype: nnx.RMSNorm(1024, dtype=dtype, rngs=nnx.Rngs(0)),
        lambda torch, x, params, _: torch.nn.functional.rms_norm(x, x.shape[1:], *_in_dtype_of(x, params), 1e-6),
    ),
    "BatchNorm": Case(
        (64, 56, 56, 64),
        ("scale", "bias"),
        True,
        _our_batch,
        lambda dtype: linen.BatchNorm(use_running_average=False, dtype=dtype),
        lambda dtype: nnx.BatchNorm(64, use_running_average=False, dtype=dtype, rngs=nnx.Rngs(0)),
        _torch_batch,
    ),
    "GroupNorm": Case(
        (32, 28, 28, 128),
        ("scale", "bias"),
        False,
        lambda x, params, stats: (gx.norm.group_norm(x, **params, num_groups=32, dtype=x.dtype), stats),
        lambda dtype: linen.GroupNorm(num_groups=32, dtype=dtype),
        lambda dtype: nnx.GroupNorm(128, num_groups=32, dtype=dtype, rngs=nnx.Rngs(0)),
        lambda torch, x, params, _: torch.nn.functional.group_norm(x, 32, *_in_dtype_of(x, params), 1e-6),
    ),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The largest ratio of one of our times to flax.linen's, on CPU."""

    case: str
    dtype: str
    figure: str
    limit: float


TARGETS = (
    Target("LayerNorm", "float32", BOTH, 0.6),
    Target("BatchNorm", "float32", BOTH, 0.85),
    *(Target(case, dtype, FORWARD, 1.0) for case in CASES for dtype in DTYPES),
)


@dataclasses.dataclass(frozen=True)
class Peer:
    """One peer's passes, by figure.

    Attributes:
      steps: what to time.
      outputs: what the pass forward and backward gives, by name, in float64.
      temp: bytes of the compiled passes besides arguments and results, over those of x; none for torch.
      residual: bytes kept for the backward pass over those of x; None for torch.
    """

    steps: dict[str, peers.Step]
    outputs: dict[str, np.ndarray]
    temp: dict[str, float]
    residual: float | None


@dataclasses.dataclass(frozen=True)
class Result:
    """One figure of one case in one dtype, by peer.

    Attributes:
      case: its name.
      dtype: that of x.
      figure: which passes.
      limit_s: the time that moving the bytes takes.
      samples: the times.
      temp: see ``Peer``.
      residual: see ``Peer``; empty for the forward pass alone, which keeps nothing.
      apart: how far a peer's results are from ours, each array over its largest number.
      others: the cores that other processes kept busy meanwhile.
    """

    case: str
    dtype: str
    figure: str
    limit_s: float
    samples: dict[str, Sample]
    temp: dict[str, float]
    residual: dict[str, float]
    apart: dict[str, float]
    others: float

    def record(self) -> dict[str, Any]:
        """This result as JSON."""
        by_peer = {
            peer: {
                **sample.record(),
                "to_linen": sample.ratio(self.samples[LINEN]),
                "times_limit": sample.median / self.limit_s,
                "temp_over_x": self.temp.get(peer),
                "residual_over_x": self.residual.get(peer),
                "apart": self.apart.get(peer),
            }
            for peer, sample in self.samples.items()
        }
        return {
            "case": self.case,
            "dtype": self.dtype,
            "figure": self.figure,
            "limit_s": self.limit_s,
            "peers": by_peer,
            "others_cores": round(self.others, 2),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints and returns the record."""
    torch = peers.import_torch()
    device = None if torch is None else peers.torch_device(torch)
    if device is None:
        print("SKIPPED: torch is not installed" if torch is None else "SKIPPED: torch cannot use this device")
    else:
        torch.set_num_threads(harness.cores())
    repeats = args.repeats or (10 if args.quick else 40)
    bandwidth, _ = harness.undisturbed(harness.streaming_bandwidth, args.patience)
    print(f"streaming bandwidth: {bandwidth / 1e9:.1f} GB/s")
    results: list[Result] = []
    for name in args.cases:
        own = [
            result
            for dtype in args.dtypes
            for result in _measure(name, dtype, bandwidth, torch, device, repeats, args.patience)
        ]
        _print(f"{name} {CASES[name].shape}", own)
        results += own
    return {
        "settings": {
            "repeats": repeats,
            "shapes": {name: CASES[name].shape for name in args.cases},
            "torch_threads": None if device is None else torch.get_num_threads(),
        },
        "bandwidth_bytes_per_s": bandwidth,
        "results": [result.record() for result in results],
        "targets": _judge(results),
    }


def _measure(
    name: str, dtype: str, bandwidth: float, torch: Any, device: str | None, repeats: int, patience: float
) -> list[Result]:
    case, rng = CASES[name], np.random.default_rng(0)
    features = case.shape[-1]
    x, gradient = (jnp.asarray(rng.standard_normal(case.shape, np.float32) + shift, dtype) for shift in (0.5, 0.0))
    params = {key: jnp.asarray(rng.uniform(0.5, 1.5, features), jnp.float32) for key in case.params}
    stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)} if case.running else {}
    running = {
        peer: _jax_peer(call, x, params, stats, gradient)
        for peer, call in ((OURS, case.ours), (LINEN, _linen(case.linen(x.dtype))), (NNX, _nnx(case.nnx(x.dtype))))
    }
    if device is not None:
        running[TORCH] = _torch_peer(torch, device, case, x, params, stats, gradient)
    apart = {peer: _apart(value.outputs, running[OURS].outputs) for peer, value in running.items() if peer != OURS}
    for peer, difference in apart.items():
        if not difference < (TORCH_BFLOAT16 if (peer, dtype) == (TORCH, "bfloat16") else SAME_WORK[dtype]):
            print(
                f"WARNING: {name}, {dtype}: the results of {peer} differ from ours by {difference:.1e}; "
                "the two did not do the same work"
            )
    results = []
    for figure, arrays in ARRAYS.items():
        steps = {peer: value.steps[figure] for peer, value in running.items()}
        samples, others = harness.undisturbed(lambda: harness.in_turns(steps, repeats, 5), patience)
        temp = {peer: value.temp[figure] for peer, value in running.items() if value.temp}
        kept = {peer: value.residual for peer, value in running.items() if value.residual is not None}
        results.append(
            Result(
                name,
                dtype,
                figure,
                arrays * x.nbytes / bandwidth,
                samples,
                temp,
                kept if figure == BOTH else {},
                apart,
                others,
            )
        )
    return results


def _linen(module: Any) -> Call:
    def call(x: jax.Array, params: Arrays, stats: Arrays) -> tuple[jax.Array, Arrays]:
        y, new = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return y, new.get("batch_stats", {})

    return call


def _nnx(module: Any) -> Call:
    graph = nnx.split(module, nnx.Param, nnx.BatchStat)[0]

    def call(x: jax.Array, params: Arrays, stats: Arrays) -> tuple[jax.Array, Arrays]:
        merged = nnx.merge(
            graph,
            nnx.State({key: nnx.Param(value) for key, value in params.items()}),
            nnx.State({key: nnx.BatchStat(value) for key, value in stats.items()}),
        )
        y = merged(x)
        return y, nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

    return call


def _jax_peer(call: Call, x: jax.Array, params: Arrays, stats: Arrays, gradient: jax.Array) -> Peer:
    def both(x: jax.Array, params: Arrays, stats: Arrays, gradient: jax.Array) -> tuple[Any, ...]:
        y, pull, new = jax.vjp(lambda x, params: call(x, params, stats), x, params, has_aux=True)
        return y, new, *pull(gradient)

    passes: dict[str, tuple[Any, tuple[Any, ...]]] = {
        FORWARD: (jax.jit(call), (x, params, stats)),
        BOTH: (jax.jit(both), (x, params, stats, gradient)),
    }
    temp = {figure: _temp_bytes(function, args) / x.nbytes for figure, (function, args) in passes.items()}

    def step(figure: str) -> Callable[[], None]:
        function, args = passes[figure]
        return lambda: jax.block_until_ready(function(*args)) and None

    y, new, dx, d_params = passes[BOTH][0](x, params, stats, gradient)
    outputs = {"y": y, "dx": dx, **new, **{f"d_{key}": value for key, value in d_params.items()}}
    return Peer(
        {figure: step(figure) for figure in passes},
        {key: np.asarray(value, np.float64) for key, value in outputs.items()},
        temp,
        _residual_bytes(call, x, params, stats) / x.nbytes,
    )


def _temp_bytes(function: Any, args: tuple[Any, ...]) -> int:
    analysis = function.lower(*args).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def _residual_bytes(call: Call, x: jax.Array, params: Arrays, stats: Arrays) -> int:
    """The bytes of what the backward pass is given; an array that it is given twice counts once."""

    def kept(x: jax.Array, params: Arrays) -> Any:
        return jax.vjp(lambda x, params: call(x, params, stats), x, params, has_aux=True)[1]

    variables = {id(variable): variable.aval for variable in jax.make_jaxpr(kept)(x, params).jaxpr.outvars}
    return sum(aval.size * aval.dtype.itemsize for aval in variables.values())


def _torch_peer(
    torch: Any, device: str, case: Case, x: jax.Array, params: Arrays, stats: Arrays, gradient: jax.Array
) -> Peer:
    dtype = getattr(torch, str(x.dtype))
    features_last, features_second = (0, *range(2, x.ndim), 1), (0, x.ndim - 1, *range(1, x.ndim - 1))

    def tensor(array: jax.Array) -> Any:
        # The same memory, seen with the features second: torch's channels_last.
        return torch.tensor(np.asarray(array, np.float32), device=device).to(dtype).permute(features_second)

    def small(arrays: Arrays, **keywords: bool) -> Arrays:
        return {key: torch.tensor(np.asarray(value), device=device, **keywords) for key, value in arrays.items()}

    held, held_gradient = tensor(x).requires_grad_(), tensor(gradient)
    weights, running = small(params, requires_grad=True), small(stats)

    def forward() -> Any:
        with torch.no_grad():
            return case.torch(torch, held, weights, running)

    def both() -> tuple[Any, ...]:
        y = case.torch(torch, held, weights, running)
        return y, *torch.autograd.grad(y, (held, *weights.values()), held_gradient)

    def step(function: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            function()
            if device == "cuda":
                torch.cuda.synchronize()

        return timed

    def array(value: Any) -> np.ndarray:
        value = value.detach().permute(features_last) if value.shape == held.shape else value.detach()
        return value.double().cpu().numpy()

    y, dx, *d_params = both()
    outputs = {"y": y, "dx": dx, **running, **{f"d_{key}": d for key, d in zip(weights, d_params, strict=True)}}
    return Peer(
        {FORWARD: step(forward), BOTH: step(both)}, {key: array(value) for key, value in outputs.items()}, {}, None
    )


def _apart(outputs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> float:
    if outputs.keys() != ours.keys():
        raise ValueError(f"peers give different results: {sorted(outputs)} and {sorted(ours)}")
    return max(float(np.max(np.abs(outputs[key] - ours[key])) / np.max(np.abs(ours[key]))) for key in ours)


def _print(title: str, results: list[Result]) -> None:
    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = [
        [
            result.dtype,
            result.figure,
            peer,
            f"{1e3 * sample.median:.2f}",
            f"{sample.spread:.0%}",
            ratio(sample.ratio(result.samples[LINEN])),
            f"{sample.median / result.limit_s:.1f}",
            ratio(result.temp.get(peer)),
            ratio(result.residual.get(peer)),
            "-" if peer == OURS else f"{result.apart[peer]:.0e}",
        ]
        for result in results
        for peer, sample in result.samples.items()
    ]
    harness.table(
        title, ("dtype", "passes", "peer", "ms", "spread", "to linen", "x limit", "temp/|x|", "kept/|x|", "apart"), rows
    )
    noisy = [
        f"{result.dtype} {result.figure} ({result.others:.1f})" for result in results if result.others > harness.QUIET
    ]
    if noisy:
        print(f"WARNING: measured while other processes kept cores busy: {', '.join(noisy)}")


def _judge(results: list[Result]) -> list[dict[str, Any]]:
    """Prints how our times stand to the targets, and returns that."""
    if jax.devices()[0].platform != "cpu":
        print("\nthe targets are for CPU")
        return []
    print("\ntargets on CPU (gradxform over flax.linen)")
    found = {(result.case, result.dtype, result.figure): result for result in results}
    judged = []
    for target in TARGETS:
        result = found.get((target.case, target.dtype, target.figure))
        ratio = None if result is None else result.samples[OURS].ratio(result.samples[LINEN])
        verdict = harness.verdict(ratio, target.limit, 0.0 if result is None else result.others)
        measured = "" if ratio is None else f", measured {ratio:.3f}"
        print(f"  {target.case}, {target.dtype}, {target.figure}: at most {target.limit}{measured}: {verdict}")
        judged.append({**dataclasses.asdict(target), "measured": ratio, "verdict": verdict})
    return judged
