"""Opens the Arrow files of a cache, and names a damaged one with the remedy."""

from pathlib import Path

import pyarrow as pa
from datasets import Dataset


def open_rows(path: Path) -> Dataset:
    """Returns the rows of an Arrow stream in a cache directory, memory-mapped.

    Raises ValueError if the file is missing or cut, as after a power cut or a full disk.
    """
    try:
        return Dataset.from_file(str(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete {path.parent}, and run again to build it anew; "
            "python -m vlm_core.caches verify finds all damaged caches"
        ) from None
