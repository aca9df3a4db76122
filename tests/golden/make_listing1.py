"""Makes listing1.npz: AdamW, a cosine learning rate and a clip by the global norm, run in torch for 1,000 steps.

Run by hand where torch is installed (2.13 made the file that is kept here); the tests need only the file:

    python tests/golden/make_listing1.py
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

STEPS = 1000
SHAPES = {"embedding": (12, 8), "kernel": (3, 3, 2, 8), "bias": (8,), "temperature": ()}

Arrays = dict[str, np.ndarray]


def problem() -> tuple[Arrays, Arrays]:
    """The start and the gradients, as float32.

    Returns:
      The params, and the gradients of all steps stacked along a leading axis. Their global norm runs from 0.02 to 40,
      so a clip at 1 works on some steps and rests on others.
    """
    # RandomState is the generator whose stream NumPy has promised never to change.
    random = np.random.RandomState(20251022)
    params = {name: np.float32(random.standard_normal(shape)) for name, shape in SHAPES.items()}
    scale = 10.0 ** random.uniform(-3.0, 0.3, size=STEPS)
    drift = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    gradients = {
        name: np.float32(np.stack([s * (random.standard_normal(shape) + 0.5 * drift[name]) for s in scale]))
        for name, shape in SHAPES.items()
    }
    return params, gradients


def run(dtype: Any, clip: Callable[[list[Any]], Any]) -> Arrays:
    """Listing 1 from ``problem()``, computed in ``dtype``.

    Args:
      dtype: torch's float32 or float64.
      clip: clips the gradients of a list of params in place.

    Returns:
      The final params.
    """
    import torch

    start, gradients = problem()
    params = {name: torch.nn.Parameter(torch.as_tensor(value).to(dtype)) for name, value in start.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=1e-5)
    for step in range(STEPS):
        for name, param in params.items():
            param.grad = torch.as_tensor(gradients[name][step]).to(dtype)
        clip(list(params.values()))
        optimizer.step()
        scheduler.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def clip_of_torch(params: list[Any]) -> None:
    """``g * min(1, 1 / (norm + 1e-6))``, as torch has it."""
    import torch

    torch.nn.utils.clip_grad_norm_(params, max_norm=1.0)


def clip_of_paper(params: list[Any]) -> None:
    """``g * min(1, 1 / norm)``, as Pascanu et al. (2013) have it."""
    import torch

    norm = torch.nn.utils.get_total_norm([param.grad for param in params])
    for param in params:
        param.grad.mul_(torch.clamp(1.0 / norm, max=1.0))


def main() -> None:
    """Writes the file beside this script."""
    import torch

    torch.set_num_threads(1)
    finals = {
        "torch_f32": run(torch.float32, clip_of_torch),
        "torch_f64": run(torch.float64, clip_of_torch),
        "torch_f64_exact_clip": run(torch.float64, clip_of_paper),
    }
    arrays = {f"{run_name}/{name}": value for run_name, final in finals.items() for name, value in final.items()}
    _, gradients = problem()
    # A test that read other gradients than torch did would say nothing: keep what tells them apart.
    arrays["gradient_sums"] = np.array([np.sum(g.astype(np.float64) ** 2) for g in gradients.values()])
    distance = max(np.abs(finals["torch_f32"][name] - finals["torch_f64"][name]).max() for name in SHAPES)
    arrays["torch_f32_distance"] = np.float64(distance)
    arrays["torch_version"] = np.array(torch.__version__)
    target = pathlib.Path(__file__).with_name("listing1.npz")
    np.savez_compressed(target, **arrays)
    print(f"{target}: torch's float32 run ends {distance:.2e} from its float64 run")


if __name__ == "__main__":
    main()
