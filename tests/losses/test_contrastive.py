"""The contrastive losses beside float64 oracles, and the memory they take."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import loss_oracles as oracle
import numpy as np
import optax
import pytest

import gradxform as gx

pytestmark = pytest.mark.long

TEMPERATURES = (1.0, 0.5, 0.1, 0.03, 0.01)
NEGATIVES = 11
# Pairs, features, block: one tile; ragged; the dense form; one feature; whole tiles; larger ragged ones.
GRID = [(5, 3, None), (13, 123, 8), (13, 123, 64), (13, 1, 8), (32, 128, 16), (252, 3, 128), (507, 123, 200)]
FEW = [(5, 3, None), (13, 123, 8)]
# What is compiled here runs a few times on few numbers.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """A loss as a function of its arrays, the factor of cosines or its inverse, and options; and its oracle."""

    loss: Callable[..., jax.Array]
    oracle: Callable[..., oracle.Result]
    arrays: tuple[str, ...]
    times: int = 1
    inverse: bool = True


def sup_con_of(labels: Callable[[int], Any]) -> Case:
    return Case(
        lambda z, t, **options: gx.losses.sup_con(z, labels(len(z)), t, **options),
        lambda z, t, **options: oracle.sup_con(z, labels(len(z)), t, **options),
        ("x",),
    )


def some_labels(count: int) -> Any:
    """Unsorted classes of several sizes, one of them a single vector's."""
    labels = np.random.RandomState(count).randint(-2, 3, count)
    labels[1:2] = 9
    return labels


CASES: dict[str, Case] = {
    "nt_xent": Case(gx.losses.nt_xent, oracle.nt_xent, ("x", "y"), 2),
    "info_nce": Case(gx.losses.info_nce, oracle.info_nce, ("x", "y")),
    "info_nce-negatives": Case(
        lambda q, k, n, t, **options: gx.losses.info_nce(q, k, t, negatives=n, **options),
        lambda q, k, n, t, **options: oracle.info_nce(q, k, t, n, **options),
        ("x", "y", "negatives"),
    ),
    "clip_loss": Case(gx.losses.clip_loss, oracle.clip, ("x", "y"), inverse=False),
    "sup_con": sup_con_of(some_labels),
}


def with_ids(name: str) -> Case:
    """A loss of pairs of which some are no negatives of each other."""
    case = CASES[name]
    ids = lambda z: np.arange(len(z)) * 5 % 7  # noqa: E731
    return case._replace(
        loss=lambda x, y, t, **options: case.loss(x, y, t, ids=ids(x), **options),
        oracle=lambda x, y, t, **options: case.oracle(x, y, t, ids=ids(x), **options),
    )


def arrays_for(case: Case, pairs: int, features: int, dtype: str = "float32", seed: int = 0) -> list[Any]:
    """Views of every degree of likeness, with lengths of their own, so that no temperature makes all losses 0."""
    random = np.random.RandomState(seed)
    x = random.standard_normal((pairs, features))
    y = x * random.uniform(0.05, 0.5, (pairs, 1)) + random.standard_normal((pairs, features))
    made = {
        "x": x * random.uniform(0.1, 10, (pairs, 1)),
        "y": y,
        "negatives": random.standard_normal((NEGATIVES, features)),
    }
    return [jnp.asarray(made[name], dtype) for name in case.arrays]


def exact(arrays: list[Any]) -> list[Any]:
    return [np.asarray(array, np.float64) for array in arrays]


