"""Every normalization kernel against its formula: values, gradients, tangents, statistics and what it keeps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import harness
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import norm_oracles as oracles
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings

import gradxform as gx
from gradxform.norm import BatchStats

pytestmark = pytest.mark.as_in_use

SETTINGS = settings(deadline=None, derandomize=True, database=None, print_blob=False, max_examples=15)

MEAN, VAR = np.array([0.4, -0.2, 1.1]), np.array([0.5, 2.0, 1.3])
MEAN_2D, VAR_2D = np.outer(MEAN, [1, -2, 0.5]), np.outer(VAR, [1, 0.3, 2])


def running(mean: Any = MEAN, var: Any = VAR) -> BatchStats:
    dtype = jnp.result_type(float)
    return BatchStats(jnp.asarray(mean, dtype), jnp.asarray(var, dtype))


def kept(shape: tuple[int, ...], dtype: Any = bool, seed: int = 3) -> np.ndarray:
    """A mask that keeps most positions; the first and the last of them, and not the second."""
    mask = np.random.RandomState(seed).uniform(size=shape) < 0.7
    mask.flat[0] = mask.flat[-1] = True
    mask.flat[1] = False
    return mask.astype(dtype)


def batch(x: Any, scale: Any, bias: Any, mask: Any, **options: Any) -> jax.Array:
    """The output of ``batch_norm``, by the batch unless it is told otherwise."""
    stats = running(*options.pop("stats", (MEAN, VAR)))
    return gx.norm.batch_norm(x, stats, scale, bias, mask=mask, **{"use_running_average": False} | options)[0]


def renorm(x: Any, scale: Any, bias: Any, mask: Any, **options: Any) -> jax.Array:
    return gx.norm.batch_renorm(x, running(), scale, bias, use_running_average=False, mask=mask, **options)[0]


def rms(x: Any, scale: Any, bias: Any, mask: Any, **options: Any) -> jax.Array:
    return gx.norm.rms_norm(x, scale, mask=mask, **options)


def weight(x: Any, scale: Any, bias: Any, mask: Any, **options: Any) -> jax.Array:
    return gx.norm.weight_standardize(x, scale, mask=mask, **options)


def layer(x: Any, scale: Any, bias: Any, mask: Any, **options: Any) -> jax.Array:
    return gx.norm.layer_norm(x, scale, bias, mask=mask, **options)


def group(x: Any, scale: Any, bias: Any, mask: Any, **options: Any) -> jax.Array:
    return gx.norm.group_norm(x, scale, bias, mask=mask, **options)


def instance(x: Any, scale: Any, bias: Any, mask: Any, **options: Any) -> jax.Array:
    return gx.norm.instance_norm(x, scale, bias, mask=mask, **options)


def unbiased(rule: Callable[..., oracles.Result]) -> Callable[..., oracles.Result]:
    """A rule without a bias, given one that it leaves alone."""
    return lambda x, g, scale, bias, **options: rule(x, g, scale, **options)


def evaluated(
    x: Any, g: Any, scale: Any, bias: Any, mask: Any = None, mean: Any = MEAN, var: Any = VAR, **options: Any
) -> oracles.Result:
    return oracles.batch_norm_eval(x, g, mean, var, scale, bias, **options)


def renormed(x: Any, g: Any, scale: Any, bias: Any, **options: Any) -> oracles.Result:
    return oracles.batch_renorm(x, g, MEAN, VAR, scale, bias, **options)


class Case(NamedTuple):
    """A kernel, its formula and what both are called with; the formula's keywords are the kernel's unless given."""

    ours: Callable[..., jax.Array]
    formula: Callable[..., oracles.Result]
    shape: tuple[int, ...]
    features: tuple[int, ...]
    options: Mapping[str, Any] = MappingProxyType({})
    theirs: Mapping[str, Any] | None = None
    mask: np.ndarray | None = None
    scale: bool = True
    bias: bool = True
    follows: bool = True  # whether the output's tangent is the formula's, nothing being held constant

    def wanted(self, x: Any, g: Any, scale: Any, bias: Any, mask: Any = None) -> oracles.Result:
        options = self.options if self.theirs is None else self.theirs
        return self.formula(
            x,
            g,
            scale if self.scale else None,
            bias if self.bias else None,
            mask=self.mask if mask is None else mask,
            **options,
        )

    def call(self, x: Any, scale: Any, bias: Any, mask: Any = None) -> jax.Array:
        return self.ours(
            x,
            scale if self.scale else None,
            bias if self.bias else None,
            self.mask if mask is None else mask,
            **self.options,
        )

    def draws(self, dtype: Any = None) -> tuple[Any, ...]:
        arrays = oracles.draws(self.shape, self.features)
        return arrays if dtype is None else tuple(jnp.asarray(array, dtype) for array in arrays)


EVAL = {"use_running_average": True}
PARTIAL = {"bias": False}
PLAIN = {"scale": False, "bias": False}

CASES: dict[str, Case] = {
    "layer": Case(layer, oracles.layer_norm, (4, 6), (1,)),
    "layer-middle-no-bias": Case(layer, oracles.layer_norm, (3, 5, 2), (1,), {"axis": 1, "epsilon": 0.1}, bias=False),
    "layer-two-axes": Case(layer, oracles.layer_norm, (3, 2, 4), (1, 2), {"axis": (-1, 1)}),
    "layer-fewer-features": Case(
        layer, oracles.layer_norm, (2, 3, 2, 4), (3,), {"axis": (1, 2, 3), "feature_axis": -1}
    ),
    "layer-other-features": Case(layer, oracles.layer_norm, (3, 4, 5), (1,), {"axis": -1, "feature_axis": 1}),
    "layer-plain": Case(layer, oracles.layer_norm, (4, 6), (1,), **PLAIN),
    "layer-mask": Case(layer, oracles.layer_norm, (4, 6), (1,), mask=kept((4, 6))),
    "layer-mask-broadcast": Case(layer, oracles.layer_norm, (2, 3, 6), (2,), mask=kept((6,), np.int32)),
    "layer-mask-plain": Case(
        layer, oracles.layer_norm, (3, 4, 5), (1, 2), {"axis": (1, 2)}, mask=kept((3, 4, 1)), **PLAIN
    ),
    "rms": Case(rms, unbiased(oracles.rms_norm), (4, 6), (1,), **PARTIAL),
    "rms-two-axes": Case(
        rms, unbiased(oracles.rms_norm), (3, 2, 4), (0, 2), {"axis": (0, 2), "epsilon": 0.1}, **PARTIAL
    ),
    "rms-mask": Case(rms, unbiased(oracles.rms_norm), (2, 3, 6), (2,), mask=kept((3, 6), np.float32), **PARTIAL),
    "group": Case(group, oracles.group_norm, (2, 3, 6), (2,), {"num_groups": 3}),
    "group-size-first": Case(
        group, oracles.group_norm, (2, 6, 2, 2), (1,), {"group_size": 2, "axis": 1}, {"num_groups": 3, "axis": 1}
    ),
    "group-no-positions": Case(group, oracles.group_norm, (3, 8), (1,), {"num_groups": 2}, bias=False),
    "group-reduction-axes": Case(
        group,
        oracles.group_norm,
        (2, 3, 2, 4),
        (3,),
        {"num_groups": 2, "reduction_axes": (2, 3)},
        {"num_groups": 2, "also": 2},
    ),
    "group-mask": Case(group, oracles.group_norm, (2, 4, 6), (2,), {"num_groups": 2}, mask=kept((2, 4, 1))),
    "group-mask-channels-plain": Case(
        group, oracles.group_norm, (2, 6, 3), (1,), {"num_groups": 2, "axis": -2}, mask=kept((6, 1)), **PLAIN
    ),
    "instance": Case(instance, oracles.instance_norm, (2, 5, 3), (2,)),
    "instance-first": Case(instance, oracles.instance_norm, (2, 3, 2, 3), (1,), {"axis": 1, "epsilon": 0.1}),
    "instance-mask": Case(instance, oracles.instance_norm, (2, 5, 3), (2,), mask=kept((2, 5, 1)), bias=False),
    "batch": Case(batch, oracles.batch_norm, (7, 3), (1,)),
    "batch-channels-first": Case(batch, oracles.batch_norm, (4, 3, 2, 2), (1,), {"axis": 1, "epsilon": 0.1}),
    "batch-two-axes": Case(
        batch, oracles.batch_norm, (3, 5, 3), (0, 2), {"axis": (-1, 0), "stats": (MEAN_2D, VAR_2D)}, {"axis": (-1, 0)}
    ),
    "batch-no-scale": Case(batch, oracles.batch_norm, (7, 3), (1,), scale=False),
    "batch-plain": Case(batch, oracles.batch_norm, (7, 3), (1,), **PLAIN),
    "batch-mask": Case(batch, oracles.batch_norm, (9, 3), (1,), mask=kept((9, 1))),
    "batch-mask-features": Case(batch, oracles.batch_norm, (9, 3), (1,), mask=kept((9, 3))),
    "batch-mask-positions": Case(
        batch, oracles.batch_norm, (4, 3, 2, 2), (1,), {"axis": -3}, mask=kept((4, 1, 1, 2), np.int8)
    ),
    "batch-mask-rank": Case(batch, oracles.batch_norm, (2, 5, 3), (2,), mask=kept((5, 1), np.float32), **PLAIN),
    "batch-eval": Case(batch, evaluated, (7, 3), (1,), EVAL, {}),
    "batch-eval-first": Case(
        batch, evaluated, (4, 3, 2, 2), (1,), EVAL | {"axis": 1, "epsilon": 0.1}, {"axis": 1, "epsilon": 0.1}
    ),
    "batch-eval-two-axes": Case(
        batch,
        evaluated,
        (2, 3, 3),
        (1, 2),
        EVAL | {"axis": (1, 2), "stats": (MEAN_2D, VAR_2D)},
        {"axis": (1, 2), "mean": MEAN_2D, "var": VAR_2D},
    ),
    "batch-eval-mask": Case(batch, evaluated, (7, 3), (1,), EVAL, {}, mask=kept((7, 1)), bias=False),
    "renorm": Case(renorm, renormed, (7, 3), (1,), follows=False),
    "renorm-clipped": Case(renorm, renormed, (7, 3), (1,), {"r_max": 1.1, "d_max": 0.1}, follows=False),
    "renorm-first-mask": Case(
        renorm, renormed, (4, 3, 2, 2), (1,), {"axis": 1, "r_max": 2.0}, mask=kept((4, 1, 2, 2)), follows=False
    ),
    "renorm-plain": Case(renorm, renormed, (7, 3), (1,), follows=False, **PLAIN),
    "renorm-none": Case(renorm, oracles.batch_norm, (7, 3), (1,), {"r_max": 1.0, "d_max": 0.0}, {}),
    "weight": Case(weight, unbiased(oracles.weight_standardize), (3, 2, 4), (2,), **PARTIAL),
    "weight-first": Case(
        weight, unbiased(oracles.weight_standardize), (4, 2, 3), (0,), {"axis": 0, "epsilon": 0.1}, **PARTIAL
    ),
    "weight-mask-plain": Case(
        weight, unbiased(oracles.weight_standardize), (3, 2, 4), (2,), mask=kept((3, 2, 4)), **PLAIN
    ),
}
# One of each, all with a mask and all without.
BARE = ("layer", "rms", "group", "instance", "batch", "batch-eval", "renorm", "weight")
MASKED = (
    "layer-mask",
    "rms-mask",
    "group-mask",
    "instance-mask",
    "batch-mask",
    "batch-eval-mask",
    "renorm-first-mask",
    "weight-mask-plain",
)


class Found(NamedTuple):
    """What a kernel gives: an ``oracles.Result``, and the output's tangent."""

    y: Any
    dx: Any
    dscale: Any
    dbias: Any
    tangent: Any


