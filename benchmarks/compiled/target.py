"""The chips that programs are compiled for, none of which has to be there."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

VARIABLES = {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
"""What has to be set before jax is imported: no device is looked for, and libtpu's lock, which is about a device, does
not keep a second process from compiling."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do, by its data sheet.

    Attributes:
      hbm: bytes a second.
      flops: a second, of bfloat16.
      memory: bytes of HBM.
      clock: cycles a second.
      lookup: seconds that the compiler's cost model charges for a slice of one element: those of a tile of HBM. It
        charges a scatter less; here a scatter counts as much.
    """

    hbm: float
    flops: float
    memory: float
    clock: float
    lookup: float


CHIPS = {
    "v5e": Chip(819e9, 197e12, 16 * 2**30, 1.503e9, 6.4e-9),
    "v6e": Chip(1640e9, 918e12, 32 * 2**30, 1.751e9, 3.2e-9),
    "h100": Chip(3352e9, 989e12, 79 * 2**30, 1.98e9, 0.0),
}
TOPOLOGIES = {"v5e:1x1": 1, "v5e:2x2": 4, "v5e:4x4": 16, "v6e:1x1": 1, "h100": 1}
"""How many chips they have."""
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  device_memory_size: 84942979072  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98
  core_count: 132  fpus_per_core: 128  threads_per_warp: 32  threads_per_core_limit: 2048  threads_per_block_limit: 1024
  shared_memory_per_core: 233472  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
}
platform_name: "CUDA"  device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }  runtime_version { major: 12 minor: 9 }
"""
"""What XLA has to know of the GPU that it compiles for."""


def chip_of(topology: str) -> Chip:
    """The chip of a topology."""
    return CHIPS[topology.partition(":")[0]]


def missing(topology: str) -> str | None:
    """What keeps this process from compiling for a topology; None where nothing does."""
    gpu = topology.startswith("h100")
    needed, extra = (("jax_cuda12_plugin", "nvidia.cuda_nvcc"), "cuda-compiler") if gpu else (("libtpu",), "tpu")
    for name in needed:
        if not _found(name):
            return f"{topology}: {name} is not installed: pip install -e '.[{extra}]'"
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        return f"{topology}: expected JAX_PLATFORMS=cpu before jax is imported, got {os.environ.get('JAX_PLATFORMS')!r}"
    return None


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def mesh_of(topology: str, axis: str = "chips", kind: AxisType = AxisType.Auto) -> Mesh:
    """All chips of a topology in a row.

    Raises:
      RuntimeError: the compiler is not installed.
    """
    if problem := missing(topology):
        raise RuntimeError(problem)
    if topology.startswith("h100"):
        description = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1")
    else:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return Mesh(np.array(description.devices), (axis,), axis_types=(kind,))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What became of a function; the numbers are those of one chip, the seconds those of all processor cores."""

    seconds: float
    text: str
    arguments: int
    outputs: int
    aliased: int
    temp: int
    code: int
    flops: float

    @property
    def bytes(self) -> int:
        """What the chip has to hold."""
        return self.arguments + self.outputs - self.aliased + self.temp + self.code


def compile_for(
    function: Callable[..., Any], arguments: Sequence[Any], mesh: Mesh, donate: Sequence[int] = (), *, told: bool = True
) -> Compiled:
    """Compiles a function.

    Args:
      function: to be jitted, or jitted.
      arguments: trees of arrays or ``jax.ShapeDtypeStruct``; those that are not placed on chips of the mesh are on all
        of them alike.
      mesh: of ``mesh_of``.
      donate: positions of arguments whose memory it may take.
      told: whether the function is traced under ``jax.set_mesh``: some rules of Pallas ask what chip they are for.
        Plain ``jit`` on arrays that are spread does not tell it.

    Raises:
      RuntimeError: what came out is not a program of the mesh's chips.
    """
    everywhere, chips = NamedSharding(mesh, P()), set(mesh.devices.flat)

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None)
        if sharding is None or not sharding.device_set <= chips:
            sharding = everywhere
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)

    call = function if hasattr(function, "lower") else jax.jit(function, donate_argnums=tuple(donate))
    with jax.set_mesh(mesh) if told else contextlib.nullcontext():
        lowered = call.lower(*jax.tree.map(placed, arguments))
    start = time.process_time()
    program = lowered.compile()
    seconds = time.process_time() - start
    text, memory = program.as_text() or "", program.memory_analysis()
    if mesh.devices.flat[0].platform == "tpu" and ":T(" not in text:
        raise RuntimeError("program: expected the tiled layouts of a TPU, got none")
    return Compiled(
        seconds,
        text,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        float((program.cost_analysis() or {}).get("flops", 0.0)),
    )
