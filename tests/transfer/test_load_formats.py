"""Each format there and back: Linen variables, states of NNX, shapes alone, shardings."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.flax import save_file

from gradxform.core.trees import paths
from gradxform.transfer.load import load_pretrained


class Network(nnx.Module):
    """Variables of several kinds and dtypes, in a list too."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=rngs)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))


def filled(tree: Any) -> Any:
    """Numbers that differ everywhere, without drawing any."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        treedef,
        [jnp.asarray(np.arange(leaf.size).reshape(leaf.shape) + 100 * i, leaf.dtype) for i, leaf in enumerate(leaves)],
    )


NNX = filled(nnx.state(nnx.eval_shape(lambda: Network(nnx.Rngs(0)))))
LINEN = filled(jax.eval_shape(lambda: LinenNetwork().init(jax.random.key(0), jnp.ones((1, 2)))))


def flat(tree: Any, separator: str) -> dict[str, jax.Array]:
    return {path.replace("/", separator): leaf for path, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True)}


def write_safetensors(folder: pathlib.Path, tree: Any) -> pathlib.Path:
    save_file(flat(tree, "."), folder / "model.safetensors")
    return folder / "model.safetensors"


def write_npz(folder: pathlib.Path, tree: Any) -> pathlib.Path:
    # NumPy has no bfloat16 in its files; the cast back is exact.
    np.savez(folder / "model.npz", **{name: np.asarray(leaf, np.float32) for name, leaf in flat(tree, "/").items()})
    return folder / "model.npz"


def write_standard(folder: pathlib.Path, tree: Any) -> pathlib.Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "model", tree)
    return folder / "model"


def write_pytree(folder: pathlib.Path, tree: Any) -> pathlib.Path:
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(folder / "model", nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree)
    return folder / "model"


FORMATS: dict[str, Callable[[pathlib.Path, Any], pathlib.Path]] = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "orbax": write_standard,
    "orbax_pytree": write_pytree,
}


@pytest.mark.parametrize("tree", [NNX, LINEN], ids=["nnx", "linen"])
@pytest.mark.parametrize("form", FORMATS)
def test_round_trip(tmp_path: pathlib.Path, form: str, tree: Any) -> None:
    path = FORMATS[form](tmp_path, tree)
    for params in (jax.tree.map(jnp.zeros_like, tree), jax.eval_shape(lambda: tree)):
        loaded, report = load_pretrained(path, params)
        assert jax.tree.structure(loaded) == jax.tree.structure(tree)
        for made, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
            assert isinstance(made, jax.Array) and made.dtype == expected.dtype and not made.committed
            np.testing.assert_array_equal(made, expected)
        assert [item.path for item in report.loaded] == paths(tree)
        assert report.size == sum(leaf.size for leaf in jax.tree.leaves(tree))
        assert report.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        assert not (report.new or report.skipped or report.unused or report.idle)
        changed = {item.path for item in report.transformed}
        assert changed == ({"layers/1/kernel", "layers/1/bias"} if form == "npz" and tree is NNX else set())


def test_a_module_itself(tmp_path: pathlib.Path) -> None:
    graph, state = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))
    model = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))
    loaded, _ = load_pretrained(write_safetensors(tmp_path, NNX), nnx.state(model))
    nnx.update(model, loaded)
    np.testing.assert_array_equal(model.layers[0].kernel[...], NNX["layers"][0]["kernel"][...])


def test_part_of_a_training_checkpoint(tmp_path: pathlib.Path) -> None:
    """What is not wanted of an Orbax checkpoint, the state of an optimizer or a count, is not read."""
    tree = {
        "params": {"a": jnp.ones(2), "b": [jnp.full(3, 2.0), jnp.full(3, 3.0)]},
        "step": 5,
        "none": None,
        "opt_state": ({}, {"mu": {"a": jnp.zeros(2)}}),
    }
    path = write_standard(tmp_path, tree)
    loaded, report = load_pretrained(
        path,
        {"a": np.zeros(2, np.float32), "b": [np.zeros(3, np.float32)] * 2},
        rename={"^params/": ""},
        skip=["^opt_state/", "^step$"],
    )
    np.testing.assert_array_equal(loaded["b"][1], np.full(3, 3))
    assert set(report.skipped) == {"opt_state/1/mu/a", "step"}
    # Where the numbers of what is not wanted are lost, nobody needs them.
    apart = tmp_path / "apart"
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(apart, {"a": np.ones(2, np.float32), "mu": np.ones(2, np.float32)})
    (apart / "mu" / "0").unlink()
    assert load_pretrained(apart, {"a": np.zeros(2, np.float32)}, skip="mu")[1].size == 2
    with pytest.raises(ValueError, match=r"opt_state/1/mu/a \(2,\) float32 in the file: there is no param"):
        load_pretrained(path, {"a": np.zeros(2)}, rename={"^params/": ""}, skip="^step$")


def test_shardings_and_devices_are_kept(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "model.npz", a=np.arange(4.0), b=np.arange(4.0), c=np.arange(4.0))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    params = {
        "a": jax.device_put(jnp.zeros(4), split),
        "b": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=split),
        "c": jnp.zeros(4),
    }
    loaded, _ = load_pretrained(tmp_path / "model.npz", params)
    for name, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, np.arange(4.0))
        assert leaf.committed == (name != "c") and (name == "c" or leaf.sharding == split)


def test_eight_bit_floats(tmp_path: pathlib.Path) -> None:
    arrays = {"a": jnp.arange(4, dtype=jnp.float8_e4m3fn), "b": jnp.arange(6, dtype=jnp.float8_e5m2).reshape(2, 3)}
    path = write_safetensors(tmp_path, arrays)
    loaded, report = load_pretrained(path, {"a": jnp.zeros(4, jnp.float8_e4m3fn), "b": jnp.zeros((2, 3))})
    np.testing.assert_array_equal(loaded["a"].astype(jnp.float32), np.arange(4))
    np.testing.assert_array_equal(loaded["b"], np.arange(6).reshape(2, 3))
    assert report.transformed[0].changes == ("from float8_e5m2",)
