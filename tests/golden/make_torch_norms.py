"""Makes torch_norms.npz: what torch's norms give in float64, forward and backward.

Run by hand where torch is installed (2.13 made the file that is kept here); the tests need only the file:

    python tests/golden/make_torch_norms.py

``SyncBatchNorm`` runs on GPUs alone. What it promises is the batch norm of all shards put together, so ``sync`` is
``BatchNorm2d`` of the concatenated batch; the shards are in ``SHARDS``, one of them empty.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

CHANNELS = 4
SIZES = (3, 5, 1, 2)
SHARDS = (3, 0, 1, 4)

BATCH: dict[str, dict[str, Any]] = {
    "batch": {},
    "batch_cumulative": {"momentum": None},
    "batch_fast": {"momentum": 0.6, "eps": 1e-2},
    "batch_plain": {"affine": False},
}
SINGLE: dict[str, tuple[str, dict[str, Any]]] = {
    "layer": ("LayerNorm", {"normalized_shape": (2, 3)}),
    "layer_last": ("LayerNorm", {"normalized_shape": 3, "eps": 1e-2}),
    "rms": ("RMSNorm", {"normalized_shape": (2, 3), "eps": 1e-3}),
    "group": ("GroupNorm", {"num_groups": 2, "num_channels": CHANNELS}),
    "instance": ("InstanceNorm2d", {"num_features": CHANNELS, "affine": True}),
    "instance_plain": ("InstanceNorm2d", {"num_features": CHANNELS, "eps": 1e-2}),
}


def problem() -> dict[str, np.ndarray]:
    """Inputs and incoming gradients, channels second, and parameters, as float64."""
    # RandomState is the generator whose stream NumPy has promised never to change.
    random = np.random.RandomState(2013)
    made: dict[str, np.ndarray] = {}
    for i, size in enumerate((*SIZES, sum(SHARDS))):
        shape = (size, CHANNELS, 2, 3)
        spread, mean = np.exp(random.uniform(-1, 1, (CHANNELS, 1, 1))), random.standard_normal((CHANNELS, 1, 1))
        made[f"x{i}"] = random.standard_normal(shape) * spread + 2 * mean
        made[f"g{i}"] = random.standard_normal(shape)
    for name, shape in {"channels": (CHANNELS,), "two": (2, 3), "one": (3,)}.items():
        made[f"weight_{name}"] = 1 + 0.3 * random.standard_normal(shape)
        made[f"bias_{name}"] = random.standard_normal(shape)
    return made


def parameters(kind: str) -> str:
    """Which of ``problem()``'s parameters a case of this name takes."""
    return {"layer": "two", "rms": "two", "layer_last": "one"}.get(kind, "channels")


def _module(name: str, kind: str, arguments: dict[str, Any]) -> Any:
    import torch

    made = problem()
    module = getattr(torch.nn, kind)(**arguments)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(torch.as_tensor(made[f"{key}_{parameters(name)}"]))
    return module


def _pass(module: Any, x: np.ndarray, g: np.ndarray) -> dict[str, np.ndarray]:
    """Output and gradients of one call."""
    import torch

    module.zero_grad()
    x = torch.as_tensor(x).requires_grad_()
    y = module(x)
    y.backward(torch.as_tensor(g))
    return {"y": y.detach().numpy(), "dx": x.grad.numpy()} | {
        f"d{key}": value.grad.numpy().copy() for key, value in module.named_parameters()
    }


def _state(module: Any) -> dict[str, np.ndarray]:
    return {f"state/{key}": value.numpy().copy() for key, value in module.state_dict().items()}


def run_batch(name: str, arguments: dict[str, Any], batches: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A batch norm trained over ``batches``, then evaluated on the last: outputs of both, statistics of all steps."""
    made, module = problem(), _module(name, "BatchNorm2d", {"num_features": CHANNELS} | arguments)
    means, variances = [], []
    for i in batches:
        last = _pass(module, made[f"x{i}"], made[f"g{i}"])
        means.append(module.running_mean.numpy().copy())
        variances.append(module.running_var.numpy().copy())
    module.eval()
    i = batches[-1]
    evaluated = {f"eval/{key}": value for key, value in _pass(module, made[f"x{i}"], made[f"g{i}"]).items()}
    return last | evaluated | {"means": np.stack(means), "vars": np.stack(variances)} | _state(module)


def run() -> dict[str, np.ndarray]:
    """All cases, each array under ``case/...``."""
    import torch

    torch.set_default_dtype(torch.float64)
    cases = {name: run_batch(name, arguments, tuple(range(len(SIZES)))) for name, arguments in BATCH.items()}
    cases["sync"] = run_batch("sync", {}, (len(SIZES),))
    made = problem()
    for name, (kind, arguments) in SINGLE.items():
        cases[name] = _pass(_module(name, kind, arguments), made["x1"], made["g1"])
    return {f"{name}/{key}": value for name, case in cases.items() for key, value in case.items()}


if __name__ == "__main__":
    sums = {f"sums/{key}": np.sum(value**2) for key, value in problem().items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("torch_norms.npz"), **sums, **run())
