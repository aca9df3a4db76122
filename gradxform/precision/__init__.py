"""Mixed precision: params of 16 bits and their exact masters, and which dtype is computed in."""

from gradxform.precision.masters import master_weights, masters, split
from gradxform.precision.policy import Policy
from gradxform.precision.stochastic import stochastic_rounding

__all__ = ["Policy", "master_weights", "masters", "split", "stochastic_rounding"]
