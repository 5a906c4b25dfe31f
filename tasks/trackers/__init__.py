"""What records a run: MLflow, and Weights & Biases if the recipe asks for it."""
