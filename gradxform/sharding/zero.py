"""ZeRO-1: state, and the work on it, divided over the devices that share the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform.core import checks, stages
from gradxform.core.foreign import stage_of
from gradxform.core.manual import ShardingError, spread
from gradxform.core.run import run
from gradxform.core.selectors import compile_pattern
from gradxform.core.stages import Around, Stage, is_final, line_up
from gradxform.core.transformation import transformation
from gradxform.core.trees import flatten, is_tracing, named_leaves
from gradxform.core.types import AnyTransformation, Params, PyTree, State, Updates
from gradxform.sharding.fsdp import MIN_SIZE, Division, division, size_of
from gradxform.sharding.specs import (
    AUTO,
    AnyMesh,
    Leaf,
    as_explicit,
    check_axes,
    entries,
    entry_of,
    known_sharding,
    mesh_of,
    names,
    parts,
)
from gradxform.sharding.state import spec_of

FREE = P.UNCONSTRAINED


@transformation
def zero1(
    tx: AnyTransformation,
    axis: str | tuple[str, ...] = "data",
    *,
    min_size: int = MIN_SIZE,
    rules: Sequence[tuple[str, int | None]] = (),
) -> Around:
    """Divides the state of any transformation, and the work on it, over devices that hold the same params.

    Rajbhandari et al., "ZeRO" (2020), section 5.1 (the stage P_os).
    Of each gradient a device takes its piece (a reduce-scatter where gradients are summed), makes the step of that
    piece, and the updates are put together again (an all-gather): as much is sent as without (a sum of gradients is
    both), state takes ``1 / n`` of the bytes. Params and updates lie as the params do.

    A leaf is divided along the largest dimension that comes in equal pieces, by its global shape; where there is none,
    each of several axes may divide another dimension, so that 256 x 4 devices divide a kernel of 512 x 1,536. On an
    Explicit mesh and in ``state_sharding`` these are dimensions that no other axis divides; on an Auto mesh JAX does
    not tell how params lie: where tensor parallelism is in the way, ``rules`` say which dimension is meant.

    The state is that of ``tx``, so that a checkpoint with it moves to one without, and back. What the compiler makes of
    it depends on the machine; ``traffic`` shows it.

    Args:
      tx: the transformation, ours, optax's or a chain.
      axis: the axis of the mesh over which the data is divided, several of them as one, or one of several. The mesh is
        that of the arrays, else that of ``jax.set_mesh``. Inside ``shard_map``, where it is a named axis, gradients
        that differ along it are summed over it, along one axis after another (name first those with the fastest
        links: each has a piece left of what the one before had), and bricks in ``tx`` that read whole leaves take
        ``axis_name``.
      min_size: bytes from which on a leaf is divided, >= 0.
      rules: pairs ``(pattern, dimension)`` of a regular expression of paths and the dimension to divide, or None for
        none; the first that is found in the path of a leaf decides over it.

    Returns:
      A transformation.

    Raises:
      TypeError: ``tx`` is not a transformation, or an argument of another type.
      ValueError: a pattern is not a regular expression, or ``min_size`` is negative.
      ShardingError: from ``init`` and ``update``, no mesh; an axis that is not in it; ``zero1`` in ``zero1``; a leaf
        that ``axis`` divides already, or whose dimension another axis is known to divide; a dimension of ``rules``
        that does not come in equal pieces.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> tx = gx.sharding.zero1(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-3)), min_size=0)
      >>> with jax.set_mesh(mesh):
      ...   state = gx.sharding.init(tx, {"w": jnp.ones((8, 4))})
      >>> state[1][0].mu["w"].sharding.spec
      P('data', None)
    """
    stage = stage_of(tx, "tx")
    checks.integer("min_size", min_size, at_least=0, known=True)
    plan = _Plan(names(axis), int(min_size), [(compile_pattern("rules", pattern), dim) for pattern, dim in rules])

    def init(params: Params) -> State:
        pieces = plan.of(params)
        state = stages.init(stage, pieces.divided(params))
        if _is_divided(stage, state):
            raise ShardingError("zero1: expected a transformation whose state is not divided, got one with zero1 in it")
        return pieces.held(state, stage, params)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: object) -> tuple[Updates, State]:
        pieces = plan.of(updates if params is None else params)
        own = None if params is None else pieces.divided(params)
        new, state = run(stage, pieces.divided(updates, summed=True), state, own, extra, "zero1")
        return pieces.whole(new), pieces.held(state, stage, updates if params is None else params)

    return Around(init, update, lambda state: {"tx": (tx, state)}, final=is_final(stage))


def _is_divided(stage: Stage, state: State) -> bool:
    """Whether there is ``zero1`` in a stage, at any depth."""
    return any(
        part.name.endswith("zero1")
        or (
            isinstance(part, Around)
            and part.inner is not None
            and any(_is_divided(stage_of(tx), inside) for tx, inside in part.inner(own).values())
        )
        for part, own in line_up(stage, state, "zero1")
    )


class _Plan(NamedTuple):
    """Which leaves are divided, and along which dimensions."""

    axes: tuple[str, ...]
    min_size: int
    rules: list[tuple[re.Pattern[str], int | None]]

    def of(self, params: Params) -> _Pieces:
        mesh = mesh_of(params, "zero1")
        check_axes("axis", self.axes, mesh)
        return _Pieces(self.axes, mesh, [self._division(path, leaf, mesh) for path, leaf in named_leaves(params)])

    def _division(self, path: str, leaf: Leaf, mesh: AnyMesh) -> Division:
        """What divides a leaf."""
        whole: Division = ((),) * leaf.ndim
        count = parts(mesh, self.axes)
        lies = known_sharding(leaf)
        own = entries(lies.spec if lies is not None else (), leaf.ndim)
        if any(name in names(entry) for entry in own for name in self.axes):
            axes = " and ".join(map(repr, self.axes))
            raise ShardingError(f"zero1: expected params that {axes} does not divide, got '{path}' with {P(*own)}")
        for pattern, dim in self.rules:
            if pattern.search(path):
                if dim is None:
                    return whole
                if not -leaf.ndim <= dim < leaf.ndim or leaf.shape[dim] % count:
                    raise ShardingError(
                        f"rules: expected for '{path}' a dimension of {leaf.shape} that comes in "
                        f"{count} equal pieces, got {dim}"
                    )
                return tuple(self.axes if i == dim % leaf.ndim else () for i in range(leaf.ndim))
        if size_of(leaf) < self.min_size:
            return whole
        if AUTO not in mesh.axis_names and not _is_auto(mesh, self.axes):
            return division(leaf.shape, own, mesh, self.axes)
        found = division(leaf.shape, [None] * leaf.ndim, mesh, self.axes)
        for dim, (some, other) in enumerate(zip(found, own, strict=True)):
            if some and names(other):
                raise ShardingError(
                    f"zero1: expected nothing else to divide dimension {dim} of '{path}', got {P(*own)}; "
                    f"say which dimension is meant: rules=[({path!r}, dimension)]"
                )
        return found


class _Pieces(NamedTuple):
    """The leaves of one tree of params, and what divides each of them."""

    axes: tuple[str, ...]
    mesh: AnyMesh
    divisions: list[Division]

    def divided(self, tree: PyTree, *, summed: bool = False) -> PyTree:
        """The pieces of a tree; ``summed``: of the sum of what differs from device to device inside ``shard_map``."""
        one = self._scattered if summed and self._manual() else self._own if self._manual() else self._placed
        return self._map(one, tree)

    def whole(self, tree: PyTree) -> PyTree:
        """Undoes ``divided``."""
        return self._map(self._gathered if self._manual() else self._unplaced, tree)

    def held(self, state: State, stage: Stage, params: Params) -> State:
        """The state, kept from lying anywhere else in a program whose types do not say how arrays lie."""
        if self._manual() or not self._constrained() or not is_tracing(jax.tree.leaves(state)):
            return state
        twin = as_explicit(self.mesh)
        leaves, treedef = flatten(params)
        typed = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(twin, P(*map(entry_of, along))))
            for x, along in zip(leaves, self.divisions, strict=True)
        ]
        with jax.sharding.use_abstract_mesh(twin):
            like = jax.eval_shape(lambda params: stages.init(stage, params), treedef.unflatten(typed))

        def hold(x: jax.Array, typed: jax.ShapeDtypeStruct) -> jax.Array:
            spec = spec_of(typed)
            kept = P(*(FREE if entry is None else entry for entry in spec))
            return lax.with_sharding_constraint(x, NamedSharding(self.mesh, kept)) if any(spec) else x

        return jax.tree.map(hold, state, like)

    def _map(self, one: Callable[[jax.Array, Division], jax.Array], tree: PyTree) -> PyTree:
        leaves, treedef = flatten(tree)
        return treedef.unflatten(
            [x if _is_float0(x) else one(x, along) for x, along in zip(leaves, self.divisions, strict=True)]
        )

    def _manual(self) -> bool:
        return all(name in getattr(self.mesh, "manual_axes", ()) for name in self.axes)

    def _constrained(self) -> bool:
        return _is_auto(self.mesh, self.axes)

    # Under plain jit: arrays are laid out, and the compiler finds what has to be sent.

    def _placed(self, x: jax.Array, along: Division) -> jax.Array:
        for step in self._steps(along)[1:]:
            x = self._laid(x, along, step)
        return x

    def _unplaced(self, x: jax.Array, along: Division) -> jax.Array:
        for step in reversed(self._steps(along)[:-1]):
            x = self._laid(x, along, step)
        return x

    def _steps(self, along: Division) -> list[Division]:
        """From a whole leaf to its pieces, one dimension more at a time: where two are divided at once, compilers send
        whole leaves. That of the most pieces comes first, so that the next has little to send.
        """
        order = sorted((dim for dim, some in enumerate(along) if some), key=lambda dim: -parts(self.mesh, along[dim]))
        return [
            tuple(some if dim in order[:count] else () for dim, some in enumerate(along))
            for count in range(len(order) + 1)
        ]

    def _laid(self, x: jax.Array, along: Division, step: Division) -> jax.Array:
        """With the dimensions that are divided in the end divided so far."""
        auto = self._constrained()
        own = [FREE] * x.ndim if auto else entries(jax.typeof(x).sharding.spec, x.ndim)
        spec = P(*(entry_of(now) if some else rest for some, now, rest in zip(along, step, own, strict=True)))
        lies = NamedSharding(self.mesh, spec)
        return lax.with_sharding_constraint(x, lies) if auto else jax.sharding.reshard(x, lies)

    # Inside shard_map: each device says what it sends. One axis after another: of a sum over 16 x 16 chips at once
    # the compiler for TPU makes a whole one on each, of two over 16 pieces, which are half the bytes.

    def _own(self, x: jax.Array, along: Division) -> jax.Array:
        for dim, some in enumerate(along):
            if some:
                size = x.shape[dim] // lax.axis_size(some)
                x = lax.dynamic_slice_in_dim(x, lax.axis_index(some) * size, size, dim)
        return x

    def _scattered(self, x: jax.Array, along: Division) -> jax.Array:
        differs = spread(x, self.axes)
        scattered = tuple(some if set(some) <= set(differs) else () for some in along)
        for name, dim in self._each(scattered):
            x = lax.psum_scatter(x, name, scatter_dimension=dim, tiled=True)
        rest = tuple(name for name in differs if not any(name in some for some in scattered))
        x = lax.psum(x, rest) if rest else x
        return self._own(x, tuple(() if done else some for some, done in zip(along, scattered, strict=True)))

    def _gathered(self, x: jax.Array, along: Division) -> jax.Array:
        for name, dim in reversed(self._each(along)):
            x = lax.all_gather(x, name, axis=dim, tiled=True, to="invarying")
        return x

    def _each(self, along: Division) -> list[tuple[str, int]]:
        """The axes that divide something, in the order in which they were given, each with its dimension."""
        return [(name, dim) for name in self.axes for dim, some in enumerate(along) if name in some]


def _is_auto(mesh: AnyMesh, axes: tuple[str, ...]) -> bool:
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return any(kinds[name] == AxisType.Auto for name in axes)


def _is_float0(x: Leaf) -> bool:
    return x.dtype == jax.dtypes.float0
