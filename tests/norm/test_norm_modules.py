"""The norms as modules of Flax, NNX and Linen: Flax's arguments, variables and results, and the options beyond."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradxform as gx
from gradxform.norm import linen as linen_norms
from gradxform.norm import nnx as nnx_norms

pytestmark = pytest.mark.kinds_by("name")

NAMES = ["BatchNorm", "BatchRenorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
SHAPE = (4, 3, 5, 8)
RANDOM = np.random.RandomState(3)
X: Any = np.float32(RANDOM.standard_normal(SHAPE) + 0.3)
G: Any = np.float32(RANDOM.standard_normal(SHAPE))
MASK: Any = RANDOM.uniform(size=SHAPE) < 0.7
MASK[:, :, :2] = True  # where nothing at all counts, Flax gives NaN
BATCHES: Any = np.float32(RANDOM.standard_normal((3, 6, 8)) * np.array([[[0.5]], [[1.0]], [[3.0]]]) + 1)
BF16 = jnp.bfloat16

# Each norm with options of Flax's; NNX is told the number of features, and counts those of all feature axes.
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("BatchNorm", 8, {}),
    ("BatchNorm", 3, {"axis": 1}),
    ("BatchNorm", 8, {"momentum": 0.5, "epsilon": 1e-2}),
    ("BatchNorm", 8, {"use_bias": False}),
    ("BatchNorm", 8, {"use_scale": False}),
    ("BatchNorm", 8, {"use_bias": False, "use_scale": False}),
    ("BatchNorm", 8, {"use_fast_variance": False}),
    ("BatchNorm", 8, {"param_dtype": BF16}),
    ("LayerNorm", 8, {}),
    ("LayerNorm", 8, {"reduction_axes": (1, 2, 3), "epsilon": 1e-2}),
    ("LayerNorm", 8, {"reduction_axes": (1, 2), "feature_axes": -1}),
    ("LayerNorm", 3, {"reduction_axes": (2, 3), "feature_axes": 1, "use_bias": False}),
    ("LayerNorm", 40, {"reduction_axes": (-2, -1), "feature_axes": (-2, -1)}),
    ("LayerNorm", 8, {"use_scale": False, "param_dtype": BF16}),
    ("RMSNorm", 8, {}),
    ("RMSNorm", 8, {"use_scale": False, "epsilon": 1e-2}),
    ("RMSNorm", 8, {"reduction_axes": (2, 3)}),
    ("RMSNorm", 40, {"reduction_axes": -1, "feature_axes": (2, 3)}),
    ("GroupNorm", 8, {"num_groups": 2}),
    ("GroupNorm", 8, {"num_groups": None, "group_size": 4, "epsilon": 1e-2}),
    ("GroupNorm", 8, {"num_groups": 8, "use_bias": False}),
    ("GroupNorm", 8, {"num_groups": 1, "use_scale": False}),
    ("InstanceNorm", 8, {}),
    ("InstanceNorm", 3, {"feature_axes": 1, "use_bias": False}),
    ("InstanceNorm", 24, {"feature_axes": (1, 3), "epsilon": 1e-2}),
]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, _, options in CASES]
cases = pytest.mark.parametrize(("name", "features", "options"), CASES, ids=IDS)
# Whatever the options, a mask goes to the kernel as it is given: one case of each norm has one, too.
FIRST = [i for i, (name, _, _) in enumerate(CASES) if name not in [case[0] for case in CASES[:i]]]
masked_cases = pytest.mark.parametrize(
    ("name", "features", "options", "mask"),
    [(*case, None) for case in CASES] + [(*CASES[i], MASK) for i in FIRST],
    ids=IDS + [f"{IDS[i]}masked" for i in FIRST],
)


def test_every_module_has_a_case() -> None:
    for room in (nnx_norms, linen_norms):
        assert {name for name in room.__all__ if name.endswith("Norm") or name == "BatchRenorm"} == set(NAMES)
    assert {name for name, _, _ in CASES} | {"BatchRenorm"} == set(NAMES)


def flax_name(name: str) -> str:
    return "BatchNorm" if name == "BatchRenorm" else name


def usual(name: str) -> dict[str, Any]:
    return {"num_groups": 2} if name == "GroupNorm" else {}


def close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """The same tree, and every leaf within ``tolerance`` of its largest entry or of 1."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max(initial=0)))


def differ(got: Any, wanted: Any) -> None:
    assert np.abs(np.asarray(got, np.float64) - np.asarray(wanted, np.float64)).max() > 1e-2


def scrambled(tree: Any) -> Any:
    """Positive numbers in place of what a module starts with."""
    leaves, structure = jax.tree.flatten(tree)
    random = np.random.RandomState(0)
    return jax.tree.unflatten(structure, [jnp.asarray(random.uniform(0.5, 1.5, x.shape), x.dtype) for x in leaves])


def new(name: str, features: int = 8, **options: Any) -> Any:
    return getattr(nnx_norms, name)(features, **usual(name) | options, rngs=nnx.Rngs(0))


def flax_new(name: str, features: int = 8, **options: Any) -> Any:
    return getattr(nnx, flax_name(name))(features, **usual(name) | options, rngs=nnx.Rngs(0))


def values(module: Any) -> dict[Any, np.ndarray]:
    """Copies of a module's variables."""
    return {path: np.array(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(module))}


def running(module: Any) -> dict[str, np.ndarray]:
    return {"mean": np.array(module.mean[...]), "var": np.array(module.var[...])}


def described(module: Any) -> dict[Any, Any]:
    return {
        path: (type(variable), variable.shape, variable.dtype)
        for path, variable in nnx.to_flat_state(nnx.state(module))
    }