def everything(case: Case, x: Any, g: Any, scale: Any, bias: Any, tangents: Any) -> Found:
    """Output, gradients and tangent; without tangents of the arguments the output's is None."""
    y, pull = jax.vjp(case.call, x, scale, bias)
    tangent = None if tangents is None else jax.jvp(case.call, (x, scale, bias), tangents)[1]
    return Found(y, *pull(g.astype(y.dtype)), tangent)


@functools.cache
def compiled(name: str) -> Callable[..., Found]:
    return jax.jit(functools.partial(everything, CASES[name]))


def tangents_of(case: Case) -> tuple[np.ndarray, ...]:
    x, _, scale, bias = oracles.draws(case.shape, case.features, 1, 0.0)
    return x, scale - 1, bias


def assert_close(got: Any, wanted: Any, tolerance: float, what: str = "") -> None:
    """No number is further away than ``tolerance`` times the largest, or times 1 if that is larger."""
    assert np.shape(got) == np.shape(wanted), what
    assert np.isfinite(wanted).all(), what
    np.testing.assert_allclose(
        np.asarray(got, np.float64),
        wanted,
        rtol=0,
        atol=tolerance * max(1.0, np.abs(wanted).max(initial=0)),
        err_msg=what,
    )


# ---- values, gradients and tangents ----