def close(got: Any, want: Any, tolerance: float, size: float = 0.0, what: str = "") -> None:
    """Equal to ``tolerance`` of the largest number that went into it."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, what
    error, size = float(np.max(np.abs(got - want))), max(float(np.max(np.abs(want))), size)
    assert error <= tolerance * size, f"{what}: off by {error / size:.1e} of {size:.1e}"


def assert_like_oracle(
    case: Case,
    arrays: list[jax.Array],
    temperatures: tuple[float, ...],
    run: Callable[..., Any],
    tolerance: Callable[[float], float],
) -> None:
    """Losses by example and the gradients of a weighted sum of them, of every input."""
    weights = np.random.RandomState(1).uniform(0.2, 1, case.times * len(arrays[0]))
    for t in temperatures:
        parameter = t if case.inverse else 1 / t
        want = case.oracle(*exact(arrays), parameter, weights=weights)
        losses, gradients = run(*arrays, parameter, jnp.float32(weights))
        assert losses.dtype == jnp.float32
        close(losses, want.losses, tolerance(t), what=f"losses at {t}")
        names = (*case.arrays, "temperature")[: len(gradients)]
        for name, got, gradient, size in zip(names, gradients, want.gradients, want.sizes, strict=False):
            close(got, gradient, tolerance(t), size, f"{name} at {t}")


def gradients_of(case: Case, block: int | None, *, static: float | None = None) -> Callable[..., Any]:
    """The losses and the gradients of their weighted sum; of the temperature too where it is traced."""
    inputs = len(case.arrays)

    def run(*args: Any) -> Any:
        *arrays, parameter, weights = args
        values = [*arrays, parameter] if static is None else arrays

        def total(*values: Any) -> Any:
            full = values if static is None else (*values, static if case.inverse else 1 / static)
            losses = case.loss(*full, block_size=block, reduction="none")
            return jnp.sum(weights * losses), losses

        gradients, losses = jax.grad(total, tuple(range(len(values))), has_aux=True)(*values)
        assert all(got.dtype == array.dtype for got, array in zip(gradients[:inputs], arrays, strict=True))
        return losses, gradients

    return compiled(run)


@functools.cache
def gradient_of(name: str, static: float | None = None) -> Callable[..., Any]:
    """The mean loss and its gradients, of the temperature too where it is traced."""
    case = CASES[name]
    inputs = len(case.arrays)
    if static is None:
        return compiled(jax.value_and_grad(case.loss, tuple(range(inputs + 1))))
    parameter = static if case.inverse else 1 / static
    return compiled(jax.value_and_grad(lambda *arrays: case.loss(*arrays, parameter), tuple(range(inputs))))


def run_at(name: str, arrays: list[jax.Array], temperature: float, *, traced: bool) -> tuple[Any, Any, oracle.Result]:
    """The mean loss, its gradients, and what the oracle says."""
    case = CASES[name]
    parameter = temperature if case.inverse else 1 / temperature
    value, gradients = gradient_of(name)(*arrays, parameter) if traced else gradient_of(name, temperature)(*arrays)
    return value, gradients, case.oracle(*exact(arrays), parameter)


# A cosine of half precision is off by its rounding, which the temperature divides.
PRECISION: dict[str, Callable[[float], float]] = {
    "float32": lambda t: 1e-5,
    "bfloat16": lambda t: 5e-3 * max(1, 0.1 / t),
    "float16": lambda t: 1e-3 * max(1, 0.1 / t),
}


@pytest.mark.parametrize(("pairs", "features", "block"), GRID)
def test_nt_xent_over_sizes_and_temperatures(pairs: int, features: int, block: int | None) -> None:
    case = CASES["nt_xent"]
    assert_like_oracle(
        case, arrays_for(case, pairs, features), TEMPERATURES, gradients_of(case, block), PRECISION["float32"]
    )


@pytest.mark.parametrize(("pairs", "features", "block"), FEW)
@pytest.mark.parametrize("name", [name for name in CASES if name != "nt_xent"])
def test_others_over_sizes_and_temperatures(name: str, pairs: int, features: int, block: int | None) -> None:
    case = CASES[name]
    assert_like_oracle(
        case, arrays_for(case, pairs, features), TEMPERATURES, gradients_of(case, block), PRECISION["float32"]
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "bfloat16") for name in CASES),
        pytest.param("info_nce-negatives", "float16", marks=pytest.mark.exhaustive),
        ("nt_xent", "float16"),
    ],
)
def test_half_precision(name: str, dtype: str) -> None:
    case = CASES[name]
    assert_like_oracle(case, arrays_for(case, 13, 123, dtype), TEMPERATURES, gradients_of(case, 8), PRECISION[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.exhaustive)])
def test_half_precision_of_many(dtype: str) -> None:
    case = CASES["nt_xent"]
    run = gradients_of(case, 200)
    assert_like_oracle(case, arrays_for(case, 507, 123, dtype), (0.5, 0.1, 0.03), run, PRECISION[dtype])


@pytest.mark.parametrize(
    ("name", "temperature"),
    [*((name, 0.5) for name in CASES), ("nt_xent", 0.03), ("nt_xent", 0.01), ("clip_loss", 0.03)],
)
def test_a_known_temperature(name: str, temperature: float) -> None:
    """One that is large enough takes a way of its own, with a single exponential a pair."""
    case = CASES[name]
    run = gradients_of(case, 8, static=temperature)
    assert_like_oracle(case, arrays_for(case, 13, 3), (temperature,), run, PRECISION["float32"])


@pytest.mark.parametrize("static", [None, 0.5])
@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "clip_loss"])
def test_equal_ids_are_no_negatives(name: str, static: float | None) -> None:
    case = with_ids(name)
    temperatures = (0.5, 0.03) if static is None else (static,)
    assert_like_oracle(
        case, arrays_for(case, 13, 3), temperatures, gradients_of(case, 8, static=static), PRECISION["float32"]
    )


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_a_known_temperature_in_half_precision(temperature: float) -> None:
    case = CASES["nt_xent"]
    run = gradients_of(case, 8, static=temperature)
    assert_like_oracle(case, arrays_for(case, 13, 123, "bfloat16"), (temperature,), run, PRECISION["bfloat16"])


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "clip_loss", "info_nce-negatives"])
def test_small_losses_keep_their_digits(name: str) -> None:
    """Each loss and the gradients to five digits of themselves, where the loss is 1e-6."""
    case = CASES[name]
    z: Any = np.float32(np.random.RandomState(0).standard_normal((13, 123)))
    inputs = [z, z + 0.1 * z[::-1], np.float32(np.random.RandomState(1).standard_normal((NEGATIVES, 123)))]
    inputs = inputs[: len(case.arrays)]
    t = 0.06
    parameter = t if case.inverse else 1 / t
    want = case.oracle(*exact(inputs), parameter)
    assert 1e-7 < want.total < 1e-5
    loss = functools.partial(case.loss, block_size=8)
    value, gradients = compiled(jax.value_and_grad(loss, tuple(range(len(inputs)))))(*inputs, parameter)
    np.testing.assert_allclose(value, want.total, rtol=1e-5)
    for got, gradient in zip(gradients, want.gradients, strict=False):
        close(got, gradient, 1e-5)


OF_TWO: dict[str, Callable[..., jax.Array]] = {
    "nt_xent": gx.losses.nt_xent,
    "info_nce": gx.losses.info_nce,
    "clip_loss": lambda x, y, **options: gx.losses.clip_loss(x, y, 10.0, **options),
    "sup_con": lambda x, y, **options: gx.losses.sup_con(x, some_labels(13), **options),
    "siglip": lambda x, y, **options: gx.losses.siglip(x, y, 10.0, -10.0, **options),
}


@pytest.mark.parametrize("name", OF_TWO)
def test_products_have_the_precision_that_is_asked_for(name: str) -> None:
    def products(dtype: str, **options: Any) -> set[str]:
        x = jax.ShapeDtypeStruct((13, 4), dtype)
        text = jax.jit(jax.grad(functools.partial(OF_TWO[name], **options))).lower(x, x).as_text()
        found = re.findall(r"dot_general.*precision = \[(\w+), (\w+)\]", text)
        assert len(found) >= 2  # forward and backward
        return {one for pair in found for one in pair}

    assert products("float32") == products("float32", precision=jax.lax.Precision.HIGHEST) == {"HIGHEST"}
    assert products("float32", precision="tensorfloat32") == {"HIGH"}
    assert products("float32", precision="default") == products("bfloat16", precision="highest") == {"DEFAULT"}


def test_simclr_returns_twice_as_much() -> None:
    x, y = arrays_for(CASES["nt_xent"], 6, 3)
    value, _, _ = run_at("nt_xent", [x, y], 0.2, traced=True)
    np.testing.assert_allclose(2 * value, oracle.simclr(x, y, 0.2), rtol=1e-6)


def test_optax_on_pairs() -> None:
    x, y = arrays_for(CASES["nt_xent"], 6, 3)

    def theirs(x: Any, y: Any) -> Any:
        return optax.losses.ntxent(jnp.concatenate([x, y]), jnp.tile(jnp.arange(6), 2), 0.2)

    value, gradients = compiled(jax.value_and_grad(theirs, (0, 1)))(x, y)
    ours, found, _ = run_at("nt_xent", [x, y], 0.2, traced=True)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    for got, want in zip(found, gradients, strict=False):
        close(got, want, 1e-5)


def test_defaults() -> None:
    x, y = arrays_for(CASES["nt_xent"], 6, 3)
    labels = some_labels(6)
    got = compiled(lambda x, y: (gx.losses.nt_xent(x, y), gx.losses.info_nce(x, y), gx.losses.sup_con(x, labels)))(x, y)
    close(got[0], oracle.nt_xent(x, y, 0.5).total, 1e-5)
    close(got[1], oracle.info_nce(x, y, 0.1).total, 1e-5)
    close(got[2], oracle.sup_con(x, labels, 0.1).total, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_reductions(name: str) -> None:
    case = CASES[name]
    arrays = arrays_for(case, 6, 3)
    parameter = 0.5 if case.inverse else 2.0
    want = case.oracle(*exact(arrays), parameter)
    each, total, mean = compiled(
        lambda *arrays: [case.loss(*arrays, parameter, reduction=kind) for kind in ("none", "sum", "mean")]
    )(*arrays)
    assert each.shape == (case.times * 6,) and total.shape == mean.shape == ()
    close(each, want.losses, 1e-5)
    close(total, want.losses.sum(), 1e-5)
    close(mean, want.total, 1e-5)


def test_views_have_their_own_dtype() -> None:
    x, y = arrays_for(CASES["nt_xent"], 6, 4)
    value, (dx, dy) = jax.eval_shape(jax.value_and_grad(gx.losses.nt_xent, (0, 1)), x.astype(jnp.bfloat16), y)
    assert (value.dtype, dx.dtype, dy.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)


# Rows that are hard to compare.


PATHS = [(0.5, False), pytest.param(0.5, True, marks=pytest.mark.exhaustive), (0.01, True)]


@pytest.mark.parametrize(("temperature", "traced"), PATHS)
@pytest.mark.parametrize("name", CASES)
def test_rows_of_zeros(name: str, temperature: float, traced: bool) -> None:
    """They have a cosine of 0 to all, and no gradient; the others have theirs."""
    arrays = [z.at[2].set(0) for z in arrays_for(CASES[name], 6, 3)]
    value, gradients, want = run_at(name, arrays, temperature, traced=traced)
    close(value, want.total, 1e-5)
    for got, gradient in zip(gradients, want.gradients, strict=False):
        close(got, gradient, 1e-5)
        if got.ndim:
            np.testing.assert_array_equal(got[2], 0)
            assert np.any(np.asarray(got) != 0)


@pytest.mark.parametrize(("temperature", "traced"), PATHS)
@pytest.mark.parametrize("name", CASES)
def test_all_vectors_the_same(name: str, temperature: float, traced: bool) -> None:
    arrays = [jnp.full((6, 3), 2.0) for _ in CASES[name].arrays]
    value, gradients, want = run_at(name, arrays, temperature, traced=traced)
    close(value, want.total, 1e-5)
    for got in gradients:
        close(got, np.zeros(got.shape), 1e-5, 1 / temperature if got.ndim else 1 / temperature**2)


@pytest.mark.parametrize("traced", [True, False])
def test_everything_zero(traced: bool) -> None:
    value, gradients, _ = run_at("nt_xent", [jnp.zeros((6, 3))] * 2, 0.5, traced=traced)
    np.testing.assert_allclose(value, np.log(11), rtol=1e-6)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_none(name: str, bad: float) -> None:
    """A network that diverges is not to be hidden."""
    first, *rest = arrays_for(CASES[name], 6, 3)
    arrays: list[Any] = [first.at[0, 1].set(bad), *rest]
    assert np.isnan(gradient_of(name)(*arrays, 0.5)[0])
    assert np.isnan(gradient_of(name, 0.5)(*arrays)[0])


@pytest.mark.parametrize("factor", [1e-25, 1e-13, 1e-3, 1e3, 1e25])
def test_lengths_do_not_count(factor: float) -> None:
    """Nor do they overflow; the gradient is that of the vectors of length about 1, over the factor."""
    x, y = arrays_for(CASES["nt_xent"], 6, 3)
    value, (gradient, _), _ = run_at("nt_xent", [x * factor, y], 0.5, traced=False)
    want = oracle.nt_xent(x, y, 0.5)
    close(value, want.total, 1e-5)
    close(np.asarray(gradient, np.float64) * factor, want.gradients[0], 1e-4)


@pytest.mark.parametrize("temperature", [0.1, 0.0235, 0.02])
def test_a_loss_scale_passes_through(temperature: float) -> None:
    """Negatives that point away as far as they can, under a factor as half precision needs it."""
    x, y = jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([[-1.0, 0.1], [-1.0, 0.001]])
    want = oracle.nt_xent(x, y, temperature)
    gradients = compiled(jax.grad(lambda x, y: 2.0**15 * gx.losses.nt_xent(x, y, temperature), (0, 1)))(x, y)
    for got, gradient, size in zip(gradients, want.gradients, want.sizes, strict=False):
        close(np.asarray(got) / 2**15, gradient, 1e-5, size)


# Classes and queues.


LABELS: dict[str, Any] = {
    "sorted": [0, 0, 1, 1, 2, 2, 2],
    "unsorted": [2, 0, 1, 2, 1, 0, 2],
    "negative": [-1, -7, -1, 3, 3, -7, 3],
    "huge": [2**31 - 1, -(2**31), 5, 2**31 - 1, -(2**31), 5, 5],
    "one-class": [4] * 7,
    "pairless": [1, 2, 3, 4, 4, 5, 6],
}


@functools.cache
def class_gradient() -> Callable[..., Any]:
    return compiled(jax.value_and_grad(gx.losses.sup_con, (0, 2)))


@pytest.mark.parametrize("kind", LABELS)
def test_labels(kind: str) -> None:
    (z,) = arrays_for(CASES["sup_con"], 7, 3)
    labels: Any = np.array(LABELS[kind], np.int32)
    want = oracle.sup_con(z, labels, 0.2)
    value, gradients = class_gradient()(z, labels, 0.2)
    close(value, want.total, 1e-5)
    for got, gradient in zip(gradients, want.gradients, strict=True):
        close(got, gradient, 1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_narrow_labels(dtype: Any) -> None:
    """Of more vectors than their dtype can count."""
    (z,) = arrays_for(CASES["sup_con"], 300, 3)
    labels = np.random.RandomState(0).randint(0, 100, 300).astype(dtype)
    close(compiled(gx.losses.sup_con)(z, labels, 0.2), oracle.sup_con(z, labels, 0.2).total, 1e-5)


def test_labels_wider_than_32_bits() -> None:
    (z,) = arrays_for(CASES["sup_con"], 6, 3)
    labels: Any = np.array([2**40, 2**40 + 2**32, 0, 2**40, 2**40 + 2**32, 0])
    close(compiled(lambda z: gx.losses.sup_con(z, labels, 0.2))(z), oracle.sup_con(z, labels, 0.2).total, 1e-5)


def test_no_class_has_a_pair() -> None:
    (z,) = arrays_for(CASES["sup_con"], 7, 3)
    value, gradients = class_gradient()(z, np.arange(7, dtype=np.int32), 0.1)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("temperature", [0.1, 0.05])
def test_two_views_with_a_class_each_are_nt_xent(temperature: float) -> None:
    """Where the loss is 5e-4 and 2e-8, to the digits that cosines in float32 have over the temperature."""
    random = np.random.RandomState(0)
    x, y = (np.float32(np.eye(8, 16) + 0.02 * random.standard_normal((8, 16))) for _ in range(2))
    want = oracle.nt_xent(x, y, temperature)
    value, (dz, dt) = compiled(jax.value_and_grad(gx.losses.sup_con, (0, 2)))(
        np.concatenate([x, y]), np.tile(np.arange(8), 2), temperature
    )
    np.testing.assert_allclose(value, want.total, rtol=2.5e-7 / temperature)
    close(dz, np.concatenate(want.gradients[:2]), 2.5e-7 / temperature)
    close(dt, want.gradients[2], 2.5e-7 / temperature)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "clip_loss", "sup_con"])
def test_a_batch_of_one_has_nothing_to_tell_apart(name: str) -> None:
    """The logarithm of 1, and no gradient."""
    value, gradients = gradient_of(name, 0.5)(*([jnp.ones((1, 3))] * len(CASES[name].arrays)))
    assert value == 0 and not any(np.any(gradient) for gradient in gradients)


def test_a_single_query_beside_a_queue() -> None:
    q, k, negatives = arrays_for(CASES["info_nce-negatives"], 1, 3)
    want = oracle.info_nce(q, k, 0.2, negatives)
    close(compiled(lambda q, k, n: gx.losses.info_nce(q, k, 0.2, negatives=n))(q, k, negatives), want.total, 1e-5)


def test_negatives_count_whatever_they_are() -> None:
    """The other keys do not count beside them, and none of them is left out, not even a query's own key."""
    q, k = arrays_for(CASES["info_nce"], 5, 3)
    want = oracle.info_nce(q, k, 0.2, k)
    assert abs(want.total - oracle.info_nce(q, k, 0.2).total) > 1e-2
    close(compiled(lambda q, k: gx.losses.info_nce(q, k, 0.2, negatives=k))(q, k), want.total, 1e-5)


