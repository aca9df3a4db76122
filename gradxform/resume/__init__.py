"""Runs that survive: checkpoints in Orbax's format, and going on from them to the same bits.

``Run`` is all a training loop needs: it says where to go on, saves when it is due and when the machine is taken away,
and compares what was saved with what is asked for before anything is read.
"""

from gradxform.resume.manifest import MismatchError
from gradxform.resume.order import order
from gradxform.resume.run import Run

__all__ = ["MismatchError", "Run", "order"]
