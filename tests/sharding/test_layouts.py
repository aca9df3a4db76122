"""Where state and params are to lie, tables of it, and what is refused; on one device, whose mesh divides nothing."""

from __future__ import annotations

import json
import pickle
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx
from gradxform.sharding.hlo import parse
from gradxform.sharding.traffic import _groups

sharding = gx.sharding
KINDS = (AxisType.Auto, AxisType.Explicit)


def mesh(data: int = 4, model: int = 2, kind: AxisType = AxisType.Auto) -> AbstractMesh:
    return AbstractMesh((data, model), ("data", "model"), axis_types=(kind, kind))


def struct(shape: tuple[int, ...], spec: P | None = None, over: AbstractMesh | None = None) -> jax.ShapeDtypeStruct:
    lies = NamedSharding(mesh() if over is None else over, spec or P())
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=lies)


def specs(tree: Any) -> dict[str, P]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_state_lies_as_what_it_was_made_of(kind: AxisType) -> None:
    over = mesh(kind=kind)
    params = {"square": struct((16, 16), P("data", "model"), over), "bias": struct((16,), P("model"), over)}
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adafactor(0.1, 4, factored_axes="last"))
    assert specs(sharding.state_sharding(tx, params)) == {
        "1/0/count": P(),
        "1/0/v_row/bias": P(None),
        "1/0/v_row/square": P("data"),
        "1/0/v_col/bias": P(None),
        "1/0/v_col/square": P("model"),
        "1/0/v/bias": P("model"),
        "1/0/v/square": P(None),
    }


def test_state_of_another_library_and_of_codes() -> None:
    import optax

    params = {"w": struct((16, 8), P("data", "model"))}
    assert specs(sharding.state_sharding(optax.MultiSteps(optax.adam(0.1), 2), params))["acc_grads/w"] == P(
        "data", "model"
    )
    found = sharding.state_sharding(gx.precision.compress_state(gx.adam(0.1), "int8_blockwise", min_size=1), params)
    assert found[0].mu["w"].code[0].spec == P("data", "model")


@pytest.mark.parametrize(
    ("codec", "spec"),
    [
        (gx.precision.int8_blockwise(), P(None, None)),
        (gx.precision.int8_blockwise(32), P(None, "data")),  # whole blocks on each device
        (gx.precision.int4_blockwise(256), P(None, None)),  # a block on two devices
        (gx.precision.int8_blockwise(128, code="dynamic"), P(None, "data")),
    ],
)
def test_codes_of_rows_in_pieces(codec: gx.precision.Codec, spec: P) -> None:
    over = mesh(kind=AxisType.Explicit)
    params = {"w": struct((16, 512), P(None, "data"), over)}
    tx = gx.precision.compress_state(gx.adam(0.1), codec, min_size=1)
    code, scales = sharding.state_sharding(tx, params)[0].nu["w"].code
    assert (code.spec, scales.spec) == (P(None, "data"), spec)
    with jax.sharding.use_abstract_mesh(over):
        _, state = jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    assert [x.sharding.spec for x in state[0].nu["w"].code] == [code.spec, spec]


def test_shardings_may_be_given() -> None:
    params = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32)}
    given = {"w": NamedSharding(mesh(), P("data"))}
    assert sharding.state_sharding(gx.adam(0.1), params, given)[0].nu["w"].spec == P("data", None)


def test_boxes_and_variables() -> None:
    over = mesh()
    params = {
        "p": nn.Partitioned(jax.ShapeDtypeStruct((16, 8), jnp.float32), names=(None, "model")),
        "l": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((16, 64), jnp.float32), names=("embed", "mlp")),
    }
    with nn.logical_axis_rules([("mlp", "model")]):
        assert specs(sharding.fsdp(params, over, min_size=0)) == {
            "p/value": P("data", "model"),
            "l/value": P("data", "model"),
        }
    state = nnx.State({"w": nnx.Param(jax.ShapeDtypeStruct((16, 8), jnp.float32))})
    assert [s.spec for s in jax.tree.leaves(sharding.fsdp(state, over, min_size=0))] == [P("data", None)]


