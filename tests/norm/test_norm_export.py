"""Every norm exports for CPU, CUDA and TPU at once; what keeps XLA's CPU fusions apart stays on CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradxform as gx
from gradxform.core.isolate import isolated
from gradxform.norm import linen as linen_norms
from gradxform.norm import nnx as nnx_norms

pytestmark = pytest.mark.as_in_use

PLATFORMS = ("cpu", "cuda", "tpu")
RANDOM = np.random.RandomState(0)
X: Any = np.float32(RANDOM.standard_normal((4, 5, 8)) + 3)
G: Any = np.float32(RANDOM.standard_normal(X.shape))
SCALE: Any = np.float32(RANDOM.uniform(0.5, 1.5, 8))
BIAS: Any = np.float32(RANDOM.standard_normal(8))
MASK: Any = RANDOM.uniform(size=(4, 5, 1)) < 0.7
STATS = gx.norm.BatchStats(BIAS, SCALE)

Function = Callable[..., Any]


def batch_norm(x: Any, scale: Any, bias: Any, **options: Any) -> Any:
    return gx.norm.batch_norm(x, STATS, scale, bias, **{"use_running_average": False} | options)


KERNELS: dict[str, Function] = {
    "batch_norm": batch_norm,
    "batch_norm, masked": lambda x, s, b: batch_norm(x, s, b, mask=MASK),
    "batch_norm, evaluating": lambda x, s, b: batch_norm(x, s, b, use_running_average=True),
    "batch_norm, pooled": lambda x, s, b: gx.norm.batch_norm(
        x,
        gx.norm.init_batch_stats(8, bias_corrected=True, update_every=2),
        s,
        b,
        use_running_average=False,
        running_var="unbiased",
        update_every=2,
    ),
    "batch_renorm": lambda x, s, b: gx.norm.batch_renorm(x, STATS, s, b, use_running_average=False),
    "layer_norm": lambda x, s, b: gx.norm.layer_norm(x, s, b),
    "layer_norm, masked": lambda x, s, b: gx.norm.layer_norm(x, s, b, mask=MASK),
    "rms_norm": lambda x, s, b: gx.norm.rms_norm(x, s) + b,
    "group_norm": lambda x, s, b: gx.norm.group_norm(x, s, b, num_groups=2),
    "instance_norm": lambda x, s, b: gx.norm.instance_norm(x, s, b),
    "weight_standardize": lambda x, s, b: gx.norm.weight_standardize(x, s) + b,
}
MODULES = ["BatchNorm", "BatchRenorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]


def first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def gradient(function: Function) -> Function:
    """The gradients of all arguments."""

    def run(*args: Any) -> Any:
        return jax.grad(lambda args: jnp.sum(first(function(*args)) * G))(args)

    return run


def both(function: Function) -> Function:
    return lambda *args: (function(*args), gradient(function)(*args))


def leaves(function: Function) -> Any:
    """``function`` under ``jit``, with a plain list as its result, which every exported program can have."""
    return jax.jit(lambda *args: jax.tree.leaves(function(*args)))


def exports(function: Function, *args: Any) -> None:
    """One program for every platform gives on this one, from its bytes, what the function gives."""
    function = leaves(function)
    exported = jax.export.export(function, platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    got, wanted = jax.export.deserialize(exported.serialize()).call(*args), function(*args)
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def text(function: Function, platform: str, *args: Any) -> str:
    return jax.export.export(leaves(function), platforms=(platform,))(*args).mlir_module()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_and_its_gradient_export_for_every_platform(name: str) -> None:
    exports(both(KERNELS[name]), X, SCALE, BIAS)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", KERNELS)
def test_walls_are_for_cpu_only(name: str, platform: str) -> None:
    assert "inlineable" not in text(both(KERNELS[name]), platform, X, SCALE, BIAS)


def test_walls_are_written_on_cpu() -> None:
    """Without them in this text, the test above would see nothing."""
    assert "inlineable" in text(gradient(KERNELS["layer_norm"]), "cpu", X, SCALE, BIAS)


def test_what_is_called_behind_a_wall_is_inlined() -> None:
    function = lambda x: isolated(lambda x: jnp.where(x > 0, jnp.clip(x, -1, 1), 0), x)  # noqa: E731
    assert text(function, "cpu", X).count('inlineable = "false"') == 1


def test_a_kernel_exports_for_any_batch() -> None:
    """A size that is only known when the program is called."""

    def run(x: Any, scale: Any, bias: Any) -> Any:
        y, stats = batch_norm(x, scale, bias)
        return jnp.square(y) + gx.norm.group_norm(x, scale, bias, num_groups=2), stats

    function = leaves(lambda *args: (run(*args), jax.grad(lambda *args: run(*args)[0].sum())(*args)))
    size = jax.export.symbolic_shape("batch, 5, 8")
    exported = jax.export.export(function)(jax.ShapeDtypeStruct(size, jnp.float32), SCALE, BIAS)
    for batch in (2, 4):
        for a, b in zip(exported.call(X[:batch], SCALE, BIAS), function(X[:batch], SCALE, BIAS), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def groups(name: str) -> dict[str, Any]:
    return {"num_groups": 2} if name == "GroupNorm" else {}


@pytest.mark.parametrize("name", MODULES)
def test_an_nnx_module_exports_for_every_platform(name: str) -> None:
    graph, state = nnx.split(getattr(nnx_norms, name)(8, **groups(name), rngs=nnx.Rngs(0)))
    values, structure = jax.tree.flatten(state)

    def run(x: Any, *values: Any) -> Any:
        module = nnx.merge(graph, jax.tree.unflatten(structure, values))
        y = module(x, mask=MASK)
        return y, nnx.state(module)

    exports(both(run), X, *values)


@pytest.mark.parametrize("name", MODULES)
def test_a_linen_module_exports_for_every_platform(name: str) -> None:
    training = {"use_running_average": False} if name.startswith("Batch") else {}
    module = getattr(linen_norms, name)(**training, **groups(name))
    values, structure = jax.tree.flatten(module.init(jax.random.key(0), X))

    def run(x: Any, *values: Any) -> Any:
        return module.apply(jax.tree.unflatten(structure, values), x, mask=MASK, mutable=["batch_stats"])

    exports(both(run), X, *values)
