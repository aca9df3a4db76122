"""Where the state of a transformation is to lie, found by types: nothing is allocated or compiled for it."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform.core.trees import flatten, named_leaves
from gradxform.core.types import AnyTransformation, Params, PyTree, State
from gradxform.sharding.specs import AUTO, Leaf, as_explicit, entries, entry_of, mesh_of, names, shardings_of

READS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def state_sharding(tx: AnyTransformation, params: Params, shardings: PyTree | None = None) -> PyTree:
    """A ``NamedSharding`` for every leaf of ``tx.init(params)``: what is kept of a param lies as the param does.

    ``init`` is traced on types that say how params lie, and its results say how the state does: the rows and columns
    of a factored moment, also those of a square kernel, codes, sums and another library's moments come out by what
    they were made of, not by their names or shapes. Scalars are whole on every device.

    Args:
      tx: the transformation, ours, optax's or a chain.
      params: a tree of arrays or ``jax.ShapeDtypeStruct``, in boxes of Flax's or not, or an ``nnx.State``.
      shardings: a tree like ``params`` of shardings or specs; by default where the params lie, or are to lie. The mesh
        is theirs, else that of ``jax.set_mesh``.

    Returns:
      A tree like the state of ``tx``.

    Raises:
      TypeError: ``tx`` reads the values of params to start.
      ValueError: ``shardings`` has another structure, with the first path that differs.
      ShardingError: no mesh, or two; an axis that is not in the mesh; a spec longer than the shape; a dimension that
        does not divide, with its path.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
      >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=rows)}
      >>> gx.sharding.state_sharding(gx.adam(1e-3), params)[0].mu["w"].spec
      P('data', None)
    """
    leaves, treedef = flatten(params)
    found = shardings_of(params, shardings)
    mesh = found[0].mesh if found else mesh_of(params, "params")
    twin = as_explicit(mesh)
    typed = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(twin, own.spec))
        for leaf, own in zip(leaves, found, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(twin):
        try:
            state = jax.eval_shape(tx.init, treedef.unflatten(typed))
        except READS_VALUES as error:
            raise TypeError(
                "tx: expected a transformation that starts from shapes and dtypes, got one whose init reads the values "
                f"of params: {str(error).partition(chr(10))[0]}"
            ) from error
    return jax.tree.map(lambda x: NamedSharding(mesh, spec_of(x)), state)


def init(tx: AnyTransformation, params: Params, shardings: PyTree | None = None) -> State:
    """``tx.init(params)``, born where ``state_sharding`` says: no device ever holds a whole leaf that is to be divided.

    Args:
      tx: the transformation.
      params: a tree of arrays.
      shardings: as in ``state_sharding``.

    Returns:
      The state.

    Raises:
      TypeError: a leaf of ``params`` is not an array, with its path.
      ValueError: as ``state_sharding``.
      ShardingError: as ``state_sharding``.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> with jax.set_mesh(jax.make_mesh((1,), ("data",))):
      ...   gx.sharding.init(gx.adam(1e-3), {"w": jnp.ones((8, 4))})[0].mu["w"].sharding.spec
      P(None, None)
    """
    for path, leaf in named_leaves(params):
        if not isinstance(leaf, jax.Array):
            raise TypeError(
                f"params: expected an array at '{path}', got a {type(leaf).__name__}; state_sharding takes shapes"
            )
    # Arrays of its own (earlier weights) are arguments: those that the program holds would be whole on every device.
    own, treedef = flatten(tx)
    arrays = {place: x for place, x in enumerate(own) if isinstance(x, jax.Array | np.ndarray) and x.ndim}

    def start(arrays: dict[int, jax.Array], params: Params) -> State:
        return treedef.unflatten([arrays.get(place, x) for place, x in enumerate(own)]).init(params)

    return jax.jit(start, out_shardings=state_sharding(tx, params, shardings))(arrays, params)


def spec_of(typed: Leaf) -> P:
    """How an array or struct on a mesh taken as Explicit lies, without the axis that marks it."""
    sharding = typed.sharding
    if not isinstance(sharding, NamedSharding):
        return P()
    own = entries(sharding.spec, typed.ndim)
    return P(*(entry_of([name for name in names(entry) if name != AUTO]) for entry in own))
