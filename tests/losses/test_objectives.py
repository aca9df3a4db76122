"""The losses without a softmax beside float64 oracles, the momentum encoder and its queue."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import loss_oracles as oracle
import numpy as np
import pytest

import gradxform as gx

# What is compiled here runs a few times on few numbers.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def views(count: int, shape: tuple[int, int] = (13, 4), dtype: str = "float32", offset: float = 0.0) -> list[Any]:
    """Arrays that have something in common."""
    random = np.random.RandomState(0)
    common = random.standard_normal(shape)
    lengths = random.uniform(0.3, 3, (count, shape[0], 1))
    return [
        jnp.asarray((common + 0.5 * random.standard_normal(shape)) * lengths[i] + offset, dtype) for i in range(count)
    ]


def exact(arrays: list[Any]) -> list[Any]:
    return [np.asarray(array, np.float64) for array in arrays]


def close(got: Any, want: Any, tolerance: float = 1e-5, what: str = "") -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, what
    error, size = float(np.max(np.abs(got - want))), float(np.max(np.abs(want)))
    assert error <= tolerance * size, f"{what}: off by {error / max(size, 1e-300):.1e} of {size:.1e}"


class Case(NamedTuple):
    """A loss of some arrays and the numbers that it is differentiated by."""

    loss: Callable[..., jax.Array]
    oracle: Callable[..., Any]
    views: int = 2
    numbers: tuple[float, ...] = ()
    fixed: tuple[int, ...] = ()


CASES: dict[str, Case] = {
    "siglip": Case(gx.losses.siglip, oracle.siglip, numbers=(10.0, -2.0)),
    "siglip-blocks": Case(functools.partial(gx.losses.siglip, block_size=5), oracle.siglip, numbers=(10.0, -2.0)),
    "siglip-rows": Case(functools.partial(gx.losses.siglip, block_size=1), oracle.siglip, numbers=(1.0, 0.5)),
    "siglip-start": Case(functools.partial(gx.losses.siglip, block_size=13), oracle.siglip, numbers=(10.0, -10.0)),
    "siglip-ids": Case(
        lambda a, b, *numbers: gx.losses.siglip(a, b, *numbers, ids=np.arange(len(a)) % 5, block_size=5),
        lambda a, b, *numbers: oracle.siglip(a, b, *numbers, ids=np.arange(len(a)) % 5),
        numbers=(10.0, -2.0),
    ),
    "barlow_twins": Case(gx.losses.barlow_twins, oracle.barlow_twins),
    "barlow_twins-weights": Case(
        lambda a, b, weight, epsilon: gx.losses.barlow_twins(a, b, off_diagonal=weight, epsilon=epsilon),
        oracle.barlow_twins,
        numbers=(0.7, 0.1),
    ),
    "vicreg": Case(gx.losses.vicreg, oracle.vicreg),
    "vicreg-weights": Case(
        lambda a, b, i, v, c, std, epsilon: gx.losses.vicreg(
            a, b, invariance=i, variance=v, covariance=c, target_std=std, epsilon=epsilon
        ),
        oracle.vicreg,
        numbers=(2.0, 30.0, 3.0, 2.5, 0.1),
    ),
    "byol": Case(gx.losses.byol, lambda p, z: np.mean(oracle.byol(p, z)), fixed=(1,)),
    "simsiam": Case(gx.losses.simsiam, lambda *z: np.mean(oracle.simsiam(*z)), 4, fixed=(2, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    """Of every input and every number; what is fixed has no gradient, whatever it does to the value."""
    case = CASES[name]
    arrays = views(case.views)
    args = [*arrays, *case.numbers]
    value, gradients = compiled(jax.value_and_grad(case.loss, tuple(range(len(args)))))(*args)
    assert value.dtype == jnp.float32 and value.shape == ()
    inputs = [*exact(arrays), *map(np.asarray, case.numbers)]
    close(value, case.oracle(*inputs))
    for i, (got, want) in enumerate(zip(gradients, oracle.differences(case.oracle, inputs), strict=True)):
        assert np.max(np.abs(want)) > 1e-4
        close(got, np.zeros_like(want) if i in case.fixed else want, 2e-5, f"input {i}")


@pytest.mark.parametrize("name", ["siglip-blocks", "barlow_twins", "vicreg", "byol", "simsiam"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(name: str, dtype: str) -> None:
    """The sums are those of float32; the gradients come in the dtype of the inputs."""
    case = CASES[name]
    arrays = views(case.views, dtype=dtype)
    value, gradient = compiled(jax.value_and_grad(case.loss))(*arrays, *case.numbers)
    inputs = [*exact(arrays), *map(np.asarray, case.numbers)]
    assert value.dtype == jnp.float32 and gradient.dtype == arrays[0].dtype
    close(value, case.oracle(*inputs))
    close(gradient, oracle.differences(case.oracle, inputs)[0], 5e-3)


def test_siglip_of_one_pair_and_of_one_feature() -> None:
    for shape in ((1, 3), (7, 1)):
        arrays = views(2, shape)
        close(compiled(gx.losses.siglip)(*arrays, 3.0, -1.0), oracle.siglip(arrays[0], arrays[1], 3.0, -1.0))


def test_a_traced_bias_and_scale_are_one_program() -> None:
    arrays, traced = views(2), []

    @jax.jit
    def run(a: Any, b: Any, scale: Any, bias: Any) -> Any:
        traced.append(scale)
        return gx.losses.siglip(a, b, scale, bias)

    for scale, bias in ((10.0, -10.0), (1.0, 0.0), (100.0, -3.0)):
        close(run(*arrays, scale, bias), oracle.siglip(arrays[0], arrays[1], scale, bias))
    assert len(traced) == 1


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_a_mean_far_from_zero(name: str) -> None:
    """Only what is left beside the mean counts, and float32 has its digits."""
    arrays = views(2, offset=1e3)
    close(compiled(CASES[name].loss)(*arrays), CASES[name].oracle(*exact(arrays)), 1e-4)


def test_a_feature_that_is_constant() -> None:
    """It has no correlation, and a standard deviation that is pushed up."""
    a, b = (z.at[:, 1].set(2.0) for z in views(2))
    for name in ("barlow_twins", "vicreg"):
        value, gradients = compiled(jax.value_and_grad(CASES[name].loss, (0, 1)))(a, b)
        close(value, CASES[name].oracle(*exact([a, b])))
        wanted = oracle.differences(CASES[name].oracle, exact([a, b]))
        for got, want in zip(gradients, wanted, strict=True):
            assert np.all(np.isfinite(got))
            close(np.delete(got, 1, 1), np.delete(want, 1, 1), 1e-4)


def test_off_diagonals_vanish_in_one_feature() -> None:
    a, b = views(2, (9, 1))
    close(compiled(gx.losses.barlow_twins)(a, b), oracle.barlow_twins(a, b))
    close(compiled(gx.losses.vicreg)(a, b), oracle.vicreg(a, b))


def test_positions_are_losses_of_their_own_over_the_batch() -> None:
    a, b = (np.random.RandomState(i).standard_normal((9, 3, 4)) * (1 + np.arange(3))[:, None] for i in range(2))
    wanted = np.mean([oracle.vicreg(a[:, i], b[:, i], covariance=3.0) for i in range(3)])
    value, gradients = compiled(jax.value_and_grad(functools.partial(gx.losses.vicreg, covariance=3.0), (0, 1)))(
        jnp.float32(a), jnp.float32(b)
    )
    close(value, wanted)
    for got, want in zip(
        gradients,
        oracle.differences(
            lambda a, b: float(np.mean([oracle.vicreg(a[:, i], b[:, i], covariance=3.0) for i in range(3)])), [a, b]
        ),
        strict=True,
    ):
        close(got, want, 1e-4)


@pytest.mark.parametrize(
    ("name", "loss", "by_example"),
    [("byol", gx.losses.byol, oracle.byol), ("simsiam", gx.losses.simsiam, oracle.simsiam)],
)
def test_reductions(name: str, loss: Callable[..., Any], by_example: Callable[..., Any]) -> None:
    arrays = views(CASES[name].views)
    want = by_example(*exact(arrays))
    kinds = ("none", "sum", "mean")
    each, total, mean = compiled(lambda *arrays: [loss(*arrays, reduction=kind) for kind in kinds])(*arrays)
    close(each, want)
    close(total, want.sum())
    close(mean, want.mean())


def test_byol_and_simsiam_take_rows_of_zeros() -> None:
    p, z = views(2)
    p, z = p.at[0].set(0), z.at[1].set(0)
    each = compiled(functools.partial(gx.losses.byol, reduction="none"))(p, z)
    np.testing.assert_allclose(each[:2], 2.0)
    value, gradient = compiled(jax.value_and_grad(gx.losses.simsiam))(p, p, z, z)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:2], 0)


def test_byol_and_simsiam_are_one_but_for_a_factor() -> None:
    p, z = views(2)
    a, b = compiled(lambda p, z: (gx.losses.byol(p, z), gx.losses.simsiam(p, p, z, z)))(p, z)
    close(a, 2 + 2 * b)


@pytest.mark.parametrize("name", ["siglip", "barlow_twins", "vicreg", "byol"])
def test_a_named_axis_of_vmap(name: str) -> None:
    case = CASES[name]
    arrays = views(2, (12, 4))
    split = [z.reshape(3, 4, 4) for z in arrays]
    got = compiled(jax.vmap(lambda a, b: case.loss(a, b, *case.numbers, axis_name="i"), axis_name="i"))(*split)
    close(got, np.full(3, case.oracle(*exact(arrays), *case.numbers)))


@pytest.mark.parametrize("name", ["siglip-blocks", "barlow_twins", "vicreg"])
def test_vmap_is_a_loop(name: str) -> None:
    case = CASES[name]
    members = [views(2, offset=offset) for offset in (0.0, 0.5, 3.0)]
    got = compiled(jax.vmap(lambda a, b: case.loss(a, b, *case.numbers)))(*map(jnp.stack, zip(*members, strict=True)))
    close(got, [case.oracle(*exact(arrays), *case.numbers) for arrays in members])


def largest(jaxpr: Any) -> int:
    """The most elements that an array of a program has, whatever is nested in it."""

    def jaxprs(value: Any) -> list[Any]:
        if isinstance(value, (tuple, list)):
            return [jaxpr for item in value for jaxpr in jaxprs(item)]
        return [value] if hasattr(value, "eqns") else []

    sizes = [int(np.prod(v.aval.shape)) for eqn in jaxpr.eqns for v in eqn.outvars]
    inner = [largest(sub) for eqn in jaxpr.eqns for value in eqn.params.values() for sub in jaxprs(value)]
    return max(sizes + inner, default=0)


def test_siglip_does_not_make_the_matrix() -> None:
    """Neither forward nor for the backward pass."""
    n = 4096
    gradient = jax.value_and_grad(gx.losses.siglip, (0, 1))
    shapes = [jax.ShapeDtypeStruct((n, 4), jnp.float32)] * 2
    assert n <= largest(jax.make_jaxpr(gradient)(*shapes, 10.0, -10.0).jaxpr) <= n * n / 4
    whole = jax.value_and_grad(functools.partial(gx.losses.siglip, block_size=n), (0, 1))
    assert largest(jax.make_jaxpr(whole)(*shapes, 10.0, -10.0).jaxpr) >= n * n
    analyses: list[Any] = [
        compiled(f).lower(*shapes, 10.0, -10.0).compile().memory_analysis() for f in (gradient, whole)
    ]
    tiled, dense = (analysis.temp_size_in_bytes for analysis in analyses)
    assert tiled <= 0.3 * dense


# The momentum encoder.


def params(value: float) -> dict[str, Any]:
    return {"dense": {"bias": jnp.full(3, value), "kernel": jnp.full((2, 3), 2 * value)}, "steps": jnp.int32(value)}


def test_ema_update() -> None:
    """Averages what is floating-point, takes over what is not, and keeps dtypes."""
    new = gx.losses.ema_update(params(1.0), params(3.0), 0.75)
    np.testing.assert_allclose(new["dense"]["bias"], 1.5)
    np.testing.assert_allclose(new["dense"]["kernel"], 3.0)
    assert new["steps"] == 3 and new["steps"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("target", "online"),
    [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float16"), ("complex64", "complex64")],
)
def test_ema_update_keeps_the_dtype_of_the_target(target: str, online: str) -> None:
    new = gx.losses.ema_update({"w": jnp.full(2, 1.0, target)}, {"w": jnp.full(2, 2.0, online)}, 0.75)["w"]
    assert new.dtype == jnp.dtype(target)
    np.testing.assert_allclose(np.asarray(new, np.complex64), 1.25)


def test_ema_update_adds_up_in_float32() -> None:
    """A step far below the online dtype's spacing counts in a target that can hold it."""
    new = gx.losses.ema_update({"w": jnp.float32(1.0)}, {"w": jnp.bfloat16(2.0)}, 0.999)["w"]
    np.testing.assert_allclose(new, 1.001, rtol=1e-6)