def precisions() -> list[Any]:
    """Every case in float32, and some of each kind in float64, where errors have nothing to hide behind."""
    wide = (*BARE, "layer-mask", "group-mask", "batch-mask", "batch-eval-two-axes", "renorm-first-mask")
    return [
        pytest.param(name, bits, id=f"{name}-f{bits}") for bits, names in ((32, CASES), (64, wide)) for name in names
    ]


@pytest.mark.parametrize("name, bits", precisions(), indirect=["bits"])
def test_kernel_follows_its_formula(name: str, bits: int) -> None:
    case, tolerance = CASES[name], 1e-5 if bits == 32 else 1e-12
    x, g, scale, bias = case.draws()
    tangents = tangents_of(case) if name in BARE + MASKED else None
    dtype = f"float{bits}"
    cast = functools.partial(jax.tree.map, lambda array: jnp.asarray(array, dtype))
    got = compiled(name)(*cast(case.draws()), cast(tangents))
    wanted = case.wanted(x, g, scale, bias)
    assert got.y.dtype == got.dx.dtype == dtype
    assert_close(got.y, wanted.y, tolerance, "y")
    assert_close(got.dx, wanted.dx, tolerance, "dx")
    assert_close(got.dscale, wanted.dscale if case.scale else 0 * scale, tolerance, "dscale")
    assert_close(got.dbias, wanted.dbias if case.bias else 0 * bias, tolerance, "dbias")
    if tangents is None:
        return

    # Forward and reverse mode are transposes of each other.
    forward = np.float64(got.tangent) * g
    backward = [np.float64(d) * t for d, t in zip(got[1:4], tangents, strict=True)]
    assert got.tangent.dtype == dtype
    size = np.abs(forward).sum() + sum(np.abs(part).sum() for part in backward)
    assert abs(forward.sum() - sum(part.sum() for part in backward)) <= tolerance * size

    if case.follows:
        h = 1e-5
        ahead, behind = (
            case.wanted(x + s * tangents[0], g, scale + s * tangents[1], bias + s * tangents[2]).y for s in (h, -h)
        )
        assert_close(got.tangent, (ahead - behind) / (2 * h), 1e-5 if bits == 32 else 1e-8, "tangent")


def test_tests_reach_every_kernel() -> None:
    ours = {"batch": "batch_norm", "renorm": "batch_renorm", "weight": "weight_standardize"}
    tested = {ours.get(name, f"{name}_norm") for name in (name.split("-")[0] for name in CASES)}
    kernels = {name for name in gx.norm.__all__ if name.endswith(("norm", "standardize"))}
    assert tested == kernels, "a case in CASES above, named as the kernel without _norm, and perhaps -what behind it"


@pytest.mark.parametrize(
    "name, dtype",
    [
        *((name, "bfloat16") for name in ("layer", "rms-mask", "group-mask", "batch-mask", "batch-eval", "renorm")),
        *((name, "float16") for name in ("layer", "batch")),
    ],
)
def test_low_precision_is_rounded_once(name: str, dtype: str) -> None:
    case = CASES[name]
    x, g, _, _ = case.draws(dtype)
    _, _, scale, bias = case.draws("float32")
    got = compiled(name)(x, g, scale, bias, None)
    assert got.y.dtype == got.dx.dtype == dtype
    assert got.dscale.dtype == got.dbias.dtype == "float32"
    wanted = case.wanted(*(np.asarray(array, np.float64) for array in (x, g, scale, bias)))
    half = float(jnp.finfo(dtype).eps) / 2
    for what, tolerance in (("y", half), ("dx", half), ("dscale", 1e-5), ("dbias", 1e-5)):
        if what not in ("dscale", "dbias") or getattr(case, what[1:]):
            ours, theirs = np.asarray(getattr(got, what), np.float64), getattr(wanted, what)
            np.testing.assert_allclose(
                ours, theirs, rtol=1.01 * tolerance, atol=1e-5 * np.abs(theirs).max(), err_msg=what
            )


