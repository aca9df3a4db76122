"""Processes that begin together: a roll call before JAX connects them, and their rows as one batch."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gradxform.core import checks
from gradxform.core.manual import ShardingError
from gradxform.core.trees import flatten, named_leaves
from gradxform.core.types import PyTree
from gradxform.sharding.specs import mesh_of, names, parts

PAUSE = 0.1
"""Seconds between two tries to reach the first process."""


def join(
    address: str | None = None, processes: int | None = None, index: int | None = None, *, timeout: float = 300
) -> None:
    """Connects the processes of a run; each calls it once, before anything else of JAX.

    Before ``jax.distributed.initialize`` the first process calls the roll over plain TCP: JAX itself ends a process
    that waits in vain, with a trace that names nobody. One process, or processes of a cluster that JAX knows (Slurm,
    Kubernetes, TPU pods), give nothing. JAX's service starts for one process too: it keeps a SIGTERM in mind, which
    ``gx.resume`` asks for.

    Args:
      address: ``host:port`` of the first process; free there.
      processes: how many there are.
      index: which of them this is, from 0 on.
      timeout: seconds to wait for all of them, > 0.

    Raises:
      TypeError: an argument of another type.
      ValueError: only some of the three are given, one is out of range, or ``address`` has no port.
      TimeoutError: not all came in time; it says which did.

    Example:
      >>> import gradxform as gx
      >>> gx.sharding.join("localhost:8476", processes=4)
      Traceback (most recent call last):
      ValueError: index: expected a number from 0 to 3 beside address and processes, got None
    """
    checks.real("timeout", timeout, above=0)
    if address is None and processes in (None, 1) and index in (None, 0):
        _initialize_alone(timeout)
        return
    host, port = _host_and_port(address)
    checks.integer("processes", processes, at_least=1)
    if processes is None or index is None or not 0 <= index < processes:
        last = "processes" if processes is None else processes - 1
        raise ValueError(f"index: expected a number from 0 to {last} beside address and processes, got {index!r}")
    if processes > 1:
        if index == 0:
            _call(host, port, processes, timeout)
        else:
            _answer(host, port, processes, index, timeout)
    jax.distributed.initialize(address, processes, index, initialization_timeout=max(1, round(timeout)))


def global_batch(local: PyTree, sharding: NamedSharding | None = None) -> PyTree:
    """The rows of all processes as one batch, divided over the devices.

    Args:
      local: a tree of arrays with this process's rows in front, as many in each process.
      sharding: how the batch lies; by default along the first axis of the mesh in context.

    Returns:
      A tree of ``jax.Array``: the rows of the first process, then those of the next.

    Raises:
      ShardingError: there is no mesh; the leaves, or the processes, have different numbers of rows: with the number of
        each; or the rows of all do not divide.

    Example:
      >>> import gradxform as gx, jax, numpy as np
      >>> with jax.set_mesh(jax.make_mesh((jax.device_count(),), ("data",))):
      ...   batch = gx.sharding.global_batch({"x": np.zeros((8, 3))})
      >>> batch["x"].shape
      (8, 3)
    """
    leaves, treedef = flatten(local)
    if sharding is None:
        mesh = mesh_of((), "global_batch")
        sharding = NamedSharding(mesh, P(mesh.axis_names[0]))
    counts = {path: np.shape(leaf)[0] if np.ndim(leaf) else None for path, leaf in named_leaves(local)}
    if None in counts.values() or len({*counts.values()}) > 1:
        raise ShardingError(f"global_batch: expected the same number of rows in every leaf, got {counts}")
    rows = next(iter(counts.values()), 0)
    if jax.process_count() > 1:
        each = multihost_utils.process_allgather(np.asarray(rows)).ravel().tolist()
        if len({*each}) > 1:
            listed = ", ".join(f"{n} in process {i}" for i, n in enumerate(each))
            raise ShardingError(f"global_batch: expected as many rows in each process, got {listed}")
    total = rows * jax.process_count()
    count = parts(sharding.mesh, names(sharding.spec[0] if len(sharding.spec) else None))
    if total % count:
        raise ShardingError(f"global_batch: expected a multiple of {count} rows, one part for each device, got {total}")
    return treedef.unflatten(
        [jax.make_array_from_process_local_data(sharding, np.asarray(x), (total, *np.shape(x)[1:])) for x in leaves]
    )


def _initialize_alone(timeout: float) -> None:
    """One process, or a cluster that JAX detects."""
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(initialization_timeout=max(1, round(timeout)))
    except ValueError:  # no cluster
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        jax.distributed.initialize(f"localhost:{port}", 1, 0)


def _host_and_port(address: str | None) -> tuple[str, int]:
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"address: expected 'host:port' of the first process, got {address!r}")
    return host, int(port)


def _call(host: str, port: int, processes: int, timeout: float) -> None:
    """The first process waits for the others, and tells them who came."""
    until = time.monotonic() + timeout
    here: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, socket.create_server(("", port), backlog=processes) as server:
        while len(here) < processes - 1 and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError):
                line = stack.enter_context(server.accept()[0])
                line.settimeout(max(left, PAUSE))
                said = json.loads(line.makefile().readline() or "null")
                if isinstance(said, int):
                    here[said] = line
        missing = sorted({*range(1, processes)} - here.keys())
        for line in here.values():
            with contextlib.suppress(OSError):
                line.sendall(f"{json.dumps(missing)}\n".encode())
        for line in here.values():  # whoever closes first keeps the port
            with contextlib.suppress(OSError):
                line.recv(1)
    _refuse(missing, f"{host}:{port}", processes, timeout)


def _answer(host: str, port: int, processes: int, index: int, timeout: float) -> None:
    """The others say that they are there, and hear who is not."""
    until = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(until - time.monotonic(), PAUSE)) as line:
                line.sendall(f"{index}\n".encode())
                line.settimeout(max(until - time.monotonic(), 0) + 1)  # the first may have begun to wait later
                said = line.makefile().readline()
            if said:
                missing = json.loads(said)
                break
        except OSError:
            pass
        if time.monotonic() > until:
            missing = [0]
            break
        time.sleep(PAUSE)
    _refuse(missing, f"{host}:{port}", processes, timeout)


def _refuse(missing: list[int], where: str, processes: int, timeout: float) -> None:
    if missing:
        came = [str(i) for i in range(processes) if i not in missing]
        known = f"{', '.join(came)} came, " if 0 not in missing else ""
        raise TimeoutError(
            f"waited {timeout:g} s for {processes} processes at {where}: {known}{', '.join(map(str, missing))} did not"
        )
