"""The training loop and its modules."""
