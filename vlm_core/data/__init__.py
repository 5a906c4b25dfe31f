"""From a dataset on disk or on the hub to batches with exact answer-only labels."""
