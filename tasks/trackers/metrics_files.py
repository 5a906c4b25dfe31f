"""Reads the metrics files that a training job appends to, and returns each record once for each tracker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_core.files import read_json_lines
from vlm_core.run_directory import METRICS, VALIDATION

PREFIXES = {METRICS: "train", VALIDATION: "validation"}
NOT_METRICS = ("step", "seconds_left")  # a record's keys that are not metrics


@dataclass(frozen=True)
class Position:
    """How much of a file was sent: the file's inode, the byte after the last record, and that record's step."""

    inode: int = 0
    offset: int = 0
    step: int = 0


class RecordReader:
    """Reads `metrics.jsonl` and `validation.jsonl` while they grow."""

    def __init__(self, directory: Path, sent: Mapping[str, int] | None = None) -> None:
        """`sent` maps a file's name to the step of the last record that was sent already."""
        self.directory = directory
        self.positions = {name: Position(step=(sent or {}).get(name, 0)) for name in PREFIXES}

    def new_records(self, name: str) -> tuple[list[dict[str, Any]], Position]:
        """Returns a file's records that were not sent yet, and the position to store once they are sent."""
        position, path = self.positions[name], self.directory / name
        # A resumed job first replaces the file with a shorter one, which has another inode.
        inode = path.stat().st_ino if path.exists() else 0
        records, end = read_json_lines(path, position.offset if inode == position.inode else 0)
        new = [record for record in records if record["step"] > position.step]
        return new, Position(inode, end, max([position.step, *(record["step"] for record in new)]))


def metrics_of(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Returns the metrics of a record by their names in a tracker, such as `train/loss`; null was not finite."""
    values = {key: value for key, value in record.items() if key not in NOT_METRICS and value is not None}
    return {f"{prefix}/{key}": float(value) for key, value in values.items()}
