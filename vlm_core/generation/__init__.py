"""Batch generation and the metrics of its answers."""
