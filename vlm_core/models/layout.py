"""What a directory of trained weights holds, by the names of its files: said without torch, which takes seconds."""

from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
DCP_METADATA = ".metadata"  # of torch.distributed.checkpoint


def weights_directory(checkpoint: Path) -> Path:
    """Returns the directory below `checkpoint` that transformers or peft can load; raises ValueError for none."""
    for directory in (checkpoint / "model", checkpoint):
        if is_adapter(directory) or is_distributed_checkpoint(directory) or (directory / "config.json").is_file():
            return directory
    raise ValueError(
        f"{checkpoint} is no checkpoint: neither it nor its model/ has {ADAPTER_CONFIG}, config.json or {DCP_METADATA}"
    )


def is_adapter(weights: Path) -> bool:
    """Returns whether a directory holds a peft adapter, and no full weights."""
    return (weights / ADAPTER_CONFIG).is_file()


def is_distributed_checkpoint(weights: Path) -> bool:
    """Returns whether a directory holds full weights in shards of torch.distributed.checkpoint."""
    return (weights / DCP_METADATA).is_file()