@pytest.mark.parametrize("name", ["rms", "group", "batch-eval", "renorm", "weight"])
def test_dtype_is_that_of_the_output(name: str) -> None:
    case = CASES[name]
    x, _, scale, bias = case.draws("bfloat16")
    wide = case._replace(options=case.options | {"dtype": jnp.float32}).call(x, scale, bias)
    assert wide.dtype == "float32"
    wanted = case.wanted(*(np.asarray(array, np.float64) for array in (x, x, scale, bias))).y
    assert_close(wide, wanted, 1e-5)  # nothing was bfloat16 on the way
    narrow = case._replace(options=case.options | {"dtype": "float16"}).call(*case.draws("float32")[::2], bias)
    assert narrow.dtype == "float16"


# ---- transformations ----


@pytest.mark.parametrize("name", ["layer", "rms-mask", "group-mask", "batch-mask", "batch-eval"])
def test_second_derivatives(name: str) -> None:
    """Forward over reverse, and reverse over reverse, against differences of the formula's gradient."""
    case = CASES[name]
    with harness.precision(64):
        x, g, scale, bias = case.draws("float64")
        v = jnp.asarray(tangents_of(case)[0])
        slope = jax.grad(lambda x: jnp.sum(case.call(x, scale, bias) * g))

        @jax.jit
        def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jax.jvp(slope, (x,), (v,))[1], jax.grad(lambda x: jnp.sum(slope(x) * v))(x)

        forward, reverse = both(x)
    h = 1e-5
    ahead, behind = (case.wanted(np.asarray(x) + s * np.asarray(v), g, scale, bias).dx for s in (h, -h))
    wanted = (ahead - behind) / (2 * h)
    if name != "batch-eval":
        assert np.abs(wanted).max() > 0.01
    assert_close(forward, wanted, 1e-8, "forward over reverse")
    assert_close(reverse, wanted, 1e-8, "reverse over reverse")


@pytest.mark.parametrize("name", ["layer", "group-mask", "batch-mask", "renorm"])
def test_vmap_is_a_loop(name: str) -> None:
    case = CASES[name]
    arrays = [
        [jnp.asarray(a, jnp.float32) for a in oracles.draws(case.shape, case.features, seed, 30.0 * seed)]
        for seed in range(3)
    ]
    tangents = tuple(jnp.asarray(t, jnp.float32) for t in tangents_of(case))
    loop = jax.tree.map(lambda *parts: jnp.stack(parts), *(compiled(name)(*each, tangents) for each in arrays))
    together = jax.jit(jax.vmap(functools.partial(everything, case), in_axes=(0, 0, 0, 0, None)))(
        *(jnp.stack(parts) for parts in zip(*arrays, strict=True)), tangents
    )
    for what, ours, theirs in zip(Found._fields, together, loop, strict=True):
        assert_close(ours, np.asarray(theirs), 1e-5, what)


@pytest.mark.parametrize("name", ["layer", "group-mask", "batch-mask"])
def test_jit_gives_what_eager_gives(name: str) -> None:
    case = CASES[name]
    arrays = (*case.draws("float32"), tuple(jnp.asarray(t, jnp.float32) for t in tangents_of(case)))
    eager = everything(case, *arrays[:4], None)
    for what, ours, theirs in list(zip(Found._fields, eager, compiled(name)(*arrays), strict=True))[:4]:
        assert_close(ours, np.asarray(theirs), 2e-6, what)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one with each program that XLA compiles."""
    seen: list[str] = []
    active = True

    def listen(event: str, seconds: float, **_: Any) -> None:
        if active and event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    active = False


@pytest.mark.parametrize("name", ["layer", "batch-mask", "batch-eval", "renorm"])
def test_eager_calls_compile_once(name: str, compilations: list[str]) -> None:
    case = CASES[name]
    x, other, scale, bias = (jnp.asarray(a, jnp.float32) for a in oracles.draws(case.shape, case.features, 5))
    slope = jax.grad(lambda x: jnp.sum(jnp.square(case.call(x, scale, bias))))
    for _ in range(2):
        case.call(x, scale, bias), slope(x)
    before = len(compilations)
    assert before > 0 or name != "layer"  # the count works
    case.call(other, scale, bias), slope(other)
    assert len(compilations) == before


def test_a_step_with_statistics_compiles_once() -> None:
    x = jnp.ones((4, 3))
    for stats in (gx.norm.init_batch_stats(3), gx.norm.init_batch_stats(3, bias_corrected=True, update_every=2)):
        every = 1 if stats.pending is None else 2
        step = jax.jit(lambda x, stats: gx.norm.batch_norm(x, stats, use_running_average=False, update_every=every))
        for _ in range(3):
            _, new = step(x, stats)
            assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, stats)  # weak types included
            stats = new
        assert step._cache_size() == 1


# ---- memory ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance", "batch", "batch-eval", "renorm", "batch-mask"])
def test_the_gradient_keeps_the_input_and_nothing_else_of_its_size(name: str, dtype: str) -> None:
    ours = {
        "layer": layer,
        "rms": rms,
        "group": functools.partial(group, num_groups=8),
        "instance": instance,
        "renorm": functools.partial(gx.norm.batch_renorm, use_running_average=False),
    }.get(name, functools.partial(gx.norm.batch_norm, use_running_average=name == "batch-eval"))
    # Many values to each statistic.
    positions, channels = (256, 256) if name in ("layer", "rms") else (1024, 64)
    x = jnp.ones((2, positions, channels), dtype)
    scale, bias = jnp.ones(channels), jnp.zeros(channels)
    mask = jnp.ones((2, positions, 1), bool) if name == "batch-mask" else None
    if name.startswith(("batch", "renorm")):

        def call(x: Any, scale: Any, bias: Any) -> Any:
            return ours(x, gx.norm.init_batch_stats(channels), scale, bias, mask=mask)[0]
    else:

        def call(x: Any, scale: Any, bias: Any) -> Any:
            return ours(x, scale, bias, None)

    residuals = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(call, *a)[1], x, scale, bias))
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in residuals)
    assert x.nbytes <= size <= 1.1 * x.nbytes + (0 if mask is None else mask.nbytes)


# ---- running statistics ----


def batches(count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of 12 values of three features, and masks; feature 0 has no value in batch 2 and one in batch 3."""
    found = []
    for t in range(count):
        mask = kept((12, 3), seed=t)
        mask[:, 0] = mask[:, 0] & (t != 2)
        if t == 3:
            mask[:, 0] = np.arange(12) == 4
        found.append((oracles.draws((12, 3), (1,), t, 3.0)[0] * (1 + t), mask))
    return found


