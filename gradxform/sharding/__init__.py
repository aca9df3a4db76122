"""Beyond one device: where state lies, ZeRO-1 around any optimizer, what is sent, and processes that begin together.

JAX's own sharding does the work: ``jax.jit`` on sharded arrays. What is here says how a state is to lie, divides it,
and shows what a device holds and sends.
"""

from gradxform.sharding.fsdp import fsdp
from gradxform.sharding.layout import Layout, layout
from gradxform.sharding.processes import global_batch, join
from gradxform.sharding.state import init, state_sharding
from gradxform.sharding.traffic import Traffic, traffic
from gradxform.sharding.zero import zero1

__all__ = ["Layout", "Traffic", "fsdp", "global_batch", "init", "join", "layout", "state_sharding", "traffic", "zero1"]
