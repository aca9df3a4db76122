"""Trains a small transformer twice: with everything in float32, and at half of the memory: 6 bytes a parameter, not 12.

    python examples/train_bf16.py --steps 400 --seed 0 --output pictures

The params are bfloat16; the 16 bits that float32 has more lie in the optimizer's state, so that a step of any size
counts, and both averages of AdamW are kept in 8 bits. The text is the source of Python's own standard library, read
byte by byte. What the two runs see and start from is the same; their losses are drawn over each other.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import sysconfig
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt

import gradxform as gx

OUTPUT = pathlib.Path(__file__).parent / "output"
WIDTH, LAYERS, HEADS, CONTEXT, BATCH_SIZE = 96, 3, 4, 64, 16
POLICY = gx.precision.Policy(params="float32", compute="bfloat16", output="float32")
"""The products of matrices are in bfloat16 in both runs: what differs is what is kept from step to step."""


class Block(nnx.Module):
    """Attention to what came before, and two layers on each position."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = gx.norm.nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, use_bias=False, rngs=rngs)
        self.norm2 = gx.norm.nnx.RMSNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The vectors after this block, of shape (batch, CONTEXT, WIDTH)."""
        x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Reader(nnx.Module):
    """A transformer that says at each byte of a text which comes next."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(256, WIDTH, rngs=rngs)
        self.position = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = gx.norm.nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """The logits of the next byte, of shape (batch, CONTEXT, 256)."""
        x = self.embedding(text) + self.position(jnp.arange(CONTEXT))
        for block in self.blocks:
            x = block(x)
        return self.embedding.attend(self.norm(x))


class Run(NamedTuple):
    """What came of a run.

    Attributes:
      losses: the mean cross-entropy of each step's batch.
      bytes_per_param: of params and state together.
    """

    losses: np.ndarray
    bytes_per_param: float


def load() -> np.ndarray:
    """The sources, one after another, as bytes."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return np.frombuffer(b"\n".join(file.read_bytes() for file in files), np.uint8)


@functools.partial(jax.jit, static_argnames=("graph", "tx"), donate_argnames=("params", "state"))
def train_step(
    graph: Any, tx: gx.Transformation, params: Any, state: Any, text: jax.Array
) -> tuple[Any, Any, jax.Array]:
    """One update: the new params and state, in the memory of the old, and the loss before it."""

    def loss_of(params: Any) -> jax.Array:
        logits = nnx.merge(graph, POLICY.cast_params(params))(text[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(POLICY.cast_output(logits), text[:, 1:]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(gradients, state, params)
    return gx.apply_updates(params, updates), state, loss


def train(name: str, *, small: bool, steps: int, seed: int) -> Run:
    """Trains the network.

    Args:
      name: what the progress bar calls the run.
      small: whether to keep 6 bytes a parameter rather than 12.
      steps: the number of updates.
      seed: fixes the initial weights and the order of the text.

    Returns:
      The course of the run and what it kept.
    """
    schedule = gx.schedules.warmup(steps // 10, gx.schedules.cosine(4e-3, steps - steps // 10, 4e-4))
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(schedule, b2=0.99, weight_decay=0.1))
    if small:
        tx = gx.precision.master_weights(gx.precision.compress_state(tx, gx.precision.int8_blockwise(), min_size=256))
    graph, params = nnx.split(Reader(nnx.Rngs(seed)), nnx.Param)
    if small:
        params, state = gx.precision.split(params, tx)
    else:
        state = tx.init(params)
    print(gx.precision.memory(state, params))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))

    source, random, losses = load(), np.random.default_rng(seed), []
    for _ in tqdm(range(steps), desc=name, unit="step"):
        starts = random.integers(0, len(source) - CONTEXT - 1, BATCH_SIZE)
        text = np.int32(source[starts[:, None] + np.arange(CONTEXT + 1)])
        params, state, loss = train_step(graph, tx, params, state, text)
        losses.append(loss)
    return Run(np.array(losses), kept / count)


def draw(runs: dict[str, Run], path: pathlib.Path) -> None:
    """Draws the losses of both runs, as they were and smoothed."""
    fig, ax = plt.subplots(figsize=(8.0, 4.6), layout="constrained")
    for (name, run), color, style in zip(runs.items(), ("#0072B2", "#D55E00"), ("-", "--"), strict=True):
        width = max(len(run.losses) // 20, 1)
        smooth = np.convolve(run.losses, np.full(width, 1 / width), "valid")
        ax.plot(run.losses, color=color, linewidth=0.6, alpha=0.25)
        ax.plot(
            np.arange(len(smooth)) + width // 2,
            smooth,
            style,
            color=color,
            linewidth=1.8,
            label=f"{name}: {run.bytes_per_param:.2f} bytes a parameter",
        )
    ax.set_xlabel("Step")
    ax.set_ylabel("Training loss (nats a byte)")
    ax.set_title("Python's sources, byte by byte: half the memory, the same course")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> int:
    """Trains twice, draws and judges.

    Args:
      arguments: those of the command line; by default what the program was called with.

    Returns:
      The exit code: 1 if the small run ends more than 0.05 above the other.
    """
    parser = argparse.ArgumentParser(description="Trains a small transformer at 12 and at 6 bytes a parameter.")
    parser.add_argument("--steps", type=int, default=400, help="number of updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and text (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="folder of the picture (%(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 20:
        parser.error(f"--steps: expected at least 20, got {options.steps}")

    runs = {
        name: train(name, small=small, steps=options.steps, seed=options.seed)
        for name, small in (("float32", False), ("bfloat16 + masters + 8-bit averages", True))
    }
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "train_bf16.png"
    draw(runs, picture)
    last = options.steps // 10
    wide, small = (run.losses[-last:].mean() for run in runs.values())
    print(f"mean loss of the last {last} steps: float32 {wide:.4f}, at half the memory {small:.4f}")
    print(f"curves in {picture}")
    if small > wide + 0.05:
        print("the small run ends more than 0.05 above the other", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