def test_rules_first_then_the_largest_free_dimension() -> None:
    shapes = {"embed": struct((64, 8)), "wide": struct((8, 64)), "small": struct((4,)), "odd": struct((9, 7))}
    found = sharding.fsdp(shapes, mesh(), rules=[("embed", (None, "model"))], min_size=64)
    assert specs(found) == {"embed": P(None, "model"), "wide": P(None, "data"), "small": P(None), "odd": P(None, None)}


def test_several_axes_divide_one_dimension_or_each_its_own() -> None:
    shapes = {"wide": (8, 64), "two": (6, 4, 3), "equal": (4, 4), "part": (6, 3), "odd": (9, 7)}
    found = sharding.fsdp(
        {name: struct(shape) for name, shape in shapes.items()}, mesh(), ("data", "model"), min_size=0
    )
    assert specs(found) == {
        "wide": P(None, ("data", "model")),
        "two": P("model", "data", None),
        "equal": P("data", "model"),
        "part": P("model", None),
        "odd": P(None, None),
    }
    assert [row.spare for row in sharding.layout({"two": struct((6, 4, 3), P(None, "data"))}).rows] == [36]


@pytest.mark.parametrize("kind", KINDS)
def test_zero1_divides_on_top_of_another_axis(kind: AxisType) -> None:
    over = mesh(kind=kind)
    params = {
        "tall": struct((32, 8), P(None, "model"), over),
        "small": struct((2, 2), P(), over),
        "odd": struct((3, 5), P(), over),
    }
    tx = sharding.zero1(gx.adam(0.1), min_size=17)
    assert specs(sharding.state_sharding(tx, params)) == {
        "0/count": P(),
        **{
            f"0/{name}/{leaf}": spec
            for name in ("mu", "nu")
            for leaf, spec in {"tall": P("data", "model"), "small": P(None, None), "odd": P(None, None)}.items()
        },
    }


def test_zero1_is_a_value() -> None:
    tx = sharding.zero1(gx.chain(gx.clip(1.0), gx.adamw(0.1)), ("replica", "data"), rules=[("kernel", 0)])
    assert gx.from_config(json.loads(json.dumps(gx.to_config(tx)))) == tx == pickle.loads(pickle.dumps(tx))


def test_the_shapes_of_every_leaf_decide_together_over_whole_ones() -> None:
    params = {"w": struct((16, 8), P("data")), "v": struct((16, 8)), "s": struct((3,))}
    table = sharding.layout(params)
    assert [(row.path, row.bytes, row.spare) for row in table.rows] == [("s", 12, 0), ("v", 512, 448), ("w", 128, 64)]
    with pytest.raises(gx.ShardingError, match=r"at most 2\.0% of the 652 bytes .* got 78\.5%: 'v' \[16, 8\]"):
        table.check()
    table.check(tolerance=0.8)
    assert str(table).splitlines()[-1].split() == ["all", "652", "512"]


