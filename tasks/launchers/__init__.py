"""Heavy jobs, `torchrun -m MODULE ...`, on the engine that runs them: each launcher submits, all follow alike."""
