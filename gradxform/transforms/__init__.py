"""The bricks, and how they are combined."""
