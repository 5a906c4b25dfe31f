"""What a model is worth: its answers under several conditions, scores with intervals, and a report to read."""
