"""Makes torch_resnet_*.safetensors and torch_resnet.npz: small ResNets of torch, and their logits.

Run by hand where torch is installed (2.13 made the files that are kept here); the tests need only the files:

    python tests/golden/make_torch_resnet.py

The networks have torchvision's layers and names (``conv1``, ``bn1``, ``layer1.0.downsample.0``, ``fc``), few channels,
and running statistics that are not those of the start.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

NETWORKS = {"basic": {"width": 4, "depths": (2, 1, 1, 1)}, "bottleneck": {"width": 2, "depths": (2, 1, 2, 1)}}
CLASSES = 5


def images() -> np.ndarray:
    """Images of an odd size, so that padding on the wrong side shows; channels second, as in torch."""
    # RandomState is the generator whose stream NumPy has promised never to change.
    return np.random.RandomState(2016).standard_normal((2, 3, 49, 67)).astype(np.float32)


def network(kind: str) -> Any:
    """A network of torch with numbers drawn once, in evaluation."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int):
            super().__init__()
            outputs = width * (4 if kind == "bottleneck" else 1)
            shapes = (
                [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
                if kind == "bottleneck"
                else [(inputs, width, 3, stride), (width, width, 3, 1)]
            )
            self.depth = len(shapes)
            for i, (a, b, size, step) in enumerate(shapes, 1):
                self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, bias=False))
                self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            self.downsample = None
            if stride > 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.depth + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = torch.relu(y) if i < self.depth else y
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self, width: int, depths: tuple[int, ...]):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
            self.maxpool, features = nn.MaxPool2d(3, 2, 1), width
            for i, depth in enumerate(depths):
                blocks = []
                for j in range(depth):
                    blocks.append(Block(features, width * 2**i, 2 if i and not j else 1))
                    features = width * 2**i * (4 if kind == "bottleneck" else 1)
                self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.fc = nn.Linear(features, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            for i in range(1, 5):
                x = getattr(self, f"layer{i}")(x)
            return self.fc(x.mean((2, 3)))

    model = ResNet(**NETWORKS[kind])
    random = np.random.RandomState(18)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.as_tensor(random.standard_normal(tuple(value.shape)), dtype=torch.float32)
            if name.endswith("num_batches_tracked"):
                value += 7
            elif value.ndim > 1:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            elif name.endswith(("var", "weight")):
                value.copy_(torch.exp(0.3 * noise))
            else:
                value.copy_(0.3 * noise)
    return model.eval()


if __name__ == "__main__":
    import torch
    from safetensors.torch import save_file

    here, logits = pathlib.Path(__file__).parent, {}
    for kind in NETWORKS:
        model = network(kind)
        save_file(model.state_dict(), here / f"torch_resnet_{kind}.safetensors")
        with torch.no_grad():
            logits[kind] = model.double()(torch.as_tensor(images()).double()).numpy()
    np.savez_compressed(here / "torch_resnet.npz", images=images().transpose(0, 2, 3, 1), **logits)
