"""Two small nets to train under low-bit state: a language model on Python's own library, a ResNet on digits.

They are functions of a plain tree of params. The weights enter in bfloat16 whatever the params are kept in, so that
runs differ in what the optimizer keeps and in nothing else; sums are in float32.
"""

from __future__ import annotations

import functools
import pathlib
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import gradxform as gx

Params = Any
WIDTH, LAYERS, HEADS, CONTEXT, VOCABULARY = 128, 5, 4, 64, 256
CHANNELS = (16, 32, 64)


class Task(NamedTuple):
    """Something to learn.

    Attributes:
      init: the params in float32, of a key.
      loss: of params and a batch, the mean over its examples.
      batches: arrays with a leading axis of steps, of a count of steps and a seed.
      held_out: batches to judge by, with a leading axis.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Any], jax.Array]
    batches: Callable[[int, int], Any]
    held_out: Any


def _rounded(params: Params) -> Params:
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), params)


def language(batch: int = 8, tests: int = 128) -> Task:
    """A decoder of about a million params that reads the sources of the standard library byte by byte."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = np.frombuffer(b"\n".join(file.read_bytes() for file in files), np.uint8)
    train, held_out = text[: -len(text) // 20], text[-len(text) // 20 :]

    def windows(source: np.ndarray, count: int, seed: int) -> np.ndarray:
        starts = np.random.default_rng(seed).integers(0, len(source) - CONTEXT - 1, (count, batch))
        return source[starts[..., None] + np.arange(CONTEXT + 1)]

    def init(key: jax.Array) -> Params:
        def normal(i: int, *shape: int, scale: float) -> jax.Array:
            return scale * jax.random.normal(jax.random.fold_in(key, i), shape)

        deviation, deep = WIDTH**-0.5, (2 * LAYERS) ** -0.5
        layers = {
            "norm_1": jnp.ones((LAYERS, WIDTH)),
            "norm_2": jnp.ones((LAYERS, WIDTH)),
            "qkv": normal(0, LAYERS, WIDTH, 3 * WIDTH, scale=deviation),
            "out": normal(1, LAYERS, WIDTH, WIDTH, scale=deviation * deep),
            "up": normal(2, LAYERS, WIDTH, 4 * WIDTH, scale=deviation),
            "down": normal(3, LAYERS, 4 * WIDTH, WIDTH, scale=0.5 * deviation * deep),
        }
        return {
            "embedding": normal(4, VOCABULARY, WIDTH, scale=0.02),
            "position": normal(5, CONTEXT, WIDTH, scale=0.02),
            "norm": jnp.ones(WIDTH),
            "layers": [{name: x[i] for name, x in layers.items()} for i in range(LAYERS)],
        }

    def attend(x: jax.Array, layer: Params) -> jax.Array:
        q, k, v = jnp.moveaxis((x @ layer["qkv"]).reshape(*x.shape[:2], 3, HEADS, -1), 2, 0)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ layer["out"]

    def loss(params: Params, tokens: jax.Array) -> jax.Array:
        params, tokens = _rounded(params), tokens.astype(jnp.int32)
        x = params["embedding"][tokens[:, :-1]] + params["position"]
        for layer in params["layers"]:
            x = x + attend(gx.norm.rms_norm(x, layer["norm_1"]), layer)
            x = x + jax.nn.gelu(gx.norm.rms_norm(x, layer["norm_2"]) @ layer["up"]) @ layer["down"]
        logits = gx.norm.rms_norm(x, params["norm"]) @ params["embedding"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return Task(init, loss, functools.partial(windows, train), windows(held_out, tests, 0))


def digits(batch: int = 64) -> Task:
    """A ResNet of three blocks with group norms on scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits  # here, because the other task needs no more than numpy

    data = load_digits()
    images, labels = np.float32(data.images[..., None] / 16), np.int32(data.target)
    order = np.random.default_rng(0).permutation(len(images))
    tests, trains = order[:320].reshape(5, 64), order[320:]

    def batches(steps: int, seed: int) -> Any:
        chosen = trains[np.random.default_rng(seed).integers(0, len(trains), (steps, batch))]
        return images[chosen], labels[chosen]

    def init(key: jax.Array) -> Params:
        def kernel(i: int, *shape: int) -> jax.Array:
            return (2 / np.prod(shape[:-1])) ** 0.5 * jax.random.normal(jax.random.fold_in(key, i), shape)

        blocks, inputs = [], 1
        for i, width in enumerate(CHANNELS):
            blocks.append(
                {
                    "conv_1": kernel(3 * i, 3, 3, inputs, width),
                    "norm_1": jnp.ones(width),
                    "conv_2": kernel(3 * i + 1, 3, 3, width, width),
                    "norm_2": jnp.ones(width),
                    "shortcut": kernel(3 * i + 2, 1, 1, inputs, width),
                }
            )
            inputs = width
        return {"blocks": blocks, "head": kernel(99, inputs, 10) * 0.1, "bias": jnp.zeros(10)}

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(params: Params, batch: Any) -> jax.Array:
        params, (x, labels) = _rounded(params), batch
        for block in params["blocks"]:
            y = jax.nn.relu(gx.norm.group_norm(convolve(x, block["conv_1"]), block["norm_1"], num_groups=4))
            y = gx.norm.group_norm(convolve(y, block["conv_2"]), block["norm_2"], num_groups=4)
            y = jax.nn.relu(y + convolve(x, block["shortcut"]))
            x = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        logits = x.mean((1, 2)) @ params["head"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Task(init, loss, batches, (images[tests], labels[tests]))


TASKS: dict[str, Callable[[], Task]] = {"language": language, "digits": digits}
