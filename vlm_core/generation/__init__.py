"""Batch generation from a shared prefix, and how likely a model finds an answer."""
