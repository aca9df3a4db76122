"""Rates that differ from layer to layer: small near the input, where a pretrained network needs the least change."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import Each, Leafwise
from gradxform.core.numbers import float_dtype
from gradxform.core.schedule import at_step
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.trees import named_leaves
from gradxform.core.types import Params, PyTree, Scalar, ScalarOrSchedule
from gradxform.transfer.layers import Groups, Layers, groups_of, layers_of
from gradxform.transforms.combine import chain
from gradxform.transforms.scale import scale_by_learning_rate

Rate: TypeAlias = Callable[[int, int, int], Scalar]
"""Of a layer, the number of layers and the last layer that there is."""


@transformation
def scale_by_layer(decay: Scalar, groups: Groups) -> Leafwise:
    """Multiplies the update of each layer by a power of ``decay``, the less the further it is from the output.

    The rule of BEiT (Bao et al., ICLR 2022, appendix) and MAE (He et al., CVPR 2022, appendix A.1): with ``n`` layers,
    layer ``i`` has ``decay**(n - i)``, and what comes after the last has 1. Behind a recipe, as in
    ``chain(adamw(1e-3), scale_by_layer(0.75, groups))``, it multiplies the learning rate and so, as in timm and MAE,
    the decoupled weight decay too. ``layer_scales`` prints what each leaf gets.

    Args:
      decay: the factor from layer to layer, > 0 (BEiT, MAE: 0.65 to 0.9).
      groups: the layers, as regular expressions of paths in order from input to output. A leaf belongs to the first
        that it matches, and comes after all of them if it matches none. An expression with a group of digits, such as
        ``r"blocks/(\\d+)/"``, makes a layer for each number that there is. For a ViT:
        ``("cls|pos|patch_embed", r"blocks/(\\d+)/")``. A pair (regular expression, axis) is for leaves that hold a
        layer for each index along an axis, as those of a scan over layers do:
        ``("cls|pos|patch_embed", ("^blocks/", 0))``.

    Returns:
      A transformation without state.

    Raises:
      TypeError: ``decay`` is no number, or ``groups`` no regular expressions.
      ValueError: ``decay`` is not positive, ``groups`` are no regular expressions or none at all; from ``init``, an
        expression that no leaf belongs to, a group in it that is not a number, or leaves with other numbers of layers
        along its axis.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.transfer.scale_by_layer(0.5, (r"^embed", r"^blocks/(\\d+)"))
      >>> params = {"blocks": [1.0, 1.0], "embed": 1.0, "head": 1.0}
      >>> [float(u) for u in gx.transfer.layer_scales(params, 0.5, (r"^embed", r"^blocks/(\\d+)")).values()]
      [0.25, 0.5, 0.125, 1.0]
      >>> tx.update(params, tx.init(params))[0]["embed"]
      Array(0.125, dtype=float32)
    """
    checks.real("decay", decay, above=0)
    return _by_layer(groups, lambda count: lambda layer, n, last: decay ** (n - layer))


@transformation
def layerwise_decay(learning_rate: ScalarOrSchedule, decay: Scalar, groups: Groups) -> Transformation:
    """Multiplies updates by the negated learning rate of their layer, by the rule of BEiT and MAE.

    It stands where ``scale_by_learning_rate`` would: ``learning_rate * decay**(n - i)`` for layer ``i`` of ``n``, and
    ``learning_rate`` for what comes after the last. See ``scale_by_layer``.

    Args:
      learning_rate: the rate at the output, a number or a schedule of it.
      decay: the factor from layer to layer, > 0 (BEiT, MAE: 0.65 to 0.9).
      groups: the layers, as regular expressions of paths in order from input to output: see ``scale_by_layer``.

    Returns:
      A transformation; it counts its updates if the learning rate is a schedule.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: what ``scale_by_layer`` refuses.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.chain(gx.scale_by_adam(), gx.transfer.layerwise_decay(0.5, 0.5, r"^blocks/(\\d+)"))
      >>> params = {"blocks": [1.0, 1.0], "head": 1.0}
      >>> tx.update(params, tx.init(params))[0]
      {'blocks': [Array(-0.125, dtype=float32), Array(-0.25, dtype=float32)], 'head': Array(-0.5, dtype=float32)}
    """
    return chain(scale_by_learning_rate(learning_rate), scale_by_layer(decay, groups))


@transformation
def discriminative_rates(first: ScalarOrSchedule, last: ScalarOrSchedule, groups: Groups) -> Leafwise:
    """Multiplies updates by the negated learning rate of their layer, in geometric steps between two ends.

    Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (ACL 2018), section 3.2, in the
    form of fastai's ``slice(first, last)``. (ULMFiT itself divides by 2.6 a layer: ``layerwise_decay`` with a decay of
    ``1 / 2.6``.)

    Args:
      first: the rate of the first layer, >= 0, or a schedule of it (fastai: a hundredth of ``last``).
      last: the rate of the last, >= 0, or a schedule of it. Leaves that match none of ``groups`` are the last layer if
        there are any.
      groups: the layers, as regular expressions of paths in order from input to output: see ``scale_by_layer``.

    Returns:
      A transformation; it counts its updates if a rate is a schedule.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a negative rate, or what ``scale_by_layer`` refuses.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.transfer.discriminative_rates(0.25, 1.0, r"^blocks/(\\d+)")
      >>> params = {"blocks": [1.0, 1.0], "head": 1.0}
      >>> tx.update(params, tx.init(params))[0]
      {'blocks': [Array(-0.25, dtype=float32), Array(-0.5, dtype=float32)], 'head': Array(-1., dtype=float32)}
    """
    checks.real("first", first, at_least=0, schedule=True)
    checks.real("last", last, at_least=0, schedule=True)

    def rates(count: jax.Array | None) -> Rate:
        low, high = (at_step(end, 0 if count is None else count) for end in (first, last))

        def rate(layer: int, n: int, top: int) -> Scalar:
            place = layer / top if top > 0 else 1.0
            # Not a power of their ratio, since a schedule may pass through 0.
            return -(low if place == 0 else high if place == 1 else low ** (1 - place) * high**place)

        return rate

    return _by_layer(groups, rates, counts=callable(first) or callable(last))


def layer_scales(params: Params, decay: float, groups: Groups) -> dict[str, float | list[float]]:
    """The factor that ``scale_by_layer`` has for every leaf.

    Args:
      params: a tree.
      decay: the factor from layer to layer, > 0.
      groups: the layers, as regular expressions of paths in order from input to output: see ``scale_by_layer``.

    Returns:
      A dict from the path of each leaf to its factor, or to those of the layers along its axis, in the order of the
      tree.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: what ``scale_by_layer`` refuses.

    Example:
      >>> import gradxform as gx, numpy as np
      >>> gx.transfer.layer_scales({"blocks": [1.0, 1.0], "head": 1.0}, 0.5, r"^blocks/(\\d+)")
      {'blocks/0': 0.25, 'blocks/1': 0.5, 'head': 1.0}
      >>> gx.transfer.layer_scales({"blocks": np.ones((3, 4, 4)), "embed": 1.0}, 0.5, ("^embed", ("^blocks", 0)))
      {'blocks': [0.125, 0.25, 0.5], 'embed': 0.0625}
    """
    checks.real("decay", decay, above=0)
    layers, n = layers_of(params, groups_of("groups", groups))
    factors = {name: [float(decay) ** (n - layer) for layer in own.numbers] for name, own in layers.items()}
    return {name: own[0] if layers[name].axis is None else own for name, own in factors.items()}


def _by_layer(groups: Groups, rates: Callable[[jax.Array | None], Rate], *, counts: bool = False) -> Leafwise:
    """A stage that multiplies each leaf by ``rates(count)(layer, number of layers, last layer)``."""
    compiled = groups_of("groups", groups)
    stacked = any(group.axis is not None for group in compiled)

    def at(*given: PyTree) -> Each:
        *count, updates = given
        layers, n = layers_of(updates, compiled)
        there = {layer for own in layers.values() for layer in own.numbers}
        rate, top = rates(count[0] - 1 if counts else None), max(there, default=0)
        by_layer = {layer: _array(rate(layer, n, top)) for layer in there}

        def factor(own: Layers, ndim: int) -> jax.Array:
            if own.axis is None:
                return by_layer[own.numbers[0]]
            along = jnp.stack([by_layer[layer] for layer in own.numbers])
            return jnp.expand_dims(along, [axis for axis in range(ndim) if axis != own.axis % ndim])

        return Each(factor(layers[path], jnp.ndim(g)) for path, g in named_leaves(updates))

    # Of a piece of a leaf, or of leaves that are joined, nobody could tell which layers are in it.
    return Leafwise(
        lambda factor, g, p: factor * g,
        at=at,
        whole=True,
        elementwise=not stacked,
        axis_name=None if stacked else (),
        check=lambda params: layers_of(params, compiled),
        state=optax.ScaleByScheduleState if counts else optax.EmptyState,
    )


def _array(factor: Scalar) -> jax.Array:
    return jnp.asarray(factor, float_dtype() if isinstance(factor, float) else None)
