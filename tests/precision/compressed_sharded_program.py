"""Run by ``test_compressed_sharding.py`` on eight devices: codes on a mesh are those of one device, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from codec_checks import STOCHASTIC, P, raw
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gradxform as gx

PARAMS = {"w": np.float32(np.random.RandomState(0).standard_normal((64, 96))), "b": np.zeros(96, np.float32)}
GRADS = [
    jax.tree.map(lambda p: np.float32(np.random.RandomState(t).standard_normal(p.shape)), PARAMS) for t in range(3)
]


def codes(tx: Any, place: Any) -> tuple[Any, Any]:
    params = place(PARAMS)
    state, update = tx.init(params), jax.jit(tx.update)
    for grads in GRADS:
        _, state = update(place(grads), state, params)
    return raw(state), state


def main() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    specs = PartitionSpec("x", "y"), PartitionSpec(None, ("x", "y"))
    for (name, codec), spec in zip(STOCHASTIC.items(), itertools.cycle(specs)):
        tx = P.compress_state(gx.adamw(0.1), codec)
        one, _ = codes(tx, lambda tree: jax.tree.map(jnp.asarray, tree))

        def place(tree: Any, spec: Any = spec) -> Any:
            return {
                "w": jax.device_put(tree["w"], NamedSharding(mesh, spec)),
                "b": jax.device_put(tree["b"], NamedSharding(mesh, PartitionSpec())),
            }

        many, state = codes(tx, place)
        same = all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
        code = jax.tree.leaves(state[0].mu["w"].code)[0]
        like = code.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
        print(f"{name} {spec}: {'same' if same else 'OTHER'} codes, {'spread' if like else 'NOT SPREAD'}")


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    main()
