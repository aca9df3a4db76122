"""The small convolutional network that two examples teach: to tell views of images apart, and to name their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

import gradxform as gx

WIDTHS = (32, 64, 64, 128)
EMBEDDING = 64


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **unused: Any) -> jax.Array:
    """A convolution as one product of matrices, the pixels under the kernel side by side.

    On a processor the gradient of ``lax.conv_general_dilated`` in a kernel this small takes several times as long.
    """
    height, width = kernel.shape[:2]
    down, across = strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // across + 1
    under = [
        x[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(under, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class Backbone(nnx.Module):
    """Four convolutions, whose mean over the pixels are the features."""

    def __init__(self, shape: tuple[int, int, int], rngs: nnx.Rngs):
        height, width, channels = shape
        # Images of more than 16 pixels are halved at once: at full size they would take four times as long.
        strides = (1 if min(height, width) <= 16 else 2, 2, 1, 2)
        self.convs = nnx.List(
            [
                nnx.Conv(i, o, (3, 3), stride, use_bias=False, conv_general_dilated=convolve, rngs=rngs)
                for i, o, stride in zip((channels, *WIDTHS), WIDTHS, strides, strict=False)
            ]
        )
        self.norms = nnx.List([gx.norm.nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for width in WIDTHS])

    def __call__(self, images: jax.Array) -> jax.Array:
        """The features, of shape (batch, 128)."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return x.mean((1, 2))


class Embedder(nnx.Module):
    """The backbone, and a head for the contrastive loss alone."""

    def __init__(self, shape: tuple[int, int, int], rngs: nnx.Rngs):
        self.backbone = Backbone(shape, rngs)
        self.hidden = nnx.Linear(WIDTHS[-1], WIDTHS[-1], rngs=rngs)
        self.head = nnx.Linear(WIDTHS[-1], EMBEDDING, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The embeddings that the loss compares, of shape (batch, EMBEDDING)."""
        return self.head(nnx.relu(self.hidden(self.backbone(images))))


class Classifier(nnx.Module):
    """The backbone, and a head that says which class it is; before training it says nothing."""

    def __init__(self, shape: tuple[int, int, int], classes: int, rngs: nnx.Rngs):
        self.backbone = Backbone(shape, rngs)
        self.head = nnx.Linear(WIDTHS[-1], classes, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits, of shape (batch, classes)."""
        return self.head(self.backbone(images))
