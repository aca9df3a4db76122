"""Makes torch_optimizers.npz: where torch's optimizers end in float64 after 50 steps at a falling learning rate.

Run by hand where torch is installed (2.13 made the file that is kept here); the tests need only the file:

    python tests/golden/make_torch_optimizers.py
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

STEPS = 50
SHAPES = {"kernel": (4, 6), "conv": (2, 3, 5), "bias": (3,)}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd_nesterov_decay": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {"lr": 0.01}),
    "rmsprop_centered": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "centered": True}),
    "rmsprop_momentum_decay": ("RMSprop", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.05, "betas": (0.8, 0.95)}),
    "adam_decay": ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
    "adam_amsgrad": ("Adam", {"lr": 0.05, "betas": (0.9, 0.8), "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.05, "weight_decay": 0.1}),
    "nadam": ("NAdam", {"lr": 0.05}),
    "nadam_decoupled": (
        "NAdam",
        {"lr": 0.05, "momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    # torch's RAdam adds eps before it corrects the bias; without eps the two forms are one.
    "radam": ("RAdam", {"lr": 0.05, "eps": 0.0}),
    "radam_decoupled": (
        "RAdam",
        {"lr": 0.05, "betas": (0.9, 0.95), "eps": 0.0, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adafactor": ("Adafactor", {"lr": 0.01}),
    "adafactor_decay": ("Adafactor", {"lr": 0.01, "d": 1.5, "beta2_decay": -0.6, "weight_decay": 0.1}),
    "adafactor_fast_decay": ("Adafactor", {"lr": 0.5, "weight_decay": 0.1}),
}


def problem() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The start, and the gradients of all steps stacked along a leading axis, as float64."""
    # RandomState is the generator whose stream NumPy has promised never to change.
    random = np.random.RandomState(2013)
    params = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    scale = 10.0 ** random.uniform(-1.0, 0.5, size=STEPS)
    gradients = {
        name: np.stack([s * (random.standard_normal(shape) + 0.3) for s in scale]) for name, shape in SHAPES.items()
    }
    return params, gradients


def rate(step: int) -> float:
    """The factor on the learning rate: it falls, so that a rate inside a momentum differs from one outside."""
    return 1 - 0.01 * step


def run(name: str) -> dict[str, np.ndarray]:
    """Where one case ends."""
    import torch

    torch.set_default_dtype(torch.float64)  # NAdam keeps its product of momenta in the default dtype
    start, gradients = problem()
    kind, arguments = CASES[name]
    params = {key: torch.nn.Parameter(torch.as_tensor(value)) for key, value in start.items()}
    optimizer = getattr(torch.optim, kind)(params.values(), **arguments)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = arguments["lr"] * rate(step)
        for key, param in params.items():
            param.grad = torch.as_tensor(gradients[key][step])
        optimizer.step()
    return {key: param.detach().numpy() for key, param in params.items()}


if __name__ == "__main__":
    sums = {f"gradients/{key}": np.sum(value**2) for key, value in problem()[1].items()}
    ends = {f"{name}/{key}": value for name in CASES for key, value in run(name).items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("torch_optimizers.npz"), **sums, **ends)
