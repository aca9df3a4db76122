"""Augmentations that choose from many: the published policies."""