PARAMS = {"w": struct((16, 8)), "b": struct((16,), P("data"))}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sharding.fsdp(PARAMS, mesh(), "batch"),
            "axis: expected an axis of the mesh, 'data', 'model', got 'bat",
        ),
        (
            lambda: sharding.fsdp(PARAMS, mesh(), rules=[("w", (None, None, "data"))]),
            r"'w': expected a spec of at most 2 entries for shape \(16, 8\)",
        ),
        (
            lambda: sharding.fsdp({"w": struct((6, 8))}, mesh(), rules=[("w", ("data",))]),
            r"'w': expected a multiple of 4 along axis 0, divided over 'data', got 6",
        ),
        (
            lambda: sharding.state_sharding(gx.adam(0.1), {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}),
            r"params: expected a mesh, got none: put it in context with jax.set_mesh",
        ),
        (
            lambda: sharding.state_sharding(gx.adam(0.1), {"a": struct((8,)), "b": struct((8,), P(), mesh(2, 4))}),
            "params: expected leaves on one mesh, got data=4 x model=2 at 'a' and data=2 x model=4 at 'b'",
        ),
        (lambda: sharding.state_sharding(sharding.zero1(gx.adam(0.1), "rows"), PARAMS), "axis: expected an axis of"),
        (
            lambda: sharding.state_sharding(sharding.zero1(gx.adam(0.1)), PARAMS),
            r"zero1: expected params that 'data' does not divide, got 'b'",
        ),
        (
            lambda: sharding.state_sharding(
                sharding.zero1(sharding.zero1(gx.adam(0.1), min_size=0), "model"), {"w": struct((16, 8))}
            ),
            "zero1: expected a transformation whose state is not divided",
        ),
        (
            lambda: sharding.state_sharding(
                sharding.zero1(gx.adam(0.1), min_size=0), {"w": struct((16, 8), P("model"))}
            ),
            r"zero1: expected nothing else to divide dimension 0 of 'w', .*rules=\[\('w', dimension\)\]",
        ),
        (
            lambda: sharding.state_sharding(sharding.zero1(gx.adam(0.1), rules=[("w", 1)]), {"w": struct((16, 6))}),
            r"rules: expected for 'w' a dimension of \(16, 6\) that comes in 4 equal pieces, got 1",
        ),
        (
            lambda: sharding.global_batch({"x": np.ones((4, 2)), "y": np.ones(3)}, NamedSharding(mesh(), P("data"))),
            "global_batch: expected the same number of rows in every leaf",
        ),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(gx.ShardingError, match=message):
        make()


def test_refused_by_type() -> None:
    with pytest.raises(ValueError, match="shardings and params do not fit at 'b'"):
        sharding.state_sharding(gx.adam(0.1), PARAMS, {"w": P()})
    with pytest.raises(TypeError, match="params: expected an array at 'b', got a ShapeDtypeStruct"):
        sharding.init(gx.adam(0.1), PARAMS)
    for read in (lambda x: float(jnp.sum(x)), np.asarray, lambda x: range(x.shape[0])[jnp.int32(x[0, 0])]):
        reads = gx.stateless(lambda updates, params: updates)._replace(init=lambda params, read=read: read(params["w"]))
        with pytest.raises(TypeError, match="tx: expected a transformation that starts from shapes and dtypes, got"):
            sharding.state_sharding(reads, {"w": struct((8, 4))})
    with pytest.raises(TypeError, match="compiled: expected jax"):
        sharding.traffic("HloModule")
    for address, processes, index, message in (
        ("host", 2, 0, "address: expected 'host:port'"),
        ("host:1", 2, 2, "index: expected a number from 0 to 1"),
        ("host:1", 2, None, "index: expected a number from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sharding.join(address, processes, index)


@pytest.mark.parametrize(
    ("attribute", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=4], device_ids=([2,2]T(1,0)) {'a'}", [(0, 2, 1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [(0, 1), (2, 3)]),
    ],
)
def test_groups_in_all_spellings(attribute: str, groups: list[tuple[int, ...]]) -> None:
    program = parse(
        f"ENTRY %main (x: f32[4]) -> f32[4] {{\n  %x = f32[4]{{0}} parameter(0)\n"
        f"  ROOT %sum = f32[4]{{0}} all-reduce(%x), channel_id=1, {attribute}, to_apply=%add\n}}\n"
    )
    assert _groups(program.entry.root) == groups


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_around_factored_moments_name_the_axes_that_are_left(kind: AxisType) -> None:
    tx = gx.adafactor(0.1, 4, factored_axes="last")
    params = {
        "w": nn.Partitioned(jnp.ones((8, 16)), names=("data", "model")),
        "b": nn.LogicallyPartitioned(jnp.ones(8), names=("embed",)),
    }
    state = tx.init(params)
    assert [state[0].v_row["w"].names, state[0].v_col["w"].names, state[0].v_row["b"].names] == [
        ("data",),
        ("model",),
        (None,),
    ]
    updates, new = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "model"), axis_types=(kind,) * 2)):
        model = nnx.Linear(8, 16, kernel_metadata={"out_sharding": ("data", "model")}, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.state(model, nnx.Param)))(model, optimizer)
        assert optimizer.opt_state[0].v_row["kernel"].get_metadata()["out_sharding"] == ("data",)