def averaged(batches: Any, momentum: float = 0.99, ddof: int = 0) -> dict[str, np.ndarray]:
    """The running statistics after batches, in float64."""
    mean, var = np.zeros(8), np.ones(8)
    for batch in np.asarray(batches, np.float64):
        mean = momentum * mean + (1 - momentum) * batch.mean(0)
        var = momentum * var + (1 - momentum) * batch.var(0, ddof=ddof)
    return {"mean": mean, "var": var}


# NNX: Flax's interface.


@pytest.mark.parametrize("name", NAMES)
def test_nnx_takes_what_flax_takes(name: str) -> None:
    ours, theirs = getattr(nnx_norms, name), getattr(nnx, flax_name(name))
    assert issubclass(ours, theirs)
    for method in ("__init__", "__call__"):
        got = inspect.signature(getattr(ours, method)).parameters
        for parameter in inspect.signature(getattr(theirs, method)).parameters.values():
            assert got[parameter.name].kind == parameter.kind
            assert repr(got[parameter.name].default) == repr(parameter.default), parameter.name
    extra = [
        p for p in inspect.signature(ours).parameters.values() if p.name not in inspect.signature(theirs).parameters
    ]
    assert all(p.kind == p.KEYWORD_ONLY and p.default is not p.empty for p in extra)


@cases
def test_nnx_variables_are_those_of_flax(name: str, features: int, options: dict[str, Any]) -> None:
    ours, theirs = new(name, features, **options), flax_new(name, features, **options)
    assert described(ours) == described(theirs)
    close(values(ours), values(theirs), 0)


def test_nnx_variables_keep_their_initializers_and_metadata() -> None:
    init = lambda key, shape, dtype: jax.random.normal(key, shape, dtype)  # noqa: E731
    options: dict[str, Any] = {
        "scale_init": init,
        "bias_init": init,
        "scale_metadata": {"tag": "a"},
        "bias_metadata": {"tag": "b"},
    }
    ours, theirs = new("BatchNorm", **options), flax_new("BatchNorm", **options)
    close(values(ours), values(theirs), 0)
    assert (ours.scale.get_metadata("tag"), ours.bias.get_metadata("tag")) == ("a", "b")