RULES: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.9},
    "slow": {"momentum": 0.99},
    "unbiased": {"momentum": 0.7, "unbiased": True},
    "corrected": {"momentum": 0.9, "corrected": True},
    "corrected-unbiased": {"momentum": 0.8, "corrected": True, "unbiased": True},
    "cumulative": {"momentum": None, "corrected": True},
    "cumulative-unbiased": {"momentum": None, "corrected": True, "unbiased": True},
    "pooled": {"momentum": 0.9, "every": 2},
    "pooled-unbiased-corrected": {"momentum": 0.8, "every": 3, "unbiased": True, "corrected": True},
    "pooled-cumulative": {"momentum": None, "every": 2, "corrected": True},
    "forgetful": {"momentum": 0.0},
    "fixed": {"momentum": 1.0},
}


@functools.cache
def training(kernel: str, every: int, running_var: str) -> Callable[..., Any]:
    """A scan over batches that keeps the running statistics of each; the momentum may be traced."""

    def run(stats: BatchStats, momentum: Any, data: Any) -> Any:
        def step(stats: BatchStats, each: Any) -> tuple[BatchStats, Any]:
            _, stats = getattr(gx.norm, kernel)(
                each[0],
                stats,
                use_running_average=False,
                momentum=momentum,
                mask=each[1],
                running_var=running_var,
                update_every=every,
            )
            return stats, (stats.mean, stats.var)

        return jax.lax.scan(step, stats, data)[1]

    return jax.jit(run)


@pytest.mark.parametrize(
    "rule, kernel", [*((rule, "batch_norm") for rule in RULES), ("pooled-unbiased-corrected", "batch_renorm")]
)
def test_running_statistics_follow_their_closed_form(rule: str, kernel: str) -> None:
    options = RULES[rule]
    every = options.get("every", 1)
    stats = gx.norm.init_batch_stats(3, bias_corrected=options.get("corrected", False), update_every=every)
    data = batches(6)
    stacked = [jnp.stack([jnp.asarray(d[i]) for d in data]) for i in range(2)]
    run = training(kernel, every, "unbiased" if options.get("unbiased") else "biased")
    means, variances = run(stats, options["momentum"], stacked)
    seen = [oracles.feature_moments(np.float32(x), -1, mask) for x, mask in data]
    for t in range(1, len(data) + 1):
        mean, var = oracles.running(seen[:t], **options)
        assert_close(means[t - 1], mean, 1e-6, f"mean of batch {t}")
        assert_close(variances[t - 1], var, 2e-6, f"variance of batch {t}")


