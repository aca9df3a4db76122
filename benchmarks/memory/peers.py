"""AdamW as others store it, beside ours: bytes of state, something to time, and whether its averages stay right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradxform as gx
from benchmarks import harness
from benchmarks.memory import codecs

Arrays = Sequence[np.ndarray]
RATE = 1e-3


class Peer(NamedTuple):
    """An AdamW with params and a state of its own.

    Attributes:
      load: takes the gradients of the steps that follow.
      step: makes one, and returns when it is done.
      squares: the means of squares that the state stands for.
      size: the bytes of the state, once a step was made.
    """

    load: Callable[[Arrays], None]
    step: Callable[[], None]
    squares: Callable[[], Arrays]
    size: Callable[[], float]


Make = Callable[[Arrays, float], Peer]
"""Of the params to start from, and b2."""


def ours(codec: gx.precision.Codec | None) -> Make:
    """``gx.adamw`` with its state in codes."""
    return lambda params, b2: _in_jax(
        params, codecs.stored(gx.adamw(RATE, b2=b2), codec), lambda state: gx.precision.decompress(state)[0].nu
    )


def _optax(params: Arrays, b2: float) -> Peer:
    return _in_jax(params, optax.adamw(RATE, b2=b2), lambda state: state[0].nu)


def _flashoptim_jax(params: Arrays, b2: float) -> Peer:
    import flashoptim_jax as flash

    # Its fused kernel is for GPUs, and it wants params of 16 bits to keep more of.
    tx = flash.flash_adamw(RATE, b2=b2, master_weight_bits=None, fused=jax.devices()[0].platform == "gpu")
    return _in_jax(params, tx, lambda state: [flash.dequantize_variance(nu) for nu in state.nu], tx.step)


def _in_jax(params: Arrays, tx: Any, squares: Callable[[Any], Any], step: Any = None) -> Peer:
    call = jax.jit(codecs.step_of(tx) if step is None else step, donate_argnums=(0, 1))
    held = [jnp.array(p) for p in params]
    carry, gradients = [held, tx.init(held)], []

    def load(grads: Arrays) -> None:
        gradients[:] = map(jnp.array, grads)

    def advance() -> None:
        carry[:] = jax.block_until_ready(call(*carry, gradients))

    return Peer(
        load,
        advance,
        lambda: [np.asarray(nu) for nu in squares(carry[1])],
        lambda: gx.precision.memory(carry[1], carry[0]).total,
    )


def _torch(params: Arrays, b2: float) -> Peer:
    import torch

    return _in_torch(
        params, lambda held: torch.optim.AdamW(held, RATE, (0.9, b2), fused=True), lambda state: state["exp_avg_sq"]
    )


def _torchao(name: str) -> Make:
    def make(params: Arrays, b2: float) -> Peer:
        import torchao.optim

        return _in_torch(
            params,
            lambda held: getattr(torchao.optim, name)(held, RATE, (0.9, b2)),
            lambda state: state["exp_avg_sq"].dequantize(),
        )

    return make


def _bitsandbytes(params: Arrays, b2: float) -> Peer:
    import bitsandbytes as bnb

    return _in_torch(
        params,
        lambda held: bnb.optim.AdamW8bit(held, RATE, (0.9, b2)),
        lambda state: bnb.functional.dequantize_blockwise(
            state["state2"], absmax=state["absmax2"], code=state["qmap2"], blocksize=256
        ),
    )


def _flashoptim(params: Arrays, b2: float) -> Peer:
    import flashoptim

    return _in_torch(
        params,
        lambda held: flashoptim.FlashAdamW(held, RATE, (0.9, b2), master_weight_bits=None),
        lambda state: state["exp_avg_sq"].materialize(),
    )


def _in_torch(params: Arrays, make: Callable[[list[Any]], Any], squares: Callable[[Any], Any]) -> Peer:
    import torch

    # Handing a thread its share of a small array takes longer than the share.
    torch.set_num_threads(harness.cores() if sum(p.size for p in params) > 1e6 else 1)
    held = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    optimizer = make(held)

    def load(grads: Arrays) -> None:
        for p, g in zip(held, grads, strict=True):
            p.grad = torch.tensor(g)

    def states() -> list[Any]:
        return [optimizer.state[p] for p in held]

    def size() -> float:
        arrays = {part.data_ptr(): part for state in states() for x in state.values() for part in _parts(x)}
        return sum(part.nbytes for part in arrays.values())

    return Peer(load, optimizer.step, lambda: [squares(state).numpy() for state in states()], size)


def _parts(x: Any) -> list[Any]:
    """The tensors that an entry of a state of torch is made of."""
    if hasattr(x, "__tensor_flatten__"):
        return [part for name in x.__tensor_flatten__()[0] for part in _parts(getattr(x, name))]
    return [x] if hasattr(x, "data_ptr") else []


PEERS: dict[str, Make] = {
    "optax.adamw": _optax,
    "torch.optim.AdamW, fused": _torch,
    "torchao AdamW8bit": _torchao("AdamW8bit"),
    "torchao AdamWFp8": _torchao("AdamWFp8"),
    "torchao AdamW4bit": _torchao("AdamW4bit"),
    "bitsandbytes AdamW8bit": _bitsandbytes,
    "flashoptim_jax flash_adamw": _flashoptim_jax,
    "flashoptim FlashAdamW": _flashoptim,
}
"""Steps of torchao are compiled by torch: it does that by itself."""


def versions() -> dict[str, str | None]:
    """Of the packages of the peers; None where one is not installed."""
    return {
        name: harness.version(name)
        for name in ("optax", "torch", "torchao", "bitsandbytes", "flashoptim-jax", "flashoptim")
    }


def start(make: Make, params: Arrays, b2: float = 0.999) -> Peer | str:
    """A peer that has made a step, or what keeps it from that."""
    try:
        peer = make(params, b2)
        peer.load([0.01 * p for p in params])
        peer.step()
    except ModuleNotFoundError as error:
        return f"not installed ({error.name})"
    except Exception as error:
        return f"not run ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return peer


def averages(make: Make, steps: int, shape: tuple[int, int] = (16, 256)) -> dict[str, float] | str:
    """How far the root of the mean of squares is from the exact one, where gradients fall to a hundredth.

    Of every second element they fall after a quarter of the steps; ``1 / (1 - b2)`` is an eighth of them all.

    Returns:
      The mean of the ratios to the exact root, of those that fell and of the others, and the spread of the others; and
      of both the root of the mean over all elements, by the exact one. Or what keeps the peer from that.
    """
    b2, random = 1 - 8 / steps, np.random.default_rng(1)
    fall = np.arange(np.prod(shape)).reshape(shape) % 2 == 0
    peer, exact = start(make, [np.zeros(shape, np.float32)], b2), np.zeros(shape)
    if isinstance(peer, str):
        return peer
    for t in range(steps):
        grad = random.standard_normal(shape, np.float32) * np.where(fall & (t >= steps // 4), np.float32(0.01), 1)
        peer.load([grad])
        peer.step()
        exact += (1 - b2) * (np.square(grad, dtype=np.float64) - exact)
    stored = np.float64(peer.squares()[0]).reshape(shape)
    ratio = np.sqrt(stored / exact)
    found = {
        "fallen": ratio[fall].mean(),
        "others": ratio[~fall].mean(),
        "spread": ratio[~fall].std(),
        "fallen_mean": np.sqrt(stored[fall].mean() / exact[fall].mean()),
        "others_mean": np.sqrt(stored[~fall].mean() / exact[~fall].mean()),
    }
    return {name: float(x) for name, x in found.items()}
