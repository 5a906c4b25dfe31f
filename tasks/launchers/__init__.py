"""Runs heavy jobs, `torchrun -m MODULE ...`: each launcher submits to its engine, and all jobs are followed alike."""
