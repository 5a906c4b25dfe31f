"""Trackers of a run: MLflow, and Weights & Biases if the config has a section `wandb`."""
