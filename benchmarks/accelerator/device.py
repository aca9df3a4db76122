"""The device that is measured, and the CPU beside it whose values are compared."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax

import gradxform as gx
from benchmarks import harness


def with_cpu() -> None:
    """Starts the command anew where ``JAX_PLATFORMS`` hides the CPU, whose values those of the device stand beside."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "JAX_PLATFORMS": f"{platforms},cpu"}
        )


def environment() -> dict[str, Any]:
    """What the figures depend on, besides what every suite records: the driver, and what gradxform's source was."""
    device = jax.devices()[0]
    return {
        **harness.environment(),
        "driver": _driver(),
        "platform_version": str(getattr(device.client, "platform_version", "")),
        "memory_bytes": memory(device),
        "source": source(),
    }


def memory(device: jax.Device) -> int | None:
    """The bytes that arrays on a device may take in all; None where it does not tell."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def free(device: jax.Device) -> float:
    """The bytes that are free on a device; without end where it does not tell."""
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else float("inf")


def source() -> str:
    """A digest of gradxform's source: figures of two versions do not mix in one file."""
    root = pathlib.Path(gx.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _driver() -> str | None:
    """What ``nvidia-smi`` says of the card and the driver; None where there is no such command."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
