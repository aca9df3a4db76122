"""Augmentations that leave every pixel where it is."""