@pytest.mark.parametrize(("momentum", "bias"), [(0.0, 3.0), (1.0, 1.0), (0.996, 1.008)])
def test_ema_update_at_its_ends(momentum: float, bias: float) -> None:
    new = gx.losses.ema_update(params(1.0), params(3.0), momentum)
    np.testing.assert_allclose(new["dense"]["bias"], bias, rtol=1e-6)


def test_ema_update_with_a_traced_momentum() -> None:
    run = jax.jit(gx.losses.ema_update)
    np.testing.assert_allclose(run(params(1.0), params(3.0), 0.5)["dense"]["bias"], 2.0)
    np.testing.assert_allclose(run(params(1.0), params(3.0), 0.75)["dense"]["bias"], 1.5)


def test_ema_update_of_a_whole_training() -> None:
    """After many steps toward the same params, what is left of the start is the momentum to the power of steps."""
    zero = {"w": jnp.float32(0.0)}
    target, _ = jax.lax.scan(
        lambda target, _: (gx.losses.ema_update(target, zero, 0.9), None), {"w": jnp.float32(1.0)}, length=40
    )
    np.testing.assert_allclose(target["w"], 0.9**40, rtol=1e-5)


# The queue.


def unit(z: Any) -> np.ndarray:
    return oracle.directions(z)[0]


