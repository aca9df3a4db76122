"""An example that saves often and tells its steps, which ``test_resume_kills.py`` kills.

python examples_program.py NAME OUTPUT EVERY [ADDRESS PROCESSES INDEX]
"""

from __future__ import annotations

import hashlib
import pathlib
import runpy
import sys
from typing import Any

import jax
import numpy as np

import gradxform as gx

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
ARGUMENTS = {
    "train_digits": ["--steps", "60"],
    "pipeline": ["--seeds", "1", "--epochs", "1", "--steps", "3"],
    "train_distributed": ["--steps", "60"],
}


def bits(state: Any) -> list[bytes]:
    """What this process has of a state."""
    return [
        b"".join(np.asarray(part.data).tobytes() for part in x.addressable_shards)
        if isinstance(x, jax.Array)
        else np.asarray(x).tobytes()
        for x in jax.tree.leaves(state)
    ]


class Often(gx.resume.Run):
    """Tells its steps, and the bits of what it ends with."""

    stopped = False

    def restore(self, state: Any, position: Any = None) -> Any:
        state = super().restore(state, position)
        self.told = bits(state)
        return state

    def save(self, step: int, state: Any, position: Any = None) -> bool:
        self.told = bits(state)  # it is made
        print("\nstep", self.directory.name, step, flush=True)
        return super().save(step, state, position)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        Often.stopped = kind is not None  # or by what comes
        try:
            super().__exit__(kind, error, trace)
        except SystemExit:
            Often.stopped = True
            raise
        if kind is None:
            print("\nend", self.directory.name, hashlib.sha256(b"".join(self.told)).hexdigest(), flush=True)


def main(name: str, output: str, every: str, *several: str) -> None:
    sys.path.insert(0, str(EXAMPLES))
    gx.resume.Run = lambda *args, **options: Often(*args, every=int(every), **options)  # type: ignore[assignment, misc]
    if name == "pipeline":  # with a network and an augmentation that are quick to compile
        import finetune
        import networks
        import pipeline_report
        import pretrain_simclr

        networks.WIDTHS = (4, 4, 4, 8)
        for module in (finetune, pretrain_simclr):
            module.distortion = lambda shape: pretrain_simclr.noise(0.1)
        pipeline_report.draw = lambda *drawn: None
    sys.argv = [name, *ARGUMENTS[name], "--output", output]
    for option, value in zip(("--address", "--processes", "--index"), several, strict=False):
        sys.argv += [option, value]
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:  # with code 0 a run that was stopped ends too
        if not Often.stopped:
            print("\ndone", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
