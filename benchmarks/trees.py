"""The parameter trees that the optimizers are measured on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Shapes = dict[str, Any]
"""A nested dict of shapes."""


def transformer(vocabulary: int = 16000, width: int = 512, layers: int = 12) -> Shapes:
    """A decoder with tied embeddings, twelve leaves a layer.

    Example:
      >>> leaf_count(transformer()), parameter_count(transformer())
      (145, 45996032)
    """
    layer: Shapes = {
        "attention": dict.fromkeys(("query", "key", "value", "output"), (width, width)),
        "mlp": {
            "up": {"kernel": (width, 4 * width), "bias": (4 * width,)},
            "down": {"kernel": (4 * width, width), "bias": (width,)},
        },
        "norm_1": {"scale": (width,), "bias": (width,)},
        "norm_2": {"scale": (width,), "bias": (width,)},
    }
    return {"embedding": (vocabulary, width), **{f"layer_{i:02d}": layer for i in range(layers)}}


def resnet50(classes: int = 1000) -> Shapes:
    """ResNet-50 (He et al. 2015, table 1): convolutions in HWIO, batch norms, the classifier.

    Example:
      >>> leaf_count(resnet50()), parameter_count(resnet50())
      (161, 25557032)
    """

    def norm(width: int) -> Shapes:
        return {"scale": (width,), "bias": (width,)}

    tree: Shapes = {"conv_0": (7, 7, 3, 64), "norm_0": norm(64)}
    inputs = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            part: Shapes = {
                "conv_1": (1, 1, inputs, width),
                "norm_1": norm(width),
                "conv_2": (3, 3, width, width),
                "norm_2": norm(width),
                "conv_3": (1, 1, width, 4 * width),
                "norm_3": norm(4 * width),
            }
            if block == 0:
                part |= {"shortcut": {"conv": (1, 1, inputs, 4 * width), "norm": norm(4 * width)}}
            tree[f"stage_{stage}_block_{block}"] = part
            inputs = 4 * width
    return tree | {"classifier": {"kernel": (inputs, classes), "bias": (classes,)}}


def thousand(leaves: int = 1000) -> Shapes:
    """A thousand small leaves, where the cost is that of handling a leaf.

    Example:
      >>> leaf_count(thousand()), parameter_count(thousand())
      (1000, 1328000)
    """
    shapes = ((64, 64), (64,), (128,), (32, 32))
    return {
        f"block_{i:03d}": dict(zip(("kernel", "bias", "scale", "gate"), shapes, strict=True))
        for i in range(leaves // len(shapes))
    }


TREES: dict[str, Callable[[], Shapes]] = {"transformer": transformer, "resnet50": resnet50, "thousand": thousand}


def arrays(shapes: Shapes, scale: float, seed: int) -> dict[str, Any]:
    """NumPy arrays of these shapes, normal with standard deviation ``scale``, in float32."""
    generator = np.random.default_rng(seed)
    return _map(lambda shape: generator.standard_normal(shape, np.float32) * np.float32(scale), shapes)


def leaf_count(shapes: Shapes) -> int:
    """The number of arrays."""
    return len(_leaves(shapes))


def parameter_count(shapes: Shapes) -> int:
    """The number of elements of all arrays."""
    return sum(math.prod(shape) for shape in _leaves(shapes))


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def _leaves(shapes: Shapes) -> list[tuple[int, ...]]:
    return jax.tree.leaves(shapes, is_leaf=_is_shape)


def _map(function: Callable[[tuple[int, ...]], Any], shapes: Shapes) -> dict[str, Any]:
    return jax.tree.map(function, shapes, is_leaf=_is_shape)
