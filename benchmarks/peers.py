"""One training step of each peer as something to time: a function without arguments that returns when it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Step = Callable[[], None]
TorchMaker = Callable[[Any, list[Any]], Step]
"""Given torch and its params with gradients, makes a step."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A step, and the params that it has come to."""

    step: Step
    params: Callable[[], list[np.ndarray]]

    def difference(self, other: Peer) -> float:
        """The largest difference between the params of two peers: whether they did the same work."""
        pairs = zip(self.params(), other.params(), strict=True)
        return max(float(np.max(np.abs(a - b))) for a, b in pairs)


def jax_update(tx: Any, apply_updates: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The function of a step: ``(params, state, grads)`` to the new params and state."""

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    return update


def jax_peer(tx: Any, update: Callable[..., Any], params: Any, grads: Any) -> Peer:
    """A jitted step that keeps its own params and state, and donates them."""
    call = jax.jit(update, donate_argnums=(0, 1))
    grads = jax.tree.map(jnp.array, grads)
    held = jax.tree.map(jnp.array, params)
    carry = [held, tx.init(held)]

    def step() -> None:
        carry[:] = jax.block_until_ready(call(*carry, grads))

    return Peer(step, lambda: [np.asarray(x) for x in jax.tree.leaves(carry[0])])


def import_torch() -> Any:
    """torch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def torch_device(torch: Any) -> str | None:
    """The name torch has for the kind of device that jax uses; None where torch has no such device."""
    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.devices()[0].platform)
    return None if device == "cuda" and not torch.cuda.is_available() else device


def torch_peer(torch: Any, make: TorchMaker, params: Any, grads: Any) -> Peer:
    """A step of torch on the kind of device that jax uses.

    Raises:
      RuntimeError: torch has no such device.
    """
    device = torch_device(torch)
    if device is None:
        raise RuntimeError(f"torch cannot use the {jax.devices()[0].platform}")
    held = [torch.nn.Parameter(torch.tensor(x, device=device)) for x in jax.tree.leaves(params)]
    for param, grad in zip(held, jax.tree.leaves(grads), strict=True):
        param.grad = torch.tensor(grad, device=device)
    advance = make(torch, held)

    def step() -> None:
        advance()
        if device == "cuda":
            torch.cuda.synchronize()

    return Peer(step, lambda: [param.detach().cpu().numpy() for param in held])
