"""Which dtype params, arithmetic and results have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core import checks
from gradxform.core.numbers import cast
from gradxform.core.trees import flatten, is_inexact
from gradxform.core.types import DType, Mask, Params, PyTree
from gradxform.core.value import Value, factory
from gradxform.core.which import as_mask, flags

P = ParamSpec("P")
T = TypeVar("T")


class Policy(Value):
    """Mixed precision at the border of a function: params and inputs are cast as they come in, results as they leave.

    ``policy(forward)``, also as a decorator, is ``forward`` with its first argument through ``cast_params``, the
    others through ``cast_inputs``, and its result through ``cast_output``; gradients come back in the dtype of the
    params. Only leaves of real floating-point numbers are cast.

    A layer with float32 params computes in float32, which is right for logits; a norm is to leave in the dtype of
    arithmetic all the same, whatever its params are. So give it that: ``nnx.LayerNorm(..., dtype=policy.compute)``.
    The params of a module of Flax NNX come from ``nnx.split``, and in the function ``nnx.merge`` puts them back; those
    of Linen are what ``apply`` takes.

    Attributes:
      params: the dtype that params are stored in, and that those in ``keep`` are computed with; float32 by default.
      compute: the dtype of arithmetic; bfloat16 by default.
      output: the dtype of results; float32 by default.
      keep: which params are not cast to ``compute``, such as norms and the layer of logits: a mask, a selector, or a
        regular expression of paths; None for none.

    Raises:
      TypeError: a dtype that is not real floating-point, or a mask with a leaf that is not a bool.
      ValueError: a string that is no regular expression.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> policy = gx.precision.Policy(keep=gx.path_matches("norm|logits"))
      >>> @policy
      ... def forward(params, x):
      ...   x = gx.norm.layer_norm(x @ params["dense"], params["norm"])  # sums in float32, leaves in bfloat16
      ...   return x @ params["logits"]  # float32, as its params are
      >>> params = {"dense": jnp.ones((4, 8)), "norm": jnp.ones(8), "logits": jnp.ones((8, 3))}
      >>> [str(x.dtype) for x in jax.tree.leaves(policy.cast_params(params))]
      ['bfloat16', 'float32', 'float32']
      >>> forward(params, jnp.ones((2, 4))).dtype
      dtype('float32')
    """

    has_numbers: ClassVar[bool] = False

    def __new__(
        cls,
        params: DType = "float32",
        compute: DType = "bfloat16",
        output: DType = "float32",
        keep: Mask | str | None = None,
    ) -> Policy:
        """See the text of the class."""
        return _policy(params, compute, output, keep)

    def __reduce__(self) -> tuple[type[Policy], tuple[object, ...]]:
        return Policy, tuple(self._arguments.values())

    @property
    def params(self) -> np.dtype:
        """The dtype that params are stored in."""
        return jnp.dtype(self._arguments["params"])

    @property
    def compute(self) -> np.dtype:
        """The dtype of arithmetic."""
        return jnp.dtype(self._arguments["compute"])

    @property
    def output(self) -> np.dtype:
        """The dtype of results."""
        return jnp.dtype(self._arguments["output"])

    @property
    def keep(self) -> Mask | None:
        """Which params are not cast to ``compute``."""
        return self._arguments["keep"]

    def cast_params(self, params: Params) -> Params:
        """The params to compute with: those in ``keep`` in the dtype ``params``, the others in ``compute``."""
        leaves, treedef = flatten(params)
        kept = flags("keep", self.keep, params)
        return treedef.unflatten(
            [_cast(leaf, self.params if stays else self.compute) for leaf, stays in zip(leaves, kept, strict=True)]
        )

    def cast_inputs(self, inputs: PyTree) -> PyTree:
        """A tree of inputs in ``compute``."""
        return jax.tree.map(lambda x: _cast(x, self.compute), inputs)

    def cast_output(self, output: PyTree) -> PyTree:
        """A tree of results in ``output``."""
        return jax.tree.map(lambda x: _cast(x, self.output), output)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function with its arguments and its result cast."""
        checks.function("function", function)

        @functools.wraps(function)
        def cast_around(*args: P.args, **kwargs: P.kwargs) -> T:
            if not args:
                raise TypeError(
                    f"{getattr(function, '__name__', 'function')}: expected the params as the first "
                    "argument by position, got none"
                )
            return self.cast_output(
                function(self.cast_params(args[0]), *self.cast_inputs(args[1:]), **self.cast_inputs(kwargs))
            )

        return cast_around


def _make(params: DType, compute: DType, output: DType, keep: Mask | str | None) -> None:
    for name, dtype in (("params", params), ("compute", compute), ("output", output)):
        if dtype is None or not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            raise TypeError(f"{name}: expected a real floating-point dtype, got {dtype}")
    as_mask("keep", keep)


def _cast(x: PyTree, dtype: np.dtype) -> PyTree:
    return cast(x, dtype) if is_inexact(x) and not jnp.iscomplexobj(x) else x


_make.__name__ = _make.__qualname__ = "Policy"
_policy = factory(Policy, _make)
