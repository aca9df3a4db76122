"""Torch's norms in float64, forward and backward, against ours; batch norms brought over from torch and back.

``golden/make_torch_norms.py`` made torch's side. Its channels are second.
"""

from __future__ import annotations

import functools
import pathlib
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
MAKER = runpy.run_path(str(GOLDEN / "make_torch_norms.py"))
SIZES, SHARDS = MAKER["SIZES"], MAKER["SHARDS"]
START = {"running_mean": np.zeros(4), "running_var": np.ones(4), "num_batches_tracked": np.array(0)}

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(GOLDEN / "torch_norms.npz") as file:
        arrays = dict(file)
    for key, value in MAKER["problem"]().items():  # torch saw these very arrays
        np.testing.assert_allclose(arrays[f"sums/{key}"], np.sum(value**2), rtol=1e-12)
    return arrays


@functools.cache
def problem(bits: int) -> dict[str, jax.Array]:
    return {key: jnp.asarray(value, f"float{bits}") for key, value in MAKER["problem"]().items()}


def parameters(name: str, bits: int, golden: Arrays) -> dict[str, jax.Array]:
    """Those that torch's module of this case had, by our names."""
    made, which = problem(bits), MAKER["parameters"](name)
    return {
        ours: made[f"{theirs}_{which}"]
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
        if f"{name}/d{theirs}" in golden
    }


def assert_pass(
    call: Any, params: dict[str, jax.Array], x: jax.Array, g: jax.Array, golden: Arrays, prefix: str, bits: int
) -> None:
    """Output and gradients of ``call(x, params)`` are torch's."""
    y, pull = jax.vjp(call, x, params)
    dx, dparams = pull(g)
    found = {"y": y, "dx": dx} | {f"d{key.replace('scale', 'weight')}": value for key, value in dparams.items()}
    assert {f"{prefix}/{key}" for key in found} == {
        key
        for key in golden
        if key.startswith(prefix) and key.removeprefix(prefix + "/") in ("y", "dx", "dweight", "dbias")
    }
    for key, value in found.items():
        assert_close(value, golden[f"{prefix}/{key}"], bits, key)


def assert_close(got: Any, wanted: np.ndarray, bits: int, what: str = "") -> None:
    tolerance = (1e-5 if bits == 32 else 1e-12) * max(1, np.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance, err_msg=what)


OURS: dict[str, tuple[Any, dict[str, Any]]] = {
    "layer": (gx.norm.layer_norm, {"axis": (2, 3), "epsilon": 1e-5}),
    "layer_last": (gx.norm.layer_norm, {"epsilon": 1e-2}),
    "rms": (gx.norm.rms_norm, {"axis": (2, 3), "epsilon": 1e-3}),
    "group": (gx.norm.group_norm, {"num_groups": 2, "axis": 1, "epsilon": 1e-5}),
    "instance": (gx.norm.instance_norm, {"axis": 1, "epsilon": 1e-5}),
    "instance_plain": (gx.norm.instance_norm, {"axis": 1, "epsilon": 1e-2}),
}


def test_every_torch_run_is_compared() -> None:
    assert OURS.keys() == MAKER["SINGLE"].keys()


@pytest.mark.parametrize("name", OURS)
def test_gives_what_torch_gives(name: str, golden: Arrays, bits: int) -> None:
    kernel, options = OURS[name]
    made = problem(bits)
    assert_pass(
        lambda x, params: kernel(x, **params, **options),
        parameters(name, bits, golden),
        made["x1"],
        made["g1"],
        golden,
        name,
        bits,
    )


def started(name: str, bits: int, golden: Arrays) -> tuple[dict[str, jax.Array], gx.norm.BatchStats, dict[str, Any]]:
    """A torch batch norm before its first batch, as ours."""
    arguments = MAKER["BATCH"].get(name, {})
    params = parameters(name, bits, golden)
    _, stats, options = gx.norm.batch_norm_from_torch(
        START, momentum=arguments.get("momentum", 0.1), eps=arguments.get("eps", 1e-5)
    )
    dtype = f"float{bits}"
    return params, jax.tree.map(lambda a: a.astype(dtype), stats), options | {"axis": 1}


@pytest.mark.parametrize("bits", [64], indirect=True, ids=["f64"])
@pytest.mark.parametrize("name", MAKER["BATCH"])
def test_trains_and_evaluates_as_torch_does(name: str, golden: Arrays, bits: int) -> None:
    params, stats, options = started(name, bits, golden)
    made = problem(bits)
    for t in range(len(SIZES)):
        before = stats
        _, stats = gx.norm.batch_norm(made[f"x{t}"], before, **params, **options, use_running_average=False)
        assert_close(stats.mean, golden[f"{name}/means"][t], bits, f"running mean {t}")
        assert_close(stats.var, golden[f"{name}/vars"][t], bits, f"running variance {t}")
    x, g = made[f"x{t}"], made[f"g{t}"]
    for prefix, average in ((name, False), (f"{name}/eval", True)):
        used = stats if average else before
        assert_pass(
            lambda x, params: gx.norm.batch_norm(x, used, **params, **options, use_running_average=average)[0],
            params,
            x,
            g,
            golden,
            prefix,
            bits,
        )


