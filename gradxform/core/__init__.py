"""What a value is: printing, equality, pickling, config, a pytree of its numbers; and how transformations run."""
