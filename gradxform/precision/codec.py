"""The codec: how numbers are stored in fewer bits, as a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, ParamSpec, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradxform.core.types import PyTree
from gradxform.core.value import Value, factory
from gradxform.precision.bits import HALF

P = ParamSpec("P")
Encode = Callable[[jax.Array, jax.Array], PyTree]
Decode = Callable[[PyTree], jax.Array]
Pairs = tuple[tuple[Encode, Decode], tuple[Encode, Decode]]


_Pair: TypeAlias = tuple[Encode, Decode]


class Pair(NamedTuple):
    """``code = encode(x, noise)`` of a float32 array, and the array ``decode(code)``."""

    encode: Encode
    decode: Decode


class Codec(Value):
    """A pure pair (encode, decode): numbers in fewer bits, rounded so that averages stay what they are.

    It is made by a factory (``fp8``, ``int8_blockwise``, your own under ``codec``).

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> code = gx.precision.fp8().encode(jnp.array([0.3, -1.0, 100.0]))
      >>> code.dtype, gx.precision.fp8().decode(code)
      (dtype(float8_e5m2), Array([ 0.3125, -1.    ,  3.5   ], dtype=float32))
    """

    has_numbers: ClassVar[bool] = False  # they decide over the program, and no one trains them

    def encode(self, x: ArrayLike, noise: jax.Array | None = None, *, nonnegative: bool = False) -> PyTree:
        """What is stored of an array.

        Args:
          x: an array of floating-point numbers.
          noise: 32 random bits for each element, uint32 in the shape of ``x``; by default those that round to the
            nearest code.
          nonnegative: whether no number in it is below 0.

        Returns:
          A tree of arrays.

        Raises:
          TypeError: ``x`` is not an array of real floating-point numbers.
          ValueError: the codec divides into blocks, and ``x`` is a scalar.
        """
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{self.name}: expected real floating-point numbers to encode, got {dtype}")
        if noise is None:
            noise = jnp.full(jnp.shape(x), HALF, jnp.uint32)
        return self.pair(nonnegative).encode(jnp.asarray(x, jnp.float32), noise)

    def decode(self, code: PyTree, *, nonnegative: bool = False) -> jax.Array:
        """The numbers that a code stands for, in float32."""
        return self.pair(nonnegative).decode(code)

    def pair(self, nonnegative: bool) -> Pair:
        """The pair for numbers of both signs, or for those that are never below 0."""
        return self.built[nonnegative]

    @property
    def built(self) -> tuple[Pair, Pair]:
        """The pairs for numbers of both signs and for those that are never below 0."""
        if "_built" not in self.__dict__:
            self.__dict__["_built"] = _pairs(self._definition.build(self._arguments), self.name)
        built: tuple[Pair, Pair] = self.__dict__["_built"]
        return built


def codec(function: Callable[P, _Pair | tuple[_Pair, _Pair]]) -> Callable[P, Codec]:
    """Turns a factory into one of codecs, which print, compare, pickle and are known by their name.

    Args:
      function: a function of the hyperparameters that returns a pair ``(encode, decode)``, or two: one for numbers of
        both signs and one for those that are never below 0, as means of squares. ``encode(x, noise)`` gets a float32
        array and 32 random bits for each element, and returns an array or a tree of them; ``decode(code)`` undoes it.
        What was decoded has to be encoded to the same code, whatever the noise: a step that is skipped keeps the state.

    Returns:
      The factory.

    Raises:
      TypeError: when called, if the function returns something else.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> @gx.precision.codec
      ... def half():
      ...   return lambda x, noise: x.astype(jnp.float16), lambda code: code.astype(jnp.float32)
      >>> tx = gx.precision.compress_state(gx.lion(1e-3), half())
      >>> tx.init({"w": jnp.ones((64, 64))})[0].mu["w"].code.dtype
      dtype('float16')
    """
    made = factory(Codec, function)
    _FACTORIES.setdefault(function.__name__, made)
    return made


def as_codec(name: str, given: object) -> Codec:
    """A codec from what the caller gave: a value, or the name of one with its defaults.

    Raises:
      TypeError: it is neither.
      ValueError: no codec has this name.
    """
    if isinstance(given, Codec):
        return given
    if not isinstance(given, str):
        raise TypeError(f"{name}: expected a codec such as precision.bf16(), or its name, got {given!r}")
    if given not in _FACTORIES:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, sorted(_FACTORIES)))}, got {given!r}")
    return _FACTORIES[given]()


_FACTORIES: dict[str, Callable[..., Codec]] = {}


def _pairs(built: PyTree, name: str) -> tuple[Pair, Pair]:
    pairs = built if isinstance(built, tuple) and all(isinstance(part, tuple) for part in built) else (built, built)
    if len(pairs) != 2 or not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair)) for pair in pairs
    ):
        raise TypeError(
            f"{name}: expected the factory to return a pair (encode, decode) of functions, or two such "
            f"pairs, got {built!r}"
        )
    both, above = (Pair(*pair) for pair in pairs)
    return both, above
