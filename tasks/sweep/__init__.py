"""Sweeps: many short trials of one recipe, of which the better ones train on (successive halving)."""
