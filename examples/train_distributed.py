"""Trains a network on handwritten digits over all devices of all processes; with one device it is as good as without.

    python examples/train_distributed.py                              # all devices of this machine
    python examples/train_distributed.py --processes 2 --way fsdp     # two processes here, half of the devices each
    python examples/train_distributed.py --address HOST:PORT --processes 16 --index 3    # one of 16 machines

``--way zero1`` holds params on every device and divides the optimizer's state and its work; ``fsdp`` divides the params
too. On a cluster that JAX knows (Slurm, Kubernetes, TPU pods) nothing is given. Stopped and started again, with another
number of devices or processes too, the run goes on: the examples of a step are a function of the step.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits
from tqdm import tqdm

import gradxform as gx

OUTPUT = pathlib.Path(__file__).parent / "output"
WIDTH, BATCH, TRAINING = 256, 128, 1437


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images of 64 pixels and their digits, in one fixed order: the first 1,437 to train on."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return np.float32(digits.data[order] / 16.0), digits.target[order]


def make_params() -> dict[str, jax.Array]:
    """A network with one hidden layer."""
    first, second = jax.random.split(jax.random.key(0))
    return {
        "hidden": jax.random.normal(first, (64, WIDTH)) / 8,
        "bias": jnp.zeros(WIDTH),
        "out": jax.random.normal(second, (WIDTH, 16)) / 16,
    }


def logits_of(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Of the ten digits; the last layer has sixteen columns, which devices can share evenly."""
    return (jax.nn.gelu(images @ params["hidden"] + params["bias"]) @ params["out"])[:, :10]


def train(steps: int, way: str, folder: pathlib.Path) -> float:
    """Trains, and returns the fraction of the other images that are recognized."""
    images, labels = load()
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(3e-3, steps, 1e-4)))
    if way == "zero1":
        tx = gx.sharding.zero1(tx, min_size=0)

    def begin() -> Any:
        params = make_params()
        return params, tx.init(params)

    @jax.jit
    def train_step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, inner = state

        def loss_of(params: Any) -> jax.Array:
            chosen = jax.nn.log_softmax(logits_of(params, images))
            return -jnp.mean(jnp.take_along_axis(chosen, labels[:, None], 1))

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, inner = tx.update(gradients, inner, params)
        return (gx.apply_updates(params, updates), inner), loss

    config = {"steps": steps, "way": way, "tx": tx}
    with jax.set_mesh(mesh), gx.resume.Run(folder, config=config) as run:
        rules = () if way == "fsdp" else [("", None)]
        params_lie = gx.sharding.fsdp(jax.eval_shape(make_params), mesh, min_size=0, rules=rules)
        state_lies = gx.sharding.state_sharding(tx, jax.eval_shape(make_params), params_lie)
        state = run.restore(jax.jit(begin, out_shardings=(params_lie, state_lies)))
        if jax.process_index() == 0:
            print(gx.sharding.layout(state))
        quiet = jax.process_index() > 0
        with tqdm(run.steps(steps), initial=run.first, total=steps, unit="step", disable=quiet) as progress:
            for step in progress:
                chosen = np.array_split(gx.resume.order(0, step, TRAINING, BATCH), jax.process_count())
                mine = chosen[jax.process_index()]
                batch = gx.sharding.global_batch((images[mine], labels[mine]), NamedSharding(mesh, P("data")))
                state, loss = train_step(state, *batch)
                run.save(step, state)
                if step % 20 == 0:
                    progress.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        whole = jax.jit(lambda params: params, out_shardings=NamedSharding(mesh, P()))(state[0])
        guesses = jax.jit(logits_of)(whole, images[TRAINING:]).argmax(-1)
        return float(np.mean(np.asarray(guesses) == labels[TRAINING:]))


def start(processes: int, arguments: list[str]) -> int:
    """Starts all processes on this machine, and returns the exit code of the worst."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen([sys.executable, __file__, *arguments, "--address", address, "--index", str(i)])
        for i in range(processes)
    ]
    return max(abs(process.wait()) for process in started)


def main(arguments: list[str] | None = None) -> int:
    """Trains on all devices and prints how good the network is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="number of updates (default: %(default)s)")
    parser.add_argument("--way", choices=("replicated", "zero1", "fsdp"), default="zero1", help="what is divided")
    parser.add_argument("--processes", type=int, default=1, help="how many there are (default: %(default)s)")
    parser.add_argument("--address", help="host:port of the first process; without, all are started here")
    parser.add_argument("--index", type=int, help="which of the processes this is")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="where the run is saved (%(default)s)")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.processes < 1:
        parser.error(f"--steps, --processes: expected at least 1, got {options.steps} and {options.processes}")
    if options.processes > 1 and options.address is None:
        return start(options.processes, arguments)
    if options.processes > 1:
        gx.sharding.join(options.address, options.processes, options.index)
    else:
        gx.sharding.join()
    accuracy = train(options.steps, options.way, options.output / f"train_distributed-{options.way}-{options.steps}")
    if jax.process_index() == 0:
        where = f"{jax.device_count()} devices of {jax.process_count()} processes"
        print(f"test accuracy {accuracy:.2%} on {where}, state divided by {options.way}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
