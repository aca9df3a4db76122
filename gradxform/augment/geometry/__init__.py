"""Augmentations that move pixels, and masks, boxes and points with them."""
