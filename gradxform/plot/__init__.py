"""Pictures of schedules and of optimizers at work; they need matplotlib, which is an extra."""

from gradxform.plot.curves import schedules
from gradxform.plot.paths import trajectories

__all__ = ["schedules", "trajectories"]