def test_init_queue() -> None:
    queue = gx.losses.init_queue(jax.random.key(0), 32, 3)
    assert queue.vectors.shape == (32, 3) and queue.place == 0
    np.testing.assert_allclose(np.linalg.norm(queue.vectors, axis=1), 1, rtol=1e-6)
    assert len(np.unique(np.asarray(queue.vectors), axis=0)) == 32
    assert abs(np.mean(queue.vectors)) < 0.3


@pytest.mark.parametrize("jitted", [False, True])
def test_enqueue_replaces_the_oldest(jitted: bool) -> None:
    """Like a list that forgets its first, also across the end and with batches that do not divide the size."""
    size = 7
    queue = gx.losses.init_queue(jax.random.key(0), size, 2)
    enqueue = compiled(gx.losses.enqueue) if jitted else gx.losses.enqueue
    remembered = list(np.asarray(queue.vectors))
    random = np.random.RandomState(0)
    for count in (3, 3, 3, 7) if jitted else (3, 3, 3):
        keys = jnp.asarray(random.standard_normal((count, 2)), jnp.float32)
        queue = enqueue(queue, keys)
        remembered = [*remembered, *unit(keys)][-size:]
        in_order = np.roll(np.asarray(queue.vectors), -int(queue.place), axis=0)
        np.testing.assert_allclose(in_order, remembered, rtol=1e-6, atol=1e-6)
    assert queue.place == 9 % size and queue.place.dtype == jnp.int32


