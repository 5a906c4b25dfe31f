"""What a training job appends to the files of its run directory, as trackers want it: each record once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_core.files import read_json_lines
from vlm_core.run_directory import METRICS, VALIDATION

PREFIXES = {METRICS: "train", VALIDATION: "validation"}
NOT_METRICS = ("step", "seconds_left")  # of a record


@dataclass(frozen=True)
class Place:
    """How far a file was sent: the file, the byte behind the last record, and that record's step."""

    inode: int = 0
    offset: int = 0
    step: int = 0


class RecordReader:
    """Reads `metrics.jsonl` and `validation.jsonl` while they grow."""

    def __init__(self, directory: Path, sent: Mapping[str, int] | None = None) -> None:
        """`sent` has the step of the last record that was sent already, by the file's name."""
        self.directory = directory
        self.places = {name: Place(step=(sent or {}).get(name, 0)) for name in PREFIXES}

    def new_records(self, name: str) -> tuple[list[dict[str, Any]], Place]:
        """Returns the records of a file that were not sent yet, and what `places[name]` becomes when they are."""
        place, path = self.places[name], self.directory / name
        # A resumed job replaces the file by a shorter one before it goes on writing.
        inode = path.stat().st_ino if path.exists() else 0
        records, end = read_json_lines(path, place.offset if inode == place.inode else 0)
        new = [record for record in records if record["step"] > place.step]
        return new, Place(inode, end, max([place.step, *(record["step"] for record in new)]))


def measured(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Returns the metrics of a record by their names in a tracker: `train/loss`. A null was not finite and is none."""
    values = {key: value for key, value in record.items() if key not in NOT_METRICS and value is not None}
    return {f"{prefix}/{key}": float(value) for key, value in values.items()}
