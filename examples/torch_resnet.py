"""Turns torchvision's ResNet weights (safetensors) into those of a Flax ResNet that gives the same logits.

    python examples/torch_resnet.py resnet18.safetensors --network resnet18 --output pretrained

Prints what became of every array and writes ``resnet18_flax.safetensors``, which ``gx.transfer.load_pretrained`` reads
without any rule. For classes of your own keep the body and leave the head new:

    model = ResNet.named("resnet18", classes=37, rngs=nnx.Rngs(0))
    model, report = convert("resnet18.safetensors", model, new="^fc/")

With torch at hand, the file is made by ``safetensors.torch.save_file(torchvision.models.resnet18(weights="DEFAULT")
.state_dict(), "resnet18.safetensors")``.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gradxform as gx
from gradxform.transfer import LoadReport, load_pretrained

OUTPUT = pathlib.Path(__file__).parent / "output"

RENAME = {
    r"(conv\d|downsample/0|fc)/weight$": r"\1/kernel",
    r"/weight$": "/scale",  # what is left are the norms
    r"/running_(mean|var)$": r"/\1",
}
SKIP = "/num_batches_tracked$"  # counts batches for an average that the networks do not use
TRANSPOSE = {
    gx.path_matches("kernel$") & gx.ndim_at_least(4): (2, 3, 1, 0),  # (out, in, height, width) in torch
    "kernel$": (1, 0),
}


def conv(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution with torch's padding, the same on both sides; Flax's "SAME" would pad less in front."""
    return nnx.Conv(inputs, outputs, (size, size), strides=stride, padding=size // 2, use_bias=False, rngs=rngs)


def norm(features: int, rngs: nnx.Rngs) -> nnx.Module:
    """A batch norm with torch's numbers: momentum 0.1 in its sense, and a running variance that is unbiased."""
    return gx.norm.nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, running_var="unbiased", rngs=rngs)


class Block(nnx.Module):
    """Two or three convolutions beside a shortcut, which is a convolution where the shape changes."""

    expansion: int

    def shortcut(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        change = stride > 1 or inputs != outputs
        self.downsample = nnx.List([conv(inputs, outputs, 1, stride, rngs), norm(outputs, rngs)] if change else [])

    def body(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.body(x)
        for layer in self.downsample:
            x = layer(x)
        return nnx.relu(y + x)


class BasicBlock(Block):
    """The block of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        self.conv1, self.bn1 = conv(inputs, width, 3, stride, rngs), norm(width, rngs)
        self.conv2, self.bn2 = conv(width, width, 3, 1, rngs), norm(width, rngs)
        self.shortcut(inputs, width, stride, rngs)

    def body(self, x: jax.Array) -> jax.Array:
        return self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
    """The block of ResNet-50; the stride is in the convolution of 3x3, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        outputs = width * self.expansion
        self.conv1, self.bn1 = conv(inputs, width, 1, 1, rngs), norm(width, rngs)
        self.conv2, self.bn2 = conv(width, width, 3, stride, rngs), norm(width, rngs)
        self.conv3, self.bn3 = conv(width, outputs, 1, 1, rngs), norm(outputs, rngs)
        self.shortcut(inputs, outputs, stride, rngs)

    def body(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(nnx.relu(self.bn2(self.conv2(x)))))


NETWORKS: dict[str, tuple[type[Block], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nnx.Module):
    """The network of He et al. (2016), with torchvision's names of layers."""

    def __init__(
        self, block: type[Block], depths: Sequence[int], *, width: int = 64, classes: int = 1000, rngs: nnx.Rngs
    ):
        self.conv1, self.bn1 = conv(3, width, 7, 2, rngs), norm(width, rngs)
        features = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(block(features, width * 2**i, 2 if i and not j else 1, rngs))
                features = width * 2**i * block.expansion
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
        self.stages = len(depths)
        self.fc = nnx.Linear(features, classes, rngs=rngs)

    @classmethod
    def named(cls, network: str, *, classes: int = 1000, rngs: nnx.Rngs) -> ResNet:
        """One of ``NETWORKS``."""
        return cls(*NETWORKS[network], classes=classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits of images of shape (batch, height, width, 3), normalized as for training."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i in range(self.stages):
            for block in getattr(self, f"layer{i + 1}"):
                x = block(x)
        return self.fc(jnp.mean(x, (1, 2)))


def convert(path: str | pathlib.Path, model: ResNet, *, new: str | None = None) -> tuple[ResNet, LoadReport]:
    """A model with the weights of a torch ``state_dict``; ``new`` names what keeps its own, such as ``"^fc/"``."""
    graph, state = nnx.split(model)
    state, report = load_pretrained(path, state, rename=RENAME, skip=SKIP, transpose=TRANSPOSE, new=new)
    return nnx.merge(graph, state), report


def save(path: pathlib.Path, model: nnx.Module) -> None:
    """Writes a model's variables by their paths."""
    from safetensors.numpy import save_file

    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {jax.tree_util.keystr(key, simple=True, separator="."): np.ascontiguousarray(leaf) for key, leaf in leaves},
        path,
    )


def main(arguments: list[str] | None = None) -> int:
    """Converts one file from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=pathlib.Path, help="a state_dict of torchvision's network, in safetensors")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="resnet18")
    parser.add_argument("--classes", type=int, default=1000, help="of the head in the file")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="a directory for the file that is written")
    options: Any = parser.parse_args(arguments)
    # Shapes are enough to load into: no weights are drawn that would be thrown away.
    empty = nnx.eval_shape(lambda: ResNet.named(options.network, classes=options.classes, rngs=nnx.Rngs(0)))
    try:
        model, report = convert(options.path, empty)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(report)
    made = options.output / f"{options.path.stem}_flax.safetensors"
    save(made, model)
    print(f"written: {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