def test_enqueue_in_a_scan_and_in_half_precision() -> None:
    queue = gx.losses.init_queue(jax.random.key(0), 4, 2)
    keys = jnp.asarray(np.random.RandomState(0).standard_normal((3, 3, 2)), jnp.bfloat16)
    new, _ = jax.lax.scan(lambda queue, keys: (gx.losses.enqueue(queue, keys), None), queue, keys)
    assert new.vectors.dtype == jnp.float32 and new.place == 1
    np.testing.assert_allclose(new.vectors[0], unit(keys[2, 2:])[0], rtol=1e-6)


def test_enqueue_has_no_gradient() -> None:
    queue = gx.losses.init_queue(jax.random.key(0), 4, 2)
    keys = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    gradient = compiled(jax.grad(lambda keys: jnp.sum(gx.losses.enqueue(queue, keys).vectors ** 3)))(keys)
    np.testing.assert_array_equal(gradient, 0)


def test_a_queue_as_negatives() -> None:
    q, k = views(2, (5, 3))
    queue = gx.losses.enqueue(gx.losses.init_queue(jax.random.key(0), 6, 3), k)
    want = oracle.info_nce(q, k, 0.2, queue.vectors).total
    close(compiled(lambda q, k, n: gx.losses.info_nce(q, k, 0.2, negatives=n))(q, k, queue.vectors), want)