@masked_cases
def test_nnx_gives_what_flax_gives(name: str, features: int, options: dict[str, Any], mask: Any) -> None:
    ours, theirs = new(name, features, **options), flax_new(name, features, **options)
    state = scrambled(nnx.state(theirs))
    nnx.update(ours, state)
    nnx.update(theirs, state)
    for _ in range(2):
        got, wanted = ours(X, mask=mask), theirs(X, mask=mask)
        assert got.dtype == wanted.dtype
        close(got, wanted)
        close(values(ours), values(theirs))
    if name == "BatchNorm":
        ours.eval()
        theirs.eval()
        before = values(ours)
        close(ours(X), theirs(X))
        close(values(ours), before, 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_a_flax_module_loads_into_nnx_and_back(name: str) -> None:
    first, second = new(name), flax_new(name)
    state = scrambled(nnx.state(second))
    nnx.update(second, state)
    nnx.update(first, nnx.state(second))
    assert values(first).keys() == values(second).keys()
    close(values(first), values(second), 0)
    third = flax_new(name)
    nnx.update(third, nnx.to_pure_dict(nnx.state(first)))
    close(values(third), values(first), 0)
    graph, _ = nnx.split(first)
    close(nnx.merge(graph, nnx.state(second))(X), first(X), 0)


@pytest.mark.parametrize("name", NAMES)
def test_nnx_masks_broadcast(name: str) -> None:
    narrow = np.random.RandomState(1).uniform(size=(4, 3, 5, 1)) < 0.6
    if name in ("LayerNorm", "RMSNorm"):
        narrow = np.arange(8) % 3 > 0
    # Renormalized by its first batch, an input does not show what that batch was.
    options: dict[str, Any] = {"r_max": 1.0, "d_max": 0.0} if name == "BatchRenorm" else {}
    wanted = new(name, **options)(X, mask=np.broadcast_to(narrow, SHAPE))
    close(new(name, **options)(X, mask=narrow), wanted)
    close(new(name, **options)(X, mask=narrow.astype(np.int32)), wanted)
    differ(new(name, **options)(X), wanted)


def test_nnx_group_norm_reduces_what_it_is_told() -> None:
    """As Flax's Linen module does; its NNX one repeats along a wrong axis there."""
    layer = nn.GroupNorm(num_groups=2, reduction_axes=(2, 3))
    wanted = layer.apply(layer.init(jax.random.key(0), X), X)
    close(new("GroupNorm", num_groups=2, reduction_axes=(2, 3))(X), wanted)


# The dtype of the result.

DTYPES: list[tuple[Any, Any, Any, Any]] = [  # of x, dtype=, param_dtype=, of the result
    (jnp.float32, None, jnp.float32, jnp.float32),
    (BF16, None, jnp.float32, jnp.float32),
    (BF16, BF16, jnp.float32, BF16),
    (jnp.float32, BF16, jnp.float32, BF16),
    (jnp.float16, jnp.float32, jnp.float32, jnp.float32),
    (BF16, jnp.float16, BF16, jnp.float16),
    (jnp.float32, None, BF16, jnp.float32),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_dtype_of_the_result_is_that_of_flax(name: str) -> None:
    for given, dtype, param_dtype, wanted in DTYPES:
        options, x = {"dtype": dtype, "param_dtype": param_dtype}, jnp.asarray(X, given)
        layers = [
            getattr(lib, n)(**options | usual(name) | training(name))
            for lib, n in ((linen_norms, name), (nn, flax_name(name)))
        ]
        variables = jax.eval_shape(layers[0].init, jax.random.key(0), x)
        for layer in layers:
            y, _ = jax.eval_shape(lambda v, x, layer=layer: layer.apply(v, x, mutable=["batch_stats"]), variables, x)
            assert y.dtype == wanted
        for module in (new(name, **options), flax_new(name, **options)):
            assert nnx.eval_shape(lambda module, x: module(x), module, x).dtype == wanted
            if name.startswith("Batch"):
                assert module.mean.dtype == module.var.dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_narrow_numbers_are_normalized_as_wide_ones(name: str) -> None:
    module, x = new(name, dtype=BF16), jnp.asarray(X, BF16)
    got = module(x)
    assert got.dtype == BF16
    close(got, new(name)(jnp.asarray(x, jnp.float32)), 1e-2)
    layer = getattr(linen_norms, name)(dtype=BF16, **usual(name) | training(name))
    close(layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])[0], got, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_without_parameters_returns_the_dtype_of_its_input(name: str) -> None:
    options = {"use_scale": False} | ({} if name == "RMSNorm" else {"use_bias": False})
    assert new(name, **options)(jnp.asarray(X, BF16)).dtype == BF16


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_bfloat16_batch_norm_subtracts_the_running_mean_before_rounding(api: str) -> None:
    """1001.5 and 1000.7 are the same number in bfloat16: Flax's NNX module returns 0."""
    x, stats = jnp.full((1, 8), 1001.5), {"mean": jnp.full(8, 1000.7), "var": jnp.ones(8)}
    if api == "nnx":
        module = new("BatchNorm", dtype=BF16, use_running_average=True)
        module.mean[...], module.var[...] = stats["mean"], stats["var"]
        y = module(x)
    else:
        y = linen_norms.BatchNorm(dtype=BF16, use_running_average=True, use_scale=False, use_bias=False).apply(
            {"batch_stats": stats}, x
        )
    assert y.dtype == BF16
    np.testing.assert_allclose(np.float32(y), 0.8, atol=2e-3)


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm"])
def test_an_offset_does_not_matter(name: str) -> None:
    """Flax's default variance, from a mean of squares, is wrong there."""
    module = new(name)
    x = np.float32(X + 3000.0)
    close(module(x), module(np.float32(np.float64(x) - 3000.0)), 2e-5)


# NNX: train and eval, and the transformations of NNX and JAX.


def test_nnx_batch_norm_is_told_by_call_by_mode_or_by_view() -> None:
    module = new("BatchNorm")
    trained, before = module(X), running(module)
    evaluated = module(X, use_running_average=True)
    differ(trained, evaluated)
    close(running(module), before, 0)
    module.eval()
    assert module.use_running_average is True
    close(module(X), evaluated)
    close(module(X, use_running_average=False), trained)
    differ(running(module)["mean"] * 100, before["mean"] * 100)
    module.train()
    close(module(X), trained)
    undecided = new("BatchNorm", use_running_average=None)
    with pytest.raises(ValueError, match="use_running_average"):
        undecided(X)
    close(undecided(X, use_running_average=False), trained)


def test_nnx_views_share_their_statistics() -> None:
    module = new("BatchNorm")
    training, evaluating = (nnx.view(module, use_running_average=flag) for flag in (False, True))
    wanted = flax_new("BatchNorm")
    close(training(X), wanted(X))
    close(running(module), running(wanted), 1e-6)
    close(evaluating(X), wanted(X, use_running_average=True))
    frozen = nnx.view(module, use_running_average=False, frozen=True)
    close(frozen(X), evaluating(X))
    close(running(module), running(wanted), 1e-6)


class Model(nnx.Module):
    """Two layers with a norm between them."""

    def __init__(self, rngs: nnx.Rngs, **options: Any) -> None:
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx_norms.BatchNorm(8, momentum=0.9, rngs=rngs, **options)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.relu(self.norm(self.first(x))))


def loss_of(model: Any, x: Any) -> Any:
    return jnp.mean(jnp.square(model(x)))


def step_of_nnx(model: Any, x: Any) -> Any:
    return nnx.value_and_grad(loss_of)(model, x)


