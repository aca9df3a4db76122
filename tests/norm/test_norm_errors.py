"""What does not fit is refused, by an error that begins with the name of the argument."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx
from gradxform.norm import BatchStats

X = jnp.ones((2, 4, 6))
SIX, FIVE = jnp.ones(6), jnp.ones(5)
STATS = gx.norm.init_batch_stats(6)
WEIGHTED = gx.norm.init_batch_stats(6, bias_corrected=True)

batch = functools.partial(gx.norm.batch_norm, use_running_average=False)
evaluated = functools.partial(gx.norm.batch_norm, use_running_average=True)
renorm = functools.partial(gx.norm.batch_renorm, use_running_average=False)
group = functools.partial(gx.norm.group_norm, num_groups=2)

# Kernels by name, each as a function of x and of keywords that all of them have.
KERNELS: dict[str, Callable[..., Any]] = {
    "batch_norm": lambda x, **options: batch(x, STATS, **options),
    "batch_norm-eval": lambda x, **options: evaluated(x, STATS, **options),
    "batch_renorm": lambda x, **options: renorm(x, STATS, **options),
    "layer_norm": gx.norm.layer_norm,
    "rms_norm": gx.norm.rms_norm,
    "group_norm": group,
    "instance_norm": gx.norm.instance_norm,
    "weight_standardize": gx.norm.weight_standardize,
}

COMMON: dict[str, tuple[type[Exception], str, Callable[..., Any]]] = {
    "integer-input": (TypeError, "x", lambda f: f(jnp.ones((2, 4, 6), jnp.int32))),
    "complex-input": (TypeError, "x", lambda f: f(jnp.ones((2, 4, 6), jnp.complex64))),
    "boolean-input": (TypeError, "x", lambda f: f(jnp.ones((2, 4, 6), bool))),
    "list-input": (TypeError, "x", lambda f: f([[1.0, 2.0]])),
    "axis-beyond": (ValueError, "axis", lambda f: f(X, axis=3)),
    "axis-before": (ValueError, "axis", lambda f: f(X, axis=-4)),
    "axis-twice": (ValueError, "axis", lambda f: f(X, axis=(1, -2))),
    "axis-fraction": (TypeError, "axis", lambda f: f(X, axis=1.0)),
    "axis-truth": (TypeError, "axis", lambda f: f(X, axis=True)),
    "axis-none": (TypeError, "axis", lambda f: f(X, axis=None)),
    "scale-count": (ValueError, "scale", lambda f: f(X, scale=FIVE)),
    "scale-one": (ValueError, "scale", lambda f: f(X, scale=jnp.ones(1))),
    "scale-scalar": (ValueError, "scale", lambda f: f(X, scale=jnp.ones(()))),
    "scale-rank": (ValueError, "scale", lambda f: f(X, scale=jnp.ones((1, 6)))),
    "scale-integer": (TypeError, "scale", lambda f: f(X, scale=jnp.ones(6, jnp.int32))),
    "scale-complex": (TypeError, "scale", lambda f: f(X, scale=jnp.ones(6, jnp.complex64))),
    "scale-number": (TypeError, "scale", lambda f: f(X, scale=1.0)),
    "mask-shape": (ValueError, "mask", lambda f: f(X, mask=jnp.ones((4, 5), bool))),
    "mask-rank": (ValueError, "mask", lambda f: f(X, mask=jnp.ones((1, 2, 4, 6), bool))),
    "mask-larger": (ValueError, "mask", lambda f: f(X[:1], mask=jnp.ones((2, 4, 6), bool))),
    "mask-text": (TypeError, "mask", lambda f: f(X, mask="rows")),
    "epsilon-negative": (ValueError, "epsilon", lambda f: f(X, epsilon=-1e-5)),
    "epsilon-nan": (ValueError, "epsilon", lambda f: f(X, epsilon=float("nan"))),
    "epsilon-text": (TypeError, "epsilon", lambda f: f(X, epsilon="small")),
    "dtype-integer": (TypeError, "dtype", lambda f: f(X, dtype=jnp.int32)),
}


def refused(error: type[Exception], name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=rf"^{re.escape(name)}\b"):
        call()


@pytest.mark.parametrize("bad", COMMON)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_refuses(kernel: str, bad: str) -> None:
    error, name, call = COMMON[bad]
    if name == "x" and kernel == "weight_standardize":
        name = "kernel"
    refused(error, name, lambda: call(KERNELS[kernel]))


BIASED = ("batch_norm", "batch_norm-eval", "batch_renorm", "layer_norm", "group_norm", "instance_norm")


@pytest.mark.parametrize("kernel", BIASED)
def test_a_bias_has_a_number_for_each_feature(kernel: str) -> None:
    for error, bias in ((ValueError, FIVE), (ValueError, jnp.ones((6, 1))), (TypeError, jnp.ones(6, jnp.int32))):
        refused(error, "bias", lambda: KERNELS[kernel](X, bias=bias))


@pytest.mark.parametrize(
    "kernel, shape",
    [
        *((name, (0, 4, 6)) for name in ("batch_norm", "batch_renorm")),
        ("batch_norm", (2, 0, 6)),
        ("layer_norm", (2, 4, 0)),
        ("rms_norm", (2, 4, 0)),
        ("group_norm", (2, 0, 6)),
        ("instance_norm", (2, 0, 6)),
        ("weight_standardize", (0, 4, 6)),
    ],
)
def test_statistics_need_a_value(kernel: str, shape: tuple[int, ...]) -> None:
    refused(ValueError, "kernel" if kernel == "weight_standardize" else "x", lambda: KERNELS[kernel](jnp.ones(shape)))


@pytest.mark.parametrize(
    "kernel", [name for name in KERNELS if name not in ("batch_norm", "batch_renorm", "weight_standardize")]
)
def test_a_batch_of_none_is_a_batch_where_none_is_asked(kernel: str) -> None:
    y = KERNELS[kernel](jnp.ones((0, 4, 6)))
    assert (y if kernel != "batch_norm-eval" else y[0]).shape == (0, 4, 6)


OTHERS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "mean-count": (ValueError, "stats.mean", lambda: batch(X, gx.norm.init_batch_stats(5))),
    "mean-axis": (ValueError, "stats.mean", lambda: batch(X, STATS, axis=1)),
    "var-count": (ValueError, "stats.var", lambda: batch(X, STATS._replace(var=FIVE))),
    "var-eval": (ValueError, "stats.var", lambda: evaluated(X, STATS._replace(var=FIVE))),
    "mean-renorm": (ValueError, "stats.mean", lambda: renorm(X, STATS._replace(mean=FIVE))),
    "weight-count": (ValueError, "stats.weight", lambda: batch(X, STATS._replace(weight=FIVE))),
    "mean-integer": (TypeError, "stats.mean", lambda: batch(X, BatchStats(jnp.ones(6, jnp.int32), SIX))),
    "stats-tuple": (TypeError, "stats", lambda: batch(X, (SIX, SIX))),
    "stats-dict": (TypeError, "stats", lambda: batch(X, {"mean": SIX, "var": SIX})),
    "momentum-above": (ValueError, "momentum", lambda: batch(X, STATS, momentum=1.01)),
    "momentum-below": (ValueError, "momentum", lambda: batch(X, STATS, momentum=-0.1)),
    "momentum-nan": (ValueError, "momentum", lambda: batch(X, STATS, momentum=float("nan"))),
    "momentum-array": (ValueError, "momentum", lambda: batch(X, STATS, momentum=jnp.float32(2))),
    "momentum-text": (TypeError, "momentum", lambda: batch(X, STATS, momentum="0.9")),
    "momentum-eval": (ValueError, "momentum", lambda: evaluated(X, STATS, momentum=2.0)),
    "momentum-renorm": (ValueError, "momentum", lambda: renorm(X, STATS, momentum=2.0)),
    "momentum-none": (ValueError, "momentum", lambda: batch(X, STATS, momentum=None)),
    "running_var-unknown": (ValueError, "running_var", lambda: batch(X, STATS, running_var="sample")),
    "running_var-weighted": (ValueError, "running_var", lambda: renorm(X, WEIGHTED, running_var="torch")),
    "update_every-without": (ValueError, "update_every", lambda: batch(X, STATS, update_every=2)),
    "update_every-with": (ValueError, "update_every", lambda: batch(X, gx.norm.init_batch_stats(6, update_every=2))),
    "update_every-zero": (ValueError, "update_every", lambda: batch(X, STATS, update_every=0)),
    "update_every-fraction": (TypeError, "update_every", lambda: batch(X, STATS, update_every=1.5)),
    "use_running_average-none": (
        TypeError,
        "use_running_average",
        lambda: gx.norm.batch_norm(X, STATS, use_running_average=None),
    ),
    "r_max-below": (ValueError, "r_max", lambda: renorm(X, STATS, r_max=0.9)),
    "d_max-below": (ValueError, "d_max", lambda: renorm(X, STATS, d_max=-0.1)),
    "r_max-none": (TypeError, "r_max", lambda: renorm(X, STATS, r_max=None)),
    "d_max-nan": (ValueError, "d_max", lambda: renorm(X, STATS, d_max=float("nan"))),
    "groups-both": (ValueError, "num_groups", lambda: gx.norm.group_norm(X, num_groups=2, group_size=3)),
    "groups-neither": (ValueError, "num_groups", lambda: gx.norm.group_norm(X)),
    "groups-left-over": (ValueError, "num_groups", lambda: gx.norm.group_norm(X, num_groups=4)),
    "groups-too-many": (ValueError, "num_groups", lambda: gx.norm.group_norm(X, num_groups=12)),
    "groups-zero": (ValueError, "num_groups", lambda: gx.norm.group_norm(X, num_groups=0)),
    "groups-fraction": (TypeError, "num_groups", lambda: gx.norm.group_norm(X, num_groups=2.0)),
    "size-left-over": (ValueError, "group_size", lambda: gx.norm.group_norm(X, group_size=4)),
    "size-negative": (ValueError, "group_size", lambda: gx.norm.group_norm(X, group_size=-2)),
    "group-axes": (ValueError, "axis", lambda: group(X, axis=(1, 2))),
    "reduction_axes-beyond": (ValueError, "reduction_axes", lambda: group(X, reduction_axes=(1, 3))),
    "reduction_axes-twice": (ValueError, "reduction_axes", lambda: group(X, reduction_axes=(1, 1))),
    "instance-batch-axis": (ValueError, "axis", lambda: gx.norm.instance_norm(X, axis=0)),
    "feature_axis-beyond": (ValueError, "feature_axis", lambda: gx.norm.layer_norm(X, SIX, feature_axis=5)),
    "feature_axis-scale": (ValueError, "scale", lambda: gx.norm.rms_norm(X, SIX, feature_axis=1)),
    "features-zero": (ValueError, "num_features", lambda: gx.norm.init_batch_stats(0)),
    "features-fraction": (TypeError, "num_features", lambda: gx.norm.init_batch_stats(2.5)),
    "init-update_every": (ValueError, "update_every", lambda: gx.norm.init_batch_stats(2, update_every=0)),
}


@pytest.mark.parametrize("bad", OTHERS)
def test_refuses(bad: str) -> None:
    refused(*OTHERS[bad])


TORCH = {"running_mean": np.zeros(2), "running_var": np.ones(2)}
CONVERTED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "missing": (ValueError, "state", lambda: gx.norm.batch_norm_from_torch({"running_mean": np.zeros(2)})),
    "prefixed": (ValueError, "state", lambda: gx.norm.batch_norm_from_torch({f"bn.{k}": v for k, v in TORCH.items()})),
    "shape": (ValueError, "state", lambda: gx.norm.batch_norm_from_torch(TORCH | {"weight": np.ones(3)})),
    "untracked": (ValueError, "state", lambda: gx.norm.batch_norm_from_torch(TORCH, momentum=None)),
    "momentum": (ValueError, "momentum", lambda: gx.norm.batch_norm_from_torch(TORCH, momentum=1.5)),
    "eps": (ValueError, "eps", lambda: gx.norm.batch_norm_from_torch(TORCH, eps=-1.0)),
    "count": (ValueError, "count", lambda: gx.norm.batch_norm_from_torch(TORCH, count=1)),
    "params": (ValueError, "params", lambda: gx.norm.batch_norm_to_torch({"kernel": SIX}, STATS)),
    "unweighted": (ValueError, "momentum", lambda: gx.norm.batch_norm_to_torch({}, STATS, momentum=None)),
    "running_var": (ValueError, "running_var", lambda: gx.norm.batch_norm_to_torch({}, STATS, running_var="torch")),
    "epsilon": (ValueError, "epsilon", lambda: gx.norm.batch_norm_to_torch({}, STATS, epsilon=-1.0)),
}


@pytest.mark.parametrize("bad", CONVERTED)
def test_converters_refuse(bad: str) -> None:
    refused(*CONVERTED[bad])


def test_errors_are_the_same_under_jit() -> None:
    refused(ValueError, "scale", lambda: jax.jit(gx.norm.layer_norm)(X, FIVE))
    refused(ValueError, "mask", lambda: jax.jit(lambda x: batch(x, STATS, mask=jnp.ones((4, 5))))(X))
