"""A leaf of a state as its code."""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core.numbers import cast
from gradxform.core.types import PyTree, Shape, Treedef
from gradxform.precision.codec import Codec
from gradxform.precision.noise import noise

VERSION = 2
"""Of what a code means; a state of another version is refused."""


@dataclasses.dataclass(frozen=True)
class How:
    """How a leaf of a state is coded.

    Attributes:
      codec: by what.
      nonnegative: whether no number in it is ever below 0.
      dtype: of what is decoded.
      leaf: the number of the leaf in its state.
      seed: of the noise.
      version: of the meaning of codes.
    """

    codec: Codec
    nonnegative: bool
    dtype: str
    leaf: int
    seed: int
    version: int = VERSION


@dataclasses.dataclass(frozen=True)
class Coded:
    """Stands in a state for a leaf that is stored in fewer bits.

    Attributes:
      code: what the codec made of it.
      step: how many updates the state has seen; kept by the first such leaf of a state, None in the others.
      how: how it is coded.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.precision.compress_state(gx.sgd(0.1, momentum=0.9), "bf16")
      >>> trace = tx.init({"w": jnp.ones((64, 64))})[0].trace["w"]
      >>> trace.code.dtype, trace.decode().dtype
      (dtype(bfloat16), dtype('float32'))
    """

    code: PyTree
    step: jax.Array | None
    how: How

    def decode(self) -> jax.Array:
        """The numbers that are stored."""
        return _decoded(self.how, self.code)

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """The shape and the dtype of what is stored."""
        leaves, treedef = jax.tree.flatten(self.code)
        return _aval(self.how, treedef, tuple((jnp.shape(x), x.dtype) for x in leaves))

    def again(self, x: jax.Array, step: jax.Array) -> Coded:
        """Other numbers in the place of these."""
        return Coded(_encoded(self.how, x, step), None if self.step is None else step, self.how)


jax.tree_util.register_dataclass(Coded, ["code", "step"], ["how"])


def is_coded(x: object) -> TypeGuard[Coded]:
    """Whether ``x`` is the code of a leaf."""
    return isinstance(x, Coded)


def first_code(how: How, x: jax.Array, *, counts: bool) -> Coded:
    """The code of a leaf of a state that begins; the first of them counts the steps."""
    step = jnp.zeros([], jnp.int32)
    return Coded(_encoded(how, x, step), step if counts else None, how)


# Calls of one shape are traced once.
@functools.partial(jax.jit, static_argnums=0)
def _encoded(how: How, x: jax.Array, step: int | jax.Array) -> PyTree:
    return how.codec.encode(x, noise(how.seed, step, how.leaf, jnp.shape(x), 32), nonnegative=how.nonnegative)


@functools.partial(jax.jit, static_argnums=0)
def _decoded(how: How, code: PyTree) -> jax.Array:
    return cast(how.codec.decode(code, nonnegative=how.nonnegative), how.dtype)


@functools.lru_cache(maxsize=4096)
def _aval(how: How, treedef: Treedef, arrays: tuple[tuple[Shape, np.dtype], ...]) -> jax.ShapeDtypeStruct:
    code = treedef.unflatten([jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arrays])
    found: jax.ShapeDtypeStruct = jax.eval_shape(functools.partial(_decoded, how), code)
    return found