# Transformations.


@pytest.mark.parametrize("name", CASES)
def test_vmap_is_a_loop(name: str) -> None:
    case = CASES[name]
    members = [arrays_for(case, 6, 3, seed=seed) for seed in range(3)]
    parameters = np.array([0.1, 0.5, 2.0], np.float32)
    stacked = [jnp.stack(z) for z in zip(*members, strict=True)]
    gradient = jax.value_and_grad(case.loss, tuple(range(len(case.arrays) + 1)))
    values, gradients = compiled(jax.vmap(gradient))(*stacked, parameters)
    one = gradient_of(name)
    for i, (arrays, parameter) in enumerate(zip(members, parameters, strict=True)):
        value, wanted = one(*arrays, parameter)
        close(values[i], value, 1e-6)
        for got, want in zip(gradients, wanted, strict=True):
            close(got[i], want, 1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name != "info_nce-negatives"])
def test_a_named_axis_of_vmap(name: str) -> None:
    """Each member has a part of the batch, and the loss of all of it."""
    case = CASES[name]
    arrays = arrays_for(case, 6, 3)
    labels = some_labels(6)
    split = [z.reshape(3, 2, 3) for z in arrays]
    if name == "sup_con":
        got = compiled(jax.vmap(lambda z, part: gx.losses.sup_con(z, part, 0.5, axis_name="i"), axis_name="i"))(
            *split, labels.reshape(3, 2)
        )
    else:
        got = compiled(jax.vmap(lambda *z: case.loss(*z, 0.5, axis_name="i"), axis_name="i"))(*split)
    close(got, np.full(3, case.oracle(*exact(arrays), 0.5).total), 1e-5)