@pytest.mark.parametrize(
    "parts, mask", [(2, None), (3, kept((24, 1))), (2, kept((24, 3)))], ids=["whole", "rows", "features"]
)
def test_an_update_of_several_calls_is_that_of_their_whole_batch(parts: int, mask: np.ndarray | None) -> None:
    x = np.float32(oracles.draws((24, 3), (1,), 0, 100.0)[0])
    stats = gx.norm.init_batch_stats(3, update_every=parts)
    pieces = np.split(x, parts), [None] * parts if mask is None else np.split(mask, parts)
    for i, (piece, some) in enumerate(zip(*pieces, strict=True)):
        assert harness.same_bytes(stats[:2], gx.norm.init_batch_stats(3)[:2]), i
        _, stats = gx.norm.batch_norm(
            jnp.asarray(piece),
            stats,
            use_running_average=False,
            update_every=parts,
            mask=some,
            momentum=0.5,
            running_var="unbiased",
        )
    _, whole = gx.norm.batch_norm(
        jnp.asarray(x),
        gx.norm.init_batch_stats(3),
        use_running_average=False,
        mask=mask,
        momentum=0.5,
        running_var="unbiased",
    )
    np.testing.assert_allclose(stats.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(stats.var, whole.var, rtol=1e-6)
    assert not any(np.any(leaf) for leaf in stats.pending)  # ready for the next


@pytest.mark.parametrize("momentum", [0.9, jnp.float32(0.9)], ids=["number", "array"])
def test_corrected_statistics_are_those_of_the_first_batch_at_once(momentum: Any) -> None:
    x = np.float32(oracles.draws((12, 3), (1,), 0, 3.0)[0])
    start = gx.norm.init_batch_stats(3, bias_corrected=True)
    _, stats = gx.norm.batch_norm(jnp.asarray(x), start, use_running_average=False, momentum=momentum)
    np.testing.assert_allclose(stats.mean, x.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(stats.var, x.var(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(stats.weight, 0.1, rtol=1e-6)


def test_evaluation_leaves_statistics_alone() -> None:
    x = jnp.ones((4, 3))
    for kernel in (gx.norm.batch_norm, gx.norm.batch_renorm):
        stats = BatchStats(jnp.arange(3.0), jnp.arange(1.0, 4.0), jnp.ones(3))
        y, new = kernel(x, stats, use_running_average=True)
        assert harness.same_bytes(new, stats)
        assert_close(y, (1 - np.arange(3.0)) / np.sqrt(np.arange(1.0, 4.0) + 1e-5) * np.ones((4, 1)), 1e-6)


def test_no_gradient_flows_through_new_statistics() -> None:
    stats = gx.norm.init_batch_stats(3, bias_corrected=True)

    def total(x: Any, mean: Any, var: Any) -> Any:
        _, new = gx.norm.batch_norm(x, stats._replace(mean=mean, var=var), use_running_average=False)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(new))

    for slope in jax.grad(total, (0, 1, 2))(jnp.asarray(batches()[0][0], jnp.float32), stats.mean, stats.var):
        assert not np.any(slope)


def test_statistics_stay_in_float32_whatever_the_input(bits: int) -> None:
    for dtype in ("bfloat16", f"float{bits}"):
        x = jnp.asarray(batches()[0][0], dtype)
        _, stats = gx.norm.batch_norm(x, gx.norm.init_batch_stats(3), use_running_average=False, momentum=0.5)
        assert stats.mean.dtype == stats.var.dtype == "float32"
        np.testing.assert_allclose(stats.mean, 0.5 * np.asarray(x, np.float64).mean(0), rtol=1e-5)


def test_a_single_value_has_no_unbiased_variance() -> None:
    """Which of the values count is not known before it runs, so that a mask of one is no error."""
    stats, x, mask = BatchStats(jnp.arange(3.0), jnp.arange(1.0, 4.0)), jnp.ones((2, 3)), jnp.array([[True], [False]])
    y, new = gx.norm.batch_norm(x, stats, use_running_average=False, mask=mask, running_var="unbiased")
    assert harness.same_bytes(new, stats)
    assert not np.any(y)
    _, new = gx.norm.batch_norm(x, stats, use_running_average=False, mask=mask)
    assert np.all(np.asarray(new.var) < stats.var)


# ---- masks ----


@pytest.mark.parametrize("kernel", ["batch_norm", "batch_renorm"])
@pytest.mark.parametrize("kind", ["plain", "corrected", "unbiased", "cumulative"])
def test_a_batch_without_values_changes_nothing(kind: str, kernel: str) -> None:
    x, g, scale, bias = (jnp.asarray(a, jnp.float32) for a in oracles.draws((5, 3), (1,)))
    weight = None if kind in ("plain", "unbiased") else jnp.asarray([0.0, 0.3, 0.7])
    stats = BatchStats(jnp.float32(MEAN), jnp.float32(VAR), weight)
    options = {
        "momentum": None if kind == "cumulative" else 0.9,
        "running_var": "unbiased" if kind == "unbiased" else "biased",
    }

    def call(x: Any, scale: Any, bias: Any) -> Any:
        return getattr(gx.norm, kernel)(
            x, stats, scale, bias, use_running_average=False, mask=jnp.zeros((5, 1), bool), **options
        )

    y, pull, new = jax.vjp(call, x, scale, bias, has_aux=True)
    assert harness.same_bytes(new, stats)
    wanted = oracles.batch_norm_eval(x, g, MEAN, VAR, scale, bias)
    for what, ours, theirs in zip(Found._fields, (y, *pull(g)), wanted, strict=False):
        assert_close(ours, theirs, 1e-5, what)


def test_a_feature_without_values_changes_nothing_of_its_own() -> None:
    x, g, scale, bias = (jnp.asarray(a, jnp.float32) for a in oracles.draws((5, 3), (1,)))
    stats, mask = running(), np.ones((5, 3)) * [1, 0, 1]
    y, new = gx.norm.batch_norm(x, stats, scale, bias, use_running_average=False, mask=mask)
    still = np.array([False, True, False])
    assert np.array_equal(new.mean == stats.mean, still) and np.array_equal(new.var == stats.var, still)
    wanted = np.where(
        still, oracles.batch_norm_eval(x, g, MEAN, VAR, scale, bias).y, oracles.batch_norm(x, g, scale, bias).y
    )
    assert_close(y, wanted, 1e-5)


@pytest.mark.parametrize("name", ["layer-mask", "rms-mask", "group-mask", "instance-mask", "weight-mask-plain"])
def test_where_nothing_counts_the_input_stays(name: str) -> None:
    case = CASES[name]
    x, g, scale, bias = case.draws("float32")
    y, pull = jax.vjp(lambda x: case.call(x, scale, bias, jnp.zeros_like(case.mask)), x)
    epsilon = {"weight-mask-plain": 1e-5}.get(name, 1e-6)
    wanted = oracles.batch_norm_eval(
        x,
        g,
        np.zeros(scale.shape),
        np.ones(scale.shape),
        scale if case.scale else None,
        bias if case.bias else None,
        axis=case.features,
        epsilon=epsilon,
    )
    assert_close(y, wanted.y, 1e-5)
    assert_close(pull(g)[0], wanted.dx, 1e-5)


FILLS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "lowest": np.finfo(np.float32).min, "large": 1e25}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", MASKED)
def test_what_a_mask_hides_leaks_nowhere(name: str, fill: str) -> None:
    case = CASES[name]
    x, g, scale, bias = case.draws("float32")
    mask = np.broadcast_to(case.mask, case.shape) != 0
    assert 0 < mask.sum() < mask.size
    g = jnp.where(mask, g, 0)
    tangents = jnp.asarray(tangents_of(case)[0], jnp.float32), scale, bias
    clean, dirty = (
        compiled(name)(jnp.where(mask, 0.1 * x, value), g, scale, bias, tangents) for value in (0.0, FILLS[fill])
    )
    for what in ("y", "tangent"):
        np.testing.assert_array_equal(*(np.asarray(getattr(found, what))[mask] for found in (clean, dirty)), what)
    for what in ("dx", "dscale", "dbias"):
        assert_close(getattr(dirty, what), np.asarray(getattr(clean, what)), 1e-6, what)
        assert np.isfinite(getattr(dirty, what)).all()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_mask_hides_does_not_reach_statistics(fill: str, dtype: str) -> None:
    x, mask = batches()[0]
    stats = gx.norm.init_batch_stats(3, bias_corrected=True)
    for kernel in (gx.norm.batch_norm, gx.norm.batch_renorm):
        clean, dirty = (
            kernel(jnp.asarray(np.where(mask, x, value), dtype), stats, use_running_average=False, mask=mask)[1]
            for value in (0.0, FILLS[fill])
        )
        assert harness.same_bytes(clean, dirty)


@pytest.mark.parametrize("name", ["layer", "batch"])
def test_a_mask_of_ones_changes_nothing(name: str) -> None:
    case = CASES[name]
    arrays = (*case.draws("float32"), tuple(jnp.asarray(t, jnp.float32) for t in tangents_of(case)))
    ones = case._replace(mask=np.ones(case.shape[-1:]))
    masked = jax.jit(functools.partial(everything, ones))(*arrays[:4], None)
    for what, ours, theirs in list(zip(Found._fields, masked, compiled(name)(*arrays), strict=True))[:4]:
        assert_close(ours, np.asarray(theirs), 2e-6, what)


# ---- offsets and degenerate inputs ----


WIDE: dict[str, Case] = {
    "layer": Case(layer, oracles.layer_norm, (4, 256), (1,)),
    "layer-mask": Case(layer, oracles.layer_norm, (4, 256), (1,), mask=kept((4, 256))),
    "group": Case(group, oracles.group_norm, (2, 32, 8), (2,), {"num_groups": 2}),
    "instance": Case(instance, oracles.instance_norm, (2, 64, 4), (2,)),
    "batch": Case(batch, oracles.batch_norm, (128, 3), (1,)),
    "batch-mask": Case(batch, oracles.batch_norm, (128, 3), (1,), mask=kept((128, 1))),
    "batch-eval": Case(batch, evaluated, (128, 3), (1,), EVAL, {}),
    "weight": Case(weight, unbiased(oracles.weight_standardize), (8, 16, 3), (2,), **PARTIAL),
}


@functools.cache
def wide(name: str) -> Callable[..., Found]:
    return jax.jit(functools.partial(everything, WIDE[name]))


@pytest.mark.parametrize("name", WIDE)
def test_an_offset_costs_no_digits(name: str) -> None:
    case = WIDE[name]
    random = np.random.RandomState(0)
    noise, (_, g, scale, bias) = random.standard_normal(case.shape), case.draws("float32")
    signs = np.where(random.uniform(size=np.shape(scale)) < 0.5, -1, 1)
    for offset in (0, 100, 1e3, 3e3, 1e5):
        offsets = oracles.spread_out(offset * (signs if len(case.features) else 1), case.features, noise)
        shift = offsets if name in ("instance", "weight") or name.startswith("batch") else offset
        x = jnp.asarray(noise + shift, jnp.float32)
        got = wide(name)(x, g, scale, bias, None)
        wanted = case.wanted(*(np.asarray(array, np.float64) for array in (x, g, scale, bias)))
        if name == "batch-eval":
            np.testing.assert_allclose(got.y, wanted.y, rtol=1e-6, atol=1e-5)
            continue
        assert_close(got.y, wanted.y, 1e-5, f"y at {offset}")
        assert_close(got.dx, wanted.dx, 1e-5, f"dx at {offset}")
        assert_close(got.dscale, wanted.dscale, 1e-5, f"dscale at {offset}")


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "mask"])
def test_running_statistics_of_an_offset(masked: bool) -> None:
    noise = np.random.RandomState(0).standard_normal((128, 3)) * [1, 1e-2, 30]
    mask = kept((128, 1)) if masked else None
    for offset in (100, 1e3, 3e3, 1e5):
        x = np.float32(noise + offset * np.array([1, -1, 0.3]))
        _, stats = gx.norm.batch_norm(
            jnp.asarray(x), gx.norm.init_batch_stats(3, bias_corrected=True), use_running_average=False, mask=mask
        )
        wanted = oracles.feature_moments(x, -1, mask)
        np.testing.assert_allclose(stats.mean, wanted.mean, rtol=1e-6)
        np.testing.assert_allclose(stats.var, wanted.var, rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e5 + 0.1, 1e15])
