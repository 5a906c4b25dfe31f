"""Batch generation from a shared prefix, and the likelihood of given answers."""
