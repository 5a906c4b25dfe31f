"""Opens the Arrow files of a cache, and names a damaged one with the remedy."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from vlm_core.intact import require_intact


def open_rows(path: Path) -> Dataset:
    """Returns the rows of an Arrow stream in a cache directory, memory-mapped.

    Raises ValueError if a file of the directory is damaged.
    """
    require_intact(path.parent)
    return Dataset.from_file(str(path))


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the batches of an Arrow stream in a cache directory, memory-mapped.

    Raises ValueError if a file of the directory is damaged.
    """
    require_intact(path.parent)
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        yield from reader
