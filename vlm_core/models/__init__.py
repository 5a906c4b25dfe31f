"""Base models: fetching, loading, freezing, LoRA, and the tiny ones made locally."""
