"""Recipes: short chains of bricks, a file a family."""