def test_one_program_for_all_temperatures() -> None:
    x, y = arrays_for(CASES["nt_xent"], 6, 3)
    traced = []

    @jax.jit
    def run(x: Any, y: Any, t: Any) -> Any:
        traced.append(t)
        return gx.losses.nt_xent(x, y, t)

    values = [float(run(x * t, y, t)) for t in TEMPERATURES]
    close(values, [oracle.nt_xent(x, y, t).total for t in TEMPERATURES], 1e-5)
    assert len(traced) == 1


def test_eager_calls_compile_once(caplog: pytest.LogCaptureFixture) -> None:
    """A second call with other numbers finds everything in place."""
    x, y = arrays_for(CASES["nt_xent"], 9, 3)
    gradient = jax.value_and_grad(gx.losses.nt_xent, (0, 1))
    for again in (False, True):
        caplog.clear()
        with jax.log_compiles():
            gradient(x + again, y, 0.5)
        compiles = [record.message for record in caplog.records if record.message.startswith("Compiling")]
        assert bool(compiles) != again, compiles


# Memory.


def dense_nt_xent(x: Any, y: Any, temperature: Any) -> Any:
    u = jnp.concatenate([z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)])
    n = x.shape[0]
    logits = jnp.where(jnp.eye(2 * n, dtype=bool), -jnp.inf, u @ u.T / temperature)
    positives = jnp.sum(u[:n] * u[n:], 1) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.tile(positives, 2))


