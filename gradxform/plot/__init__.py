"""Pictures of schedules, of optimizers at work and of activations; they need matplotlib, which is an extra."""

from gradxform.plot.curves import schedules
from gradxform.plot.distributions import distributions
from gradxform.plot.paths import trajectories

__all__ = ["distributions", "schedules", "trajectories"]
