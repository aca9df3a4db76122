"""What the state of an optimizer takes, and what it costs to take less."""