@functools.cache
def first_step() -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The loss, its gradients and the new statistics of a fresh model, from JAX on pure functions."""
    model = Model(nnx.Rngs(0))
    graph, params, stats = nnx.split(model, nnx.Param, ...)

    def loss(params: Any, stats: Any) -> Any:
        model = nnx.merge(graph, params, stats, copy=True)
        return loss_of(model, BATCHES[0]), nnx.state(model, nnx.BatchStat)

    (value, new), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, stats)
    return value, gradients, {key: np.asarray(variable[...]) for key, variable in new["norm"].items()}


def kept(model: Any, value: Any, gradients: Any) -> None:
    """A step on the first batch gave what it has to, and the model has its statistics."""
    wanted, wanted_gradients, stats = first_step()
    close(value, wanted)
    close(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients))
    close(running(model.norm), stats)
    differ(running(model.norm)["mean"] * 10, np.zeros(8))


def test_nnx_jit_keeps_the_updates_and_compiles_once() -> None:
    traced = 0

    @nnx.jit
    def step(model: Any, x: Any) -> Any:
        nonlocal traced
        traced += 1
        return step_of_nnx(model, x)

    model = Model(nnx.Rngs(0))
    kept(model, *step(model, BATCHES[0]))
    before = running(model.norm)
    step(model, BATCHES[1])
    hidden = nnx.view(model).first(BATCHES[1])
    close(running(model.norm)["mean"], 0.9 * before["mean"] + 0.1 * np.asarray(hidden).mean(0))
    assert traced == 1


def test_jax_jit_with_split_and_merge_compiles_once() -> None:
    traced = 0
    graph, state = nnx.split(Model(nnx.Rngs(0), bias_corrected=True, update_every=2))

    @jax.jit
    def step(state: Any, x: Any) -> Any:
        nonlocal traced
        traced += 1
        model = nnx.merge(graph, state)
        value, _ = step_of_nnx(model, x)
        return value, nnx.state(model)

    for batch in BATCHES:
        _, state = step(state, batch)
    assert traced == 1


def test_updates_under_plain_jax_are_kept_by_returning_the_state_as_aux() -> None:
    """Plain ``jax.jit`` and ``jax.value_and_grad`` work on a copy of a module: what it learns has to come back."""
    model = Model(nnx.Rngs(0))

    @jax.jit
    def step(model: Any, x: Any) -> Any:
        def loss(model: Any) -> Any:
            value = loss_of(model, x)
            return value, nnx.state(model, nnx.BatchStat)

        return jax.value_and_grad(loss, has_aux=True, allow_int=True)(model)

    with nnx_norms.expect_updates(model):
        (value, stats), gradients = step(model, BATCHES[0])
        close(running(model.norm), {"mean": np.zeros(8), "var": np.ones(8)}, 0)
        nnx.update(model, stats)
    kept(model, value, nnx.state(gradients, nnx.Param))


def test_updates_under_plain_jax_are_kept_by_split_and_merge() -> None:
    model = Model(nnx.Rngs(0))
    graph, state = nnx.split(model)

    @jax.jit
    def step(state: Any, x: Any) -> Any:
        model = nnx.merge(graph, state)
        value, gradients = nnx.value_and_grad(loss_of)(model, x)
        return value, gradients, nnx.state(model)

    with nnx_norms.expect_updates(lambda: state):
        value, gradients, state = step(state, BATCHES[0])
    nnx.update(model, state)
    kept(model, value, gradients)


class Sum(nnx.Module):
    """Batch norms alone, one of them behind another attribute."""

    def __init__(self, **options: Any) -> None:
        self.norm = new("BatchNorm", **options)
        self.more = nnx.List([new("BatchNorm", bias_corrected=True, update_every=2, **options)])

    def __call__(self, x: Any) -> Any:
        return jnp.sum(self.norm(x) + self.more[0](x))


LOSING: dict[str, Callable[..., Any]] = {
    "jit": lambda model, x: jax.jit(Sum.__call__)(model, x),
    "jit of value_and_grad": lambda model, x: jax.jit(jax.value_and_grad(Sum.__call__, allow_int=True))(model, x),
    "value_and_grad in nnx.jit": lambda model, x: nnx.jit(
        lambda model, x: jax.value_and_grad(Sum.__call__, allow_int=True)(model, x)
    )(model, x),
    "split and merge": lambda model, x: jax.jit(lambda state, x: nnx.merge(nnx.graphdef(model), state)(x))(
        nnx.state(model), x
    ),
}


@pytest.mark.parametrize("run", LOSING.values(), ids=list(LOSING))
def test_updates_that_plain_jax_loses_are_found(run: Callable[..., Any]) -> None:
    """Under ``jax.jit`` and ``jax.value_and_grad`` alone the statistics go nowhere; Flax does not say so."""
    model = Sum()
    with (
        pytest.raises(nnx_norms.LostUpdateError, match=r"at more/0, norm;.*nnx\.jit.*value_and_grad.*nnx\.state"),
        nnx_norms.expect_updates(model),
    ):
        run(model, X)
    with nnx_norms.expect_updates(model):
        nnx.jit(Sum.__call__)(model, X)


def test_what_holds_the_statistics_may_be_a_state_or_a_tree() -> None:
    graph, state = nnx.split(Sum())
    run = jax.jit(lambda state, x: (lambda model: (model(x), nnx.state(model)))(nnx.merge(graph, state)))
    for look in (
        lambda: state,
        lambda: nnx.to_pure_dict(nnx.filter_state(state, nnx.BatchStat)),
        lambda: nnx.merge(graph, state),
    ):
        with pytest.raises(nnx_norms.LostUpdateError, match="at more/0, norm;"), nnx_norms.expect_updates(look):
            run(state, X)
        with nnx_norms.expect_updates(look):
            _, state = run(state, X)
    stats = gx.norm.init_batch_stats(8)
    with pytest.raises(nnx_norms.LostUpdateError, match="at the root;"), nnx_norms.expect_updates(lambda: stats):
        gx.norm.batch_norm(X, stats, use_running_average=False)


def test_where_nothing_is_to_be_updated_nothing_is_expected() -> None:
    """One that is frozen, evaluates or keeps none is no loss; a model of such alone is no model to check."""
    model = Sum()
    model.norm.frozen = True
    with nnx_norms.expect_updates(model):
        model(X)
    with pytest.raises(nnx_norms.LostUpdateError, match=r"at more/0;"), nnx_norms.expect_updates(model):
        pass
    model.more[0].eval()
    for idle in (model, new("LayerNorm"), new("BatchNorm", track_running_stats=False)):
        with pytest.raises(ValueError, match=r"^holder: "), nnx_norms.expect_updates(idle):
            pass
    with pytest.raises(ZeroDivisionError), nnx_norms.expect_updates(new("BatchNorm")):
        raise ZeroDivisionError  # what fails in the step is not covered up


def test_nnx_vmap_makes_and_trains_an_ensemble() -> None:
    @nnx.vmap
    def make(key: Any) -> Model:
        return Model(nnx.Rngs(key))

    @nnx.jit
    @nnx.vmap
    def step(model: Any, x: Any) -> Any:
        return step_of_nnx(model, x)

    keys = jax.random.split(jax.random.key(0), 3)
    models = make(keys)
    assert models.norm.mean.shape == (3, 8)
    value, gradients = step(models, BATCHES)
    alone = nnx.jit(step_of_nnx)
    for i in range(3):
        model = Model(nnx.Rngs(keys[i]))
        one, one_gradients = alone(model, BATCHES[i])
        close(value[i], one)
        close([g[i] for g in jax.tree.leaves(gradients)], jax.tree.leaves(one_gradients))
        close({name: a[i] for name, a in running(models.norm).items()}, running(model.norm))


def test_nnx_vmap_shares_a_module_over_shards_with_a_named_axis() -> None:
    module = new("BatchNorm", axis_name="shard")
    mask = np.random.RandomState(2).uniform(size=(3, 6, 1)) < 0.6
    mask[1] = False
    axes = nnx.StateAxes({nnx.Param: None, nnx.BatchStat: None})
    y = nnx.vmap(lambda module, x, mask: module(x, mask=mask), in_axes=(axes, 0, 0), axis_name="shard")(
        module, BATCHES, mask
    )
    whole = new("BatchNorm")
    close(y.reshape(-1, 8), whole(BATCHES.reshape(-1, 8), mask=mask.reshape(-1, 1)))
    close(running(module), running(whole))


def test_nnx_scan_carries_a_module_over_batches() -> None:
    module = new("BatchNorm")
    nnx.scan(lambda module, x: (module, module(x)), in_axes=(nnx.Carry, 0))(module, BATCHES)
    close(running(module), averaged(BATCHES))


@pytest.mark.parametrize("name", NAMES)
def test_nnx_modules_have_an_abstract_shape(name: str) -> None:
    abstract = nnx.eval_shape(lambda: new(name))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(abstract)))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), nnx.to_pure_dict(nnx.state(abstract))) == jax.tree.map(
        lambda a: (a.shape, a.dtype), nnx.to_pure_dict(nnx.state(new(name)))
    )
    graph, _ = nnx.split(abstract)
    close(nnx.merge(graph, nnx.state(new(name)))(X), new(name)(X))
    y = nnx.eval_shape(lambda module, x: module(x), new(name), X)
    assert (y.shape, y.dtype) == (SHAPE, jnp.float32)


@pytest.mark.parametrize(
    "copied", [nnx.clone, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["clone", "deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", NAMES)
def test_nnx_modules_copy(name: str, copied: Callable[..., Any]) -> None:
    module = new(name)
    module(X)
    state = values(module)
    twin = copied(module)
    assert type(twin) is type(module)
    close(values(twin), state, 0)
    close(twin(X), module(X), 0)
    close(values(twin), values(module), 0)
    if name.startswith("Batch"):
        twin(X)
        assert not np.array_equal(twin.mean[...], module.mean[...])


@pytest.mark.parametrize("name", NAMES)
def test_nnx_modules_print(name: str) -> None:
    text = repr(new(name))
    assert name in text
    assert "scale=" in text


# The options beyond Flax's.


def test_frozen_statistics_stay_and_gradients_flow() -> None:
    module = new("BatchNorm", frozen=True)
    nnx.update(module, scrambled(nnx.state(module)))
    before = running(module)
    wanted = module(X, use_running_average=True)
    module.train()
    close(module(X, use_running_average=False), wanted, 0)
    gradients = nnx.grad(lambda module: jnp.sum(module(X) * G))(module)
    close(running(module), before, 0)
    normalized = (X - before["mean"]) / np.sqrt(before["var"] + 1e-5)
    close(gradients["scale"][...], (normalized * G).sum((0, 1, 2)))
    close(gradients["bias"][...], G.sum((0, 1, 2)))
    module.frozen = False
    module(X)
    differ(running(module)["mean"] * 10, before["mean"] * 10)


def test_a_whole_model_is_frozen_at_once() -> None:
    model = Model(nnx.Rngs(0))
    model.set_attributes(frozen=True)
    assert model.norm.frozen
    model.train()
    model(BATCHES[0])
    close(running(model.norm), {"mean": np.zeros(8), "var": np.ones(8)}, 0)


def variables_of(api: str, **options: Any) -> Callable[[Any], dict[str, np.ndarray]]:
    """Runs a batch norm of either API over batches and returns its running statistics."""

    def with_nnx(batches: Any) -> dict[str, np.ndarray]:
        module = new("BatchNorm", **options)
        for batch in batches:
            module(batch)
        return {str(key[0]): value for key, value in values(module).items() if key[0] not in ("scale", "bias")}

    def with_linen(batches: Any) -> dict[str, np.ndarray]:
        module = linen_norms.BatchNorm(use_running_average=False, **options)
        variables = module.init(jax.random.key(0), batches[0])
        for batch in batches:
            variables = variables | module.apply(variables, batch, mutable=["batch_stats"])[1]
        return {key: np.array(value) for key, value in variables["batch_stats"].items()}

    return with_nnx if api == "nnx" else with_linen


apis = pytest.mark.parametrize("api", ["nnx", "linen"])


@apis
def test_running_statistics_are_those_of_flax(api: str) -> None:
    close(variables_of(api)(BATCHES), averaged(BATCHES))
    close(variables_of(api, momentum=0.7)(BATCHES), averaged(BATCHES, 0.7))


@apis
def test_an_unbiased_running_variance(api: str) -> None:
    close(variables_of(api, running_var="unbiased", momentum=0.5)(BATCHES), averaged(BATCHES, 0.5, ddof=1))
    differ(averaged(BATCHES, 0.5, ddof=1)["var"], averaged(BATCHES, 0.5)["var"])


@apis
def test_bias_corrected_statistics(api: str) -> None:
    one = variables_of(api, bias_corrected=True)(BATCHES[:1])
    assert set(one) == {"mean", "var", "weight"}
    close({key: one[key] for key in ("mean", "var")}, {"mean": BATCHES[0].mean(0), "var": BATCHES[0].var(0)})
    three = variables_of(api, bias_corrected=True, momentum=0.5)(BATCHES)
    weights = np.array([0.125, 0.25, 0.5])
    close(three["mean"], np.tensordot(weights, np.float64(BATCHES).mean(1), 1) / weights.sum())
    close(three["var"], np.tensordot(weights, np.float64(BATCHES).var(1), 1) / weights.sum())


@apis
def test_momentum_none_averages_all_batches(api: str) -> None:
    got = variables_of(api, momentum=None)(BATCHES)
    close(got["mean"], np.float64(BATCHES).mean(1).mean(0))
    close(got["var"], np.float64(BATCHES).var(1).mean(0))


@apis
@pytest.mark.parametrize("momentum", [0.75, None])
def test_statistics_of_a_checkpoint_without_a_weight_count_as_whole(api: str, momentum: Any) -> None:
    """Flax's and torch's have none; the first batch does not take their place, as it does at the start."""
    loaded = {"mean": np.full(8, 100.0), "var": np.full(8, 4.0)}
    keep = 0.5 if momentum is None else momentum
    wanted = {
        key: keep * loaded[key] + (1 - keep) * start
        for key, start in {"mean": BATCHES[0].mean(0), "var": BATCHES[0].var(0)}.items()
    }
    if api == "nnx":
        module = new("BatchNorm", bias_corrected=True, momentum=momentum)
        for key, value in loaded.items():
            getattr(module, key)[...] = jnp.float32(value)
        module(BATCHES[0])
        close(running(module), wanted)
        return
    layer = linen_norms.BatchNorm(use_running_average=False, bias_corrected=True, momentum=momentum)
    variables = layer.init(jax.random.key(0), BATCHES[0])
    for stats in (jax.tree.map(jnp.float32, loaded), variables["batch_stats"] | loaded):
        _, new_variables = layer.apply(variables | {"batch_stats": stats}, BATCHES[0], mutable=["batch_stats"])
        close({key: new_variables["batch_stats"][key] for key in loaded}, wanted)


@apis
def test_without_running_statistics_every_batch_is_normalized_by_its_own(api: str) -> None:
    """As ``track_running_stats=False`` in torch: in evaluation too, and nothing is kept."""
    wanted = new("BatchNorm")(X)
    if api == "nnx":
        module = new("BatchNorm", track_running_stats=False, use_running_average=None)
        assert nnx.state(module, nnx.BatchStat) == nnx.State({})
        close(module(X), wanted)
        module.eval()
        close(module(X, use_running_average=True), wanted)
        nnx.Sequential(module).set_attributes(frozen=True)  # as one of many
        close(pickle.loads(pickle.dumps(module))(X), wanted)
        return
    for momentum in (0.99, None):
        layer = linen_norms.BatchNorm(track_running_stats=False, use_running_average=True, momentum=momentum)
        variables = layer.init(jax.random.key(0), X)
        assert set(variables) == {"params"}
        close(layer.apply(variables, X), wanted)


@apis
def test_update_every_pools_the_batches_of_accumulated_gradients(api: str) -> None:
    got = variables_of(api, update_every=3, momentum=0.5)(BATCHES)
    assert {"mean", "var"} < set(got)
    assert all(name.startswith("pending_") for name in set(got) - {"mean", "var"})
    close({key: got[key] for key in ("mean", "var")}, averaged(BATCHES.reshape(1, -1, 8), 0.5))
    early = variables_of(api, update_every=3)(BATCHES[:2])
    close({key: early[key] for key in ("mean", "var")}, {"mean": np.zeros(8), "var": np.ones(8)}, 0)
    twice = variables_of(api, update_every=3, momentum=0.5)(np.concatenate([BATCHES, BATCHES + 1]))
    pooled = BATCHES.reshape(1, -1, 8)
    close({key: twice[key] for key in ("mean", "var")}, averaged(np.concatenate([pooled, pooled + 1]), 0.5))


@apis
def test_batch_renorm_within_its_bounds_is_evaluation_in_training(api: str) -> None:
    """While no bound is met, training gives what evaluation gives; with bounds of nothing, what batch norm gives."""

    def run(**options: Any) -> Any:
        if api == "nnx":
            module = new("BatchRenorm", **options)
            return module(X), module(X, use_running_average=True), running(module)
        module = linen_norms.BatchRenorm(**options)
        variables = module.init(jax.random.key(0), X, use_running_average=False)
        y, new_variables = module.apply(variables, X, use_running_average=False, mutable=["batch_stats"])
        return y, module.apply(variables | new_variables, X, use_running_average=True), new_variables["batch_stats"]

    trained, evaluated, _ = run(momentum=1.0)
    close(trained, evaluated)
    trained, evaluated, stats = run(r_max=1.0, d_max=0.0)
    flax_module = flax_new("BatchNorm")
    close(trained, flax_module(X))
    close(dict(stats), running(flax_module))
    close(evaluated, flax_module(X, use_running_average=True))


# What is refused.


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_number_of_features_is_named(name: str) -> None:
    module = new(name, 4)
    with pytest.raises(ValueError, match=r"(stats\.mean|scale).*\(8,\).*\(4,\)"):
        module(X)
    if name.startswith("Batch"):
        close(running(module), {"mean": np.zeros(4), "var": np.ones(4)}, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.int32, np.complex64, np.bool_])
def test_an_input_that_is_not_real_floating_point_is_named(name: str, dtype: Any) -> None:
    with pytest.raises(TypeError, match=f"^x: .*{np.dtype(dtype).name}"):
        new(name)(X.astype(dtype))
    layer = getattr(linen_norms, name)(**training(name) | usual(name))
    with pytest.raises(TypeError, match=f"^x: .*{np.dtype(dtype).name}"):
        layer.init(jax.random.key(0), X.astype(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_that_does_not_fit_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"^mask: .*\(4, 3, 5, 8\).*\(7,\)"):
        new(name)(X, mask=np.ones(7, bool))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"running_var": "exact"}, ValueError, "^running_var: "),
        ({"update_every": 0}, ValueError, "^update_every: "),
        ({"update_every": 2.5}, TypeError, "^update_every: "),
        ({"frozen": "yes"}, TypeError, "^frozen: "),
        ({"track_running_stats": 0}, TypeError, "^track_running_stats: "),
        ({"track_running_stats": False, "frozen": True}, ValueError, "^track_running_stats: .* frozen is about"),
        (
            {"track_running_stats": False, "update_every": 2, "bias_corrected": True},
            ValueError,
            "^track_running_stats: .* bias_corrected and update_every is about",
        ),
        ({"momentum": 1.5}, ValueError, "^momentum: "),
        ({"epsilon": -1.0}, ValueError, "^epsilon: "),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        new("BatchNorm", **options)(X)
    with pytest.raises(error, match=message):
        linen_norms.BatchNorm(use_running_average=False, **options).init(jax.random.key(0), X)


def test_renorm_needs_running_statistics() -> None:
    with pytest.raises(ValueError, match=r"^track_running_stats: .* r_max is about"):
        new("BatchRenorm", track_running_stats=False)
    with pytest.raises(ValueError, match=r"^track_running_stats: .* r_max is about"):
        linen_norms.BatchRenorm(track_running_stats=False, use_running_average=False).init(jax.random.key(0), X)


def test_linen_groups_are_told_in_one_way() -> None:
    with pytest.raises(ValueError, match=r"num_groups.*group_size"):
        linen_norms.GroupNorm(num_groups=2, group_size=4).init(jax.random.key(0), X)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="momentun"):
        new("BatchNorm", momentun=0.9)


def test_another_promotion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^promote_dtype: "):
        new("LayerNorm", promote_dtype=lambda arrays, dtype: arrays)


# Linen.


def training(name: str) -> dict[str, Any]:
    return {"use_running_average": False} if name.startswith("Batch") else {}


@pytest.mark.parametrize("name", NAMES)
def test_linen_takes_what_flax_takes(name: str) -> None:
    ours, theirs = getattr(linen_norms, name), getattr(nn, flax_name(name))
    assert issubclass(ours, theirs)
    got = inspect.signature(ours).parameters
    for parameter in inspect.signature(theirs).parameters.values():
        assert repr(got[parameter.name].default) == repr(parameter.default), parameter.name
    # By position too, up to Flax's last; after those come parent and name.
    shared = [p for p in inspect.signature(theirs).parameters if p not in ("parent", "name")]
    assert list(got)[: len(shared)] == shared
    call = inspect.signature(ours.__call__).parameters
    assert [(p.name, p.kind, p.default) for p in call.values()] == [
        (p.name, p.kind, p.default) for p in inspect.signature(theirs.__call__).parameters.values()
    ]


def linen_pair(name: str, **options: Any) -> tuple[Any, Any]:
    options = training(name) | options
    return getattr(linen_norms, name)(**options), getattr(nn, flax_name(name))(**options)


@masked_cases
def test_linen_gives_what_flax_gives(name: str, features: int, options: dict[str, Any], mask: Any) -> None:
    ours, theirs = linen_pair(name, **options)
    got, wanted = (module.init(jax.random.key(0), X) for module in (ours, theirs))
    close(got, wanted, 0)
    assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, wanted)
    variables = scrambled(wanted)
    (y, new), (flax_y, flax_new_) = (
        module.apply(variables, X, mask=mask, mutable=["batch_stats"]) for module in (ours, theirs)
    )
    assert y.dtype == flax_y.dtype
    close(y, flax_y)
    close(new, flax_new_)
    if name == "BatchNorm":
        ours, theirs = linen_pair(name, **options | {"use_running_average": True})
        close(ours.apply(variables, X), theirs.apply(variables, X))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "BatchRenorm"])
def test_the_gradients_are_those_of_flax(name: str) -> None:
    """With every option, and of the modules of NNX, they are those of the same kernel."""

    def gradients(module: Any, variables: Any) -> Any:
        params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

        def loss(params: Any, x: Any) -> Any:
            return jnp.sum(module.apply({"params": params} | rest, x, mask=MASK, mutable=["batch_stats"])[0] * G)

        return jax.jit(jax.grad(loss, (0, 1)))(params, X)

    ours, theirs = linen_pair(name, **usual(name))
    variables = scrambled(theirs.init(jax.random.key(0), X))
    close(gradients(ours, variables), gradients(theirs, variables))


def test_linen_batch_norm_has_several_feature_axes() -> None:
    ours, theirs = linen_pair("BatchNorm", axis=(1, -1))
    variables = scrambled(theirs.init(jax.random.key(0), X))
    assert variables["batch_stats"]["mean"].shape == (3, 8)
    for a, b in zip(*(m.apply(variables, X, mutable=["batch_stats"]) for m in (ours, theirs)), strict=True):
        close(a, b)


def test_linen_group_norm_reduces_what_it_is_told() -> None:
    ours, theirs = linen_pair("GroupNorm", num_groups=2, reduction_axes=(2, 3))
    variables = scrambled(theirs.init(jax.random.key(0), X))
    close(ours.apply(variables, X), theirs.apply(variables, X))


@pytest.mark.parametrize("param_dtype", [jnp.float32, BF16])
@pytest.mark.parametrize("force", [True, False])
def test_linen_statistics_are_kept_in_the_dtype_of_flax(param_dtype: Any, force: bool) -> None:
    ours, theirs = linen_pair("BatchNorm", param_dtype=param_dtype, force_float32_reductions=force)
    variables = theirs.init(jax.random.key(0), X)
    _, got = ours.apply(variables, X, mutable=["batch_stats"])
    assert {a.dtype for a in jax.tree.leaves(got)} == {a.dtype for a in jax.tree.leaves(variables["batch_stats"])}
    assert jax.tree.map(lambda a: a.dtype, ours.init(jax.random.key(0), X)) == jax.tree.map(
        lambda a: a.dtype, variables
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_variables_of_a_flax_module_load_into_linen_and_back(name: str) -> None:
    ours, theirs = linen_pair(name, **usual(name))
    fresh = theirs.init(jax.random.key(0), X)
    variables = scrambled(fresh)
    y, _ = ours.apply(variables, X, mutable=["batch_stats"])
    data = flax.serialization.to_bytes(variables)
    loaded = flax.serialization.from_bytes(ours.init(jax.random.key(1), X), data)
    close(loaded, variables, 0)
    close(ours.apply(loaded, X, mutable=["batch_stats"])[0], y, 0)
    back = flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(loaded))
    close(back, variables, 0)
    if name != "BatchRenorm":
        close(theirs.apply(back, X, mutable=["batch_stats"])[0], y)


def test_linen_modules_without_a_name_get_that_of_flax() -> None:
    def model(lib: Any) -> nn.Module:
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                for name in NAMES:
                    if name != "BatchRenorm":
                        x = getattr(lib, name)(**training(name) | usual(name))(nn.Dense(8)(x))
                return x

        return Net()

    ours, theirs = (model(lib).init(jax.random.key(0), X) for lib in (linen_norms, nn))
    close(ours, theirs, 0)
    close(*(model(lib).apply(theirs, X, mutable=["batch_stats"]) for lib in (linen_norms, nn)), 1e-4)


@pytest.mark.parametrize("name", ["BatchNorm", "BatchRenorm"])
def test_linen_init_does_not_update_and_apply_does_where_it_may(name: str) -> None:
    ours = getattr(linen_norms, name)(use_running_average=False)
    variables = ours.init(jax.random.key(0), X)
    close(variables["batch_stats"], {"mean": np.zeros(8), "var": np.ones(8)}, 0)
    _, new = ours.apply(variables, X, mutable=["batch_stats"])
    assert set(new) == {"batch_stats"}
    close(new["batch_stats"]["mean"], 0.01 * X.mean((0, 1, 2)))
    assert float(jnp.abs(new["batch_stats"]["mean"]).max()) > 1e-3
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        ours.apply(variables, X)
    close(getattr(linen_norms, name)(use_running_average=True).apply(variables, X), X / np.sqrt(1 + 1e-5))


def test_linen_use_running_average_is_given_once() -> None:
    module = linen_norms.BatchNorm()
    variables = module.init(jax.random.key(0), X, use_running_average=True)
    close(module.apply(variables, X, True), nn.BatchNorm().apply(variables, X, True))
    with pytest.raises(ValueError, match="use_running_average"):
        module.apply(variables, X)
    with pytest.raises(ValueError, match="use_running_average"):
        linen_norms.BatchNorm(use_running_average=True).apply(variables, X, use_running_average=False)


def test_linen_frozen_statistics_stay_and_gradients_flow() -> None:
    ours = linen_norms.BatchNorm(use_running_average=False, frozen=True)
    variables = scrambled(ours.init(jax.random.key(0), X))
    stats = variables["batch_stats"]

    def loss(params: Any) -> Any:
        y, new = ours.apply(variables | {"params": params}, X, mutable=["batch_stats"])
        return jnp.sum(y * G), (y, new)

    gradients, (y, new) = jax.grad(loss, has_aux=True)(variables["params"])
    close(new["batch_stats"], stats, 0)
    normalized = (X - np.asarray(stats["mean"])) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
    close(gradients, {"bias": G.sum((0, 1, 2)), "scale": (normalized * G).sum((0, 1, 2))})
    close(y, normalized * variables["params"]["scale"] + variables["params"]["bias"])
    close(ours.apply(variables, X), y, 0)  # nothing is written, so nothing needs to be mutable


def test_linen_shards_of_a_named_axis_share_statistics() -> None:
    """The axis need not exist while the module is made."""
    ours, _ = linen_pair("BatchNorm", axis_name="shard")
    variables = ours.init(jax.random.key(0), BATCHES[0])
    mask = np.random.RandomState(2).uniform(size=(3, 6, 1)) < 0.6
    mask[1] = False
    y, new = jax.vmap(
        lambda x, mask: ours.apply(variables, x, mask=mask, mutable=["batch_stats"]),
        out_axes=(0, None),
        axis_name="shard",
    )(BATCHES, mask)
    whole, _ = linen_pair("BatchNorm")
    wanted, wanted_new = whole.apply(
        variables, BATCHES.reshape(-1, 8), mask=mask.reshape(-1, 1), mutable=["batch_stats"]
    )
    close(y.reshape(-1, 8), wanted)
    close(new, wanted_new)


def test_linen_modules_work_under_remat_and_jit() -> None:
    kind = linen_norms.BatchNorm
    plain, remat = (kind(use_running_average=False) for kind in (kind, nn.remat(kind)))
    variables = scrambled(plain.init(jax.random.key(0), X))

    def step(module: Any) -> Any:
        return jax.jit(
            jax.value_and_grad(
                lambda x: (lambda y, new: (jnp.sum(y * G), new))(*module.apply(variables, x, mutable=["batch_stats"])),
                has_aux=True,
            )
        )(X)

    close(step(remat), step(plain))