@pytest.mark.parametrize("bits", [64], indirect=True, ids=["f64"])
def test_unequal_shards_train_as_synced_batches_of_torch_do(golden: Arrays, bits: int) -> None:
    params, stats, options = started("sync", bits, golden)
    made = problem(bits)
    last = len(SIZES)
    x, g = (np.split(np.asarray(made[f"{key}{last}"]), np.cumsum(SHARDS)[:-1]) for key in "xg")
    most = max(SHARDS)
    padded, weights = (
        jnp.stack([np.pad(part, [(0, most - len(part))] + [(0, 0)] * 3, constant_values=fill) for part in parts])
        for parts, fill in ((x, 7.0), (g, 0.0))
    )
    mask = np.arange(most)[:, None, None, None] < np.reshape(SHARDS, (-1, 1, 1, 1, 1))

    def synced(x: Any, params: Any) -> Any:
        return jax.vmap(
            lambda x, mask: gx.norm.batch_norm(
                x, stats, **params, **options, use_running_average=False, mask=mask, axis_name="shards"
            ),
            axis_name="shards",
        )(x, mask)

    (y, new), pull = jax.vjp(synced, padded, params)
    dx, dparams = pull((weights, jax.tree.map(jnp.zeros_like, new)))
    kept = np.broadcast_to(mask, y.shape[:2] + (1, 1, 1))[..., 0, 0, 0]
    assert_close(np.asarray(y)[kept], golden["sync/y"], bits, "y")
    assert_close(np.asarray(dx)[kept], golden["sync/dx"], bits, "dx")
    assert not np.any(np.asarray(dx)[~kept])
    assert_close(dparams["scale"], golden["sync/dweight"], bits, "dweight")
    assert_close(dparams["bias"], golden["sync/dbias"], bits, "dbias")
    for shard in range(len(SHARDS)):
        assert_close(new.mean[shard], golden["sync/means"][0], bits)
        assert_close(new.var[shard], golden["sync/vars"][0], bits)


# ---- from torch and back ----


def state_of(name: str, golden: Arrays) -> Arrays:
    prefix = f"{name}/state/"
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", MAKER["BATCH"])
def test_a_batch_norm_from_torch_evaluates_as_it_did(name: str, golden: Arrays) -> None:
    arguments = MAKER["BATCH"][name]
    params, stats, options = gx.norm.batch_norm_from_torch(
        state_of(name, golden), momentum=arguments.get("momentum", 0.1), eps=arguments.get("eps", 1e-5)
    )
    assert params.keys() == (set() if name == "batch_plain" else {"scale", "bias"})
    last = len(SIZES) - 1
    x = jnp.asarray(MAKER["problem"]()[f"x{last}"], jnp.float32)
    y, _ = gx.norm.batch_norm(x, stats, **params, **options, axis=1, use_running_average=True)
    assert_close(y, golden[f"{name}/eval/y"], 32)


@pytest.mark.parametrize("name", MAKER["BATCH"])
def test_training_goes_on_in_the_middle(name: str, golden: Arrays) -> None:
    arguments, made = MAKER["BATCH"][name], problem(32)
    half = 2
    state = state_of(name, golden) | {
        "running_mean": golden[f"{name}/means"][half - 1],
        "running_var": golden[f"{name}/vars"][half - 1],
        "num_batches_tracked": np.array(half),
    }
    params, stats, options = gx.norm.batch_norm_from_torch(
        state, momentum=arguments.get("momentum", 0.1), eps=arguments.get("eps", 1e-5)
    )
    for t in range(half, len(SIZES)):
        _, stats = gx.norm.batch_norm(made[f"x{t}"], stats, **params, **options, axis=1, use_running_average=False)
        assert_close(stats.mean, golden[f"{name}/means"][t], 32)
        assert_close(stats.var, golden[f"{name}/vars"][t], 32)


@pytest.mark.parametrize("name", MAKER["BATCH"])
def test_to_torch_and_back(name: str, golden: Arrays) -> None:
    arguments, state = MAKER["BATCH"][name], state_of(name, golden)
    theirs = {"momentum": arguments.get("momentum", 0.1), "eps": arguments.get("eps", 1e-5)}
    params, stats, options = gx.norm.batch_norm_from_torch(state, **theirs)
    back, again = gx.norm.batch_norm_to_torch(params, stats, **options)
    assert again["eps"] == theirs["eps"]
    assert again["momentum"] == pytest.approx(theirs["momentum"]) if theirs["momentum"] else again["momentum"] is None
    assert back.keys() == state.keys()
    for key, value in back.items():
        assert isinstance(value, np.ndarray)
        if key != "num_batches_tracked" or theirs["momentum"] is None:
            np.testing.assert_allclose(value, state[key], rtol=1e-6, err_msg=key)


def test_a_count_makes_the_variance_biased_and_back() -> None:
    state = START | {"running_var": np.array([1.0, 2.0, 3.0, 4.0])}
    _, stats, options = gx.norm.batch_norm_from_torch(state, count=8)
    np.testing.assert_allclose(stats.var, state["running_var"] * 7 / 8, rtol=1e-6)
    assert options["running_var"] == "biased"
    back, _ = gx.norm.batch_norm_to_torch({}, stats, count=8)
    np.testing.assert_allclose(back["running_var"], state["running_var"], rtol=1e-6)


def test_numpy_and_jax_arrays_and_lists_are_taken() -> None:
    lists = {"running_mean": [1.0, 2.0], "running_var": [3.0, 4.0], "weight": [5.0, 6.0], "bias": [7.0, 8.0]}
    for make in (list, np.array, jnp.array, np.float32):
        params, stats, _ = gx.norm.batch_norm_from_torch({key: make(value) for key, value in lists.items()})
        y, _ = gx.norm.batch_norm(jnp.ones((1, 2)), stats, **params, use_running_average=True, epsilon=1.0)
        np.testing.assert_allclose(y, [[7.0, 8 - 6 / np.sqrt(5)]], rtol=1e-6)
