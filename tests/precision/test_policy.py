"""Policy: which dtype params, arithmetic and results have; with norms and logits kept, in plain jax, NNX and Linen."""

from __future__ import annotations

import json
import pickle
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import gradxform as gx

Policy = gx.precision.Policy
KEEP = gx.path_matches("norm|logits")
POLICY = Policy(keep=KEEP)
PARAMS = {"dense": jnp.full((4, 8), 0.1), "norm": jnp.ones(8), "logits": jnp.full((8, 3), 0.1), "table": jnp.arange(3)}
BF16, F32 = jnp.bfloat16, jnp.float32


def dtypes(tree: Any) -> list[str]:
    return [str(leaf.dtype) for leaf in jax.tree.leaves(tree)]


def test_each_leaf_has_its_dtype() -> None:
    cast = POLICY.cast_params(PARAMS)
    assert {name: str(leaf.dtype) for name, leaf in cast.items()} == {
        "dense": "bfloat16",
        "norm": "float32",
        "logits": "float32",
        "table": "int32",
    }
    batch = {"x": jnp.ones(2), "label": jnp.arange(2), "key": jax.random.key(0), "wave": jnp.ones(2, jnp.complex64)}
    assert {name: str(leaf.dtype) for name, leaf in POLICY.cast_inputs(batch).items()} == {
        "x": "bfloat16",
        "label": "int32",
        "key": "key<fry>",
        "wave": "complex64",
    }
    assert dtypes(POLICY.cast_output((jnp.ones(2, BF16), jnp.arange(2)))) == ["float32", "int32"]
    assert dtypes(Policy("bfloat16", keep="norm").cast_params({"norm": jnp.ones(2), "w": jnp.ones(2)})) == [
        "bfloat16",
        "bfloat16",
    ]


def test_a_decorated_function_computes_in_the_dtypes_and_gives_gradients_in_that_of_the_params() -> None:
    seen = {}

    @POLICY
    def forward(params: Any, x: jax.Array, *, scale: jax.Array) -> jax.Array:
        """Of a net."""
        hidden = gx.norm.layer_norm(x @ params["dense"], params["norm"])
        logits = hidden @ params["logits"] * scale
        seen.update(x=x.dtype, hidden=hidden.dtype, logits=logits.dtype, scale=scale.dtype)
        return logits.astype(BF16)

    params = {name: leaf for name, leaf in PARAMS.items() if name != "table"}
    assert forward.__name__ == "forward" and forward.__doc__ == "Of a net."
    assert forward(params, jnp.ones((2, 4)), scale=jnp.float32(2)).dtype == F32
    assert seen == {"x": BF16, "hidden": BF16, "logits": F32, "scale": BF16}
    grads = jax.grad(lambda params: jnp.sum(forward(params, jnp.ones((2, 4)), scale=jnp.float32(2))))(params)
    assert {*dtypes(grads)} == {"float32"}


class Block(nnx.Module):
    """Norm and logits kept: a layer computes in the dtype of its params, a norm leaves in that of arithmetic."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 8, rngs=rngs)
        self.norm = gx.norm.nnx.LayerNorm(8, dtype=POLICY.compute, rngs=rngs)
        self.logits = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = self.norm(self.dense(x))
        return hidden, self.logits(hidden)


def test_nnx_with_norms_and_logits_kept() -> None:
    graph, params = nnx.split(Block(nnx.Rngs(0)))
    seen = {}

    @POLICY
    def forward(params: Any, x: jax.Array) -> jax.Array:
        hidden, logits = nnx.merge(graph, params)(x)
        seen.update(hidden=hidden.dtype, logits=logits.dtype)
        return logits

    assert forward(params, jnp.ones((2, 4))).dtype == F32
    assert seen == {"hidden": BF16, "logits": F32}
    grads = jax.grad(lambda params: jnp.sum(forward(params, jnp.ones((2, 4)))))(params)
    assert {*dtypes(grads)} == {"float32"}
    params, _ = gx.precision.split(params, gx.precision.master_weights(gx.adam(1e-3)), keep=KEEP)
    assert {"/".join(map(str, path)): str(leaf[...].dtype) for path, leaf in nnx.to_flat_state(params)} == {
        "dense/bias": "bfloat16",
        "dense/kernel": "bfloat16",
        "logits/bias": "float32",
        "logits/kernel": "float32",
        "norm/bias": "float32",
        "norm/scale": "float32",
    }


class LinenBlock(nn.Module):
    """As ``Block``."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = gx.norm.linen.LayerNorm(dtype=POLICY.compute, name="norm")(nn.Dense(8, name="dense")(x))
        return hidden, nn.Dense(3, name="logits")(hidden)


def test_linen_with_norms_and_logits_kept() -> None:
    model = LinenBlock()
    variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
    seen = {}

    @POLICY
    def forward(variables: Any, x: jax.Array) -> jax.Array:
        hidden, logits = model.apply(variables, x)
        seen.update(hidden=hidden.dtype, logits=logits.dtype)
        return logits

    assert forward(variables, jnp.ones((2, 4))).dtype == F32
    assert seen == {"hidden": BF16, "logits": F32}


def test_a_policy_is_a_value() -> None:
    policy = POLICY
    assert repr(policy) == (
        "precision.Policy(params='float32', compute='bfloat16', output='float32', "
        "keep=path_matches(pattern='norm|logits'))"
    )
    assert isinstance(policy, Policy) and policy == Policy(compute=jnp.bfloat16, keep=KEEP)
    assert hash(policy) == hash(Policy(keep=KEEP)) and policy != Policy()
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert gx.from_config(json.loads(json.dumps(gx.to_config(policy)))) == policy
    assert policy.replace(compute="float16") == Policy(compute="float16", keep=KEEP)
    assert (policy.params, policy.compute, policy.output, policy.keep) == (F32, BF16, F32, KEEP)


def test_a_scale_of_the_loss_is_not_in_the_dtype_of_arithmetic() -> None:
    """A scale of 2**15 in float16, as arithmetic is, makes a loss of 4 infinite; results leave in float32."""
    policy = Policy(compute="float16")
    loss = policy(lambda w, x: jnp.sum(w * x))
    assert jnp.isinf(jnp.float16(2**15) * jnp.float16(4.0))
    value, gradient = jax.value_and_grad(lambda w: 2**15 * loss(w, jnp.ones(4)))(jnp.ones(4))
    assert float(value) == 4 * 2**15
    assert gradient.tolist() == [2.0**15] * 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": "int32"}, TypeError, "params: expected a real floating-point dtype, got int32"),
        ({"compute": "complex64"}, TypeError, "compute: expected a real floating-point dtype, got complex64"),
        ({"output": None}, TypeError, "output: expected a real floating-point dtype, got None"),
        ({"compute": "float99"}, TypeError, "compute: expected a dtype, got 'float99'"),
        ({"keep": "("}, ValueError, r"keep: expected a regular expression, got '\('"),
        ({"keep": {"w": 1.0}}, TypeError, "keep: expected a bool at 'w', got 1.0"),
        ({"keeps": None}, TypeError, "unexpected keyword argument 'keeps'"),
    ],
)
def test_what_is_refused(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Policy(**change)


def test_a_function_without_params_is_refused() -> None:
    with pytest.raises(TypeError, match="expected the params as the first argument"):
        Policy()(lambda **named: 0)(x=1)
    with pytest.raises(TypeError, match="function: expected a function, got 3"):
        Policy()(3)  # type: ignore[arg-type]
