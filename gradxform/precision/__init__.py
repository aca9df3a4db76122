"""Mixed precision: a loss scale for gradients of 16 bits."""

from gradxform.precision.loss_scale import dynamic_loss_scale, loss_scale, static_loss_scale, value_and_grad

__all__ = ["dynamic_loss_scale", "loss_scale", "static_loss_scale", "value_and_grad"]