@pytest.mark.parametrize("name", ["layer", "layer-mask", "group", "instance", "batch", "batch-mask", "weight"])
def test_what_is_constant_gives_the_bias(name: str, constant: float) -> None:
    case = WIDE[name]
    _, g, scale, bias = case.draws("float32")
    x = jnp.full(case.shape, constant, jnp.float32)
    got = wide(name)(x, g, scale, bias, None)
    wanted = (
        np.zeros(case.shape)
        if not case.bias
        else np.broadcast_to(np.expand_dims(bias, oracles.others(case.features, len(case.shape))), case.shape)
    )
    assert_close(got.y, wanted, 1e-5)
    assert all(np.isfinite(part).all() for part in got[:4])
    assert_close(got.dx, case.wanted(x, g, scale, bias).dx, 1e-5, "dx")


def test_nothing_is_divided_by_zero_without_a_mean() -> None:
    y, pull = jax.vjp(gx.norm.rms_norm, jnp.zeros((2, 4)), jnp.ones(4))
    assert not np.any(y)
    dx, dscale = pull(jnp.ones((2, 4)))
    np.testing.assert_allclose(dx, 1e3, rtol=1e-5)
    assert not np.any(dscale)


# ---- what holds of every input ----


@functools.cache
def row_norm(name: str) -> Callable[..., jax.Array]:
    kernels = {
        "layer": lambda x, mask: gx.norm.layer_norm(x, mask=mask),
        "group": lambda x, mask: gx.norm.group_norm(x, num_groups=2, mask=mask),
        "rms": lambda x, mask: gx.norm.rms_norm(x, mask=mask),
        "batch": lambda x, mask: (
            gx.norm.batch_norm(x.T, gx.norm.init_batch_stats(3), use_running_average=False, epsilon=1e-6, mask=mask.T)[
                0
            ].T
        ),
    }
    return jax.jit(kernels[name])