def jaxprs(value: Any) -> Iterator[Any]:
    """The jaxprs inside the parameters of an equation."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from jaxprs(item)
    elif hasattr(value, "eqns"):
        yield value


def largest(jaxpr: Any) -> int:
    """The most elements that an array of a program has, whatever is nested in it."""
    sizes = [int(np.prod(v.aval.shape)) for eqn in jaxpr.eqns for v in eqn.outvars]
    inner = [largest(sub) for eqn in jaxpr.eqns for value in eqn.params.values() for sub in jaxprs(value)]
    return max(sizes + inner, default=0)


@pytest.mark.as_in_use
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_memory_is_linear(temperature: float) -> None:
    """At 2,048 pairs: no matrix of all pairs, and little of what the dense form takes."""
    pairs, features = 2048, 16
    shapes = [jax.ShapeDtypeStruct((pairs, features), jnp.float32)] * 2
    ours, dense = (
        jax.value_and_grad(functools.partial(f, temperature=temperature), (0, 1))
        for f in (gx.losses.nt_xent, dense_nt_xent)
    )
    assert largest(jax.make_jaxpr(dense)(*shapes).jaxpr) >= (2 * pairs) ** 2
    assert largest(jax.make_jaxpr(ours)(*shapes).jaxpr) <= (2 * pairs) ** 2 / 16
    analyses: list[Any] = [compiled(f).lower(*shapes).compile().memory_analysis() for f in (ours, dense)]
    taken, whole = (analysis.temp_size_in_bytes for analysis in analyses)
    assert taken <= 0.15 * whole


@pytest.mark.parametrize("name", [name for name in CASES if name != "nt_xent"])
def test_no_loss_makes_the_matrix(name: str) -> None:
    case = CASES[name]
    count = 4096
    arrays = [jax.ShapeDtypeStruct((count, 4), jnp.float32)] * len(case.arrays)
    gradient = jax.value_and_grad(case.loss, tuple(range(len(arrays))))
    assert largest(jax.make_jaxpr(gradient)(*arrays, 0.5).jaxpr) <= count**2 / 16


# The oracles themselves.


@pytest.mark.parametrize("name", CASES)
def test_the_oracles_gradients(name: str) -> None:
    """The closed forms beside finite differences."""
    case = CASES[name]
    arrays = exact(arrays_for(case, 5, 3))
    weights = np.random.RandomState(1).uniform(0.2, 1, case.times * 5)
    want = oracle.differences(
        lambda *args: case.oracle(*args[:-1], float(args[-1]), weights=weights).total,
        [*arrays, np.asarray(0.3)],
        step=1e-4,
    )
    for got, gradient in zip(case.oracle(*arrays, 0.3, weights=weights).gradients, want, strict=True):
        close(got, gradient, 1e-8)