ROWS = st.builds(
    lambda seed, power: np.float32(np.random.RandomState(seed).standard_normal((3, 8)) * 10.0**power),
    st.integers(0, 10**6),
    st.floats(-1, 4),
)
ALL = np.ones((3, 8), bool)


@pytest.mark.parametrize("name", ["layer", "group", "rms", "batch"])
@SETTINGS
@given(ROWS, st.integers(-3, 12))
def test_a_scale_changes_nothing_that_epsilon_does_not(name: str, x: np.ndarray, power: int) -> None:
    factor = np.float32(2.0**power)
    y, scaled = (np.float64(row_norm(name)(jnp.asarray(each), ALL)) for each in (x, factor * x))
    # y is smaller by the root of var / (var + epsilon), which the variance tells.
    parts = np.float64(x).reshape(3, 2, 4) if name == "group" else np.float64(x)[:, None]
    var = np.mean(np.square(parts), -1, keepdims=True) if name == "rms" else parts.var(-1, keepdims=True)
    ratio = np.sqrt((var + 1e-6) / (var + 1e-6 / np.float64(factor) ** 2))
    np.testing.assert_allclose(scaled, (y.reshape(parts.shape) * ratio).reshape(3, 8), atol=1e-5)


@pytest.mark.parametrize("name", ["layer", "group", "rms", "batch"])
@SETTINGS
@given(ROWS, st.integers(0, 10**6))
def test_what_a_mask_hides_may_be_anything(name: str, x: np.ndarray, seed: int) -> None:
    random = np.random.RandomState(seed)
    mask = random.uniform(size=(3, 8)) < 0.6
    other = np.array(x)
    other[~mask] = random.permutation(x[~mask]) * np.float32(random.choice([1, -1, 100]))
    y, changed = (np.asarray(row_norm(name)(jnp.asarray(each), jnp.asarray(mask))) for each in (x, other))
    np.testing.assert_array_equal(y[mask], changed[mask])


# ---- Flax, where it is right ----


def drawn(*shape: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, _, scale, bias = oracles.draws(shape, (len(shape) - 1,), 0, 0.0)
    return jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)


THEIRS: dict[str, tuple[Any, Any, Callable[..., jax.Array]]] = {
    "layer": (linen.LayerNorm(), lambda: nnx.LayerNorm(6, rngs=nnx.Rngs(0)), gx.norm.layer_norm),
    "layer-axes": (
        linen.LayerNorm(reduction_axes=(1, 2), feature_axes=-1, epsilon=0.1),
        None,
        functools.partial(gx.norm.layer_norm, axis=(1, 2), feature_axis=-1, epsilon=0.1),
    ),
    "rms": (
        linen.RMSNorm(),
        lambda: nnx.RMSNorm(6, rngs=nnx.Rngs(0)),
        lambda x, scale, bias: gx.norm.rms_norm(x, scale),
    ),
    "group": (
        linen.GroupNorm(3),
        lambda: nnx.GroupNorm(6, 3, rngs=nnx.Rngs(0)),
        functools.partial(gx.norm.group_norm, num_groups=3),
    ),
    "group-size": (
        linen.GroupNorm(None, group_size=3, reduction_axes=(-1,)),
        None,
        functools.partial(gx.norm.group_norm, group_size=3, reduction_axes=-1),
    ),
    "instance": (linen.InstanceNorm(), lambda: nnx.InstanceNorm(6, rngs=nnx.Rngs(0)), gx.norm.instance_norm),
}


@pytest.mark.parametrize("name", THEIRS)
def test_gives_what_flax_gives(name: str) -> None:
    theirs, module, ours = THEIRS[name]
    x, scale, bias = drawn(2, 5, 6)
    params = {"scale": scale} | ({} if name == "rms" else {"bias": bias})
    y = ours(x, scale, bias)
    assert_close(y, np.asarray(theirs.apply({"params": params}, x)), 1e-5)
    if module is not None:
        built = module()
        built.scale[...] = scale
        if name != "rms":
            built.bias[...] = bias
        assert_close(y, np.asarray(built(x)), 1e-5)


def test_gives_what_flax_gives_over_batches() -> None:
    stats = gx.norm.init_batch_stats(6)
    _, scale, bias = drawn(2, 5, 6)
    module = nnx.BatchNorm(6, momentum=0.8, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = scale, bias
    for t in range(3):
        x = (1 + t) * drawn(2, 5, 6)[0] + t
        y, stats = gx.norm.batch_norm(x, stats, scale, bias, use_running_average=False, momentum=0.8)
        assert_close(y, np.asarray(module(x)), 1e-5)
        assert_close(stats.mean, np.asarray(module.mean[...]), 1e-5)
        assert_close(stats.var, np.asarray(module.var[...]), 1e-5)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats._asdict()}
    y, _ = gx.norm.batch_norm(x, stats, scale, bias, use_running_average=True)
    assert_close(y, np.asarray(linen.BatchNorm(use_running_average=True).apply(variables, x)), 1e-5)
