"""Stores the answers of models on disk, by question, so that no model is asked the same question twice.

A directory belongs to one model and its generation settings. Each job appends lines to its own file, so a job that is
killed loses only its current batch. A limited evaluation, a control or a comparison that asks the same question reuses
the stored answer.
"""

import hashlib
import json
import logging
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core.cache import touch
from vlm_core.files import append_json_lines, read_json_lines, to_json, write_json

ANSWERS_VERSION = 3  # raise it if the same model and question must give another answer
SETTINGS = "settings.json"
CHECKSUM = "crc32"  # of the rest of a record; older records have none

logger = logging.getLogger(__name__)


class Store:
    """Records by key: those added here, and those that other jobs had written at the last refresh."""

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        identity = json.dumps({"version": ANSWERS_VERSION, **settings}, sort_keys=True, default=str)
        self.directory = root / hashlib.sha256(identity.encode()).hexdigest()[:32]
        self.settings = json.loads(identity)
        self.own = self.directory / f"{secrets.token_hex(8)}.jsonl"
        self.records: dict[str, dict[str, Any]] = {}
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.records[key]

    def refresh(self) -> None:
        """Reads the records that other jobs have written. A damaged one counts as missing, with a warning."""
        touch(self.directory)
        for path in sorted(self.directory.glob("*.jsonl")):
            records = read_json_lines(path)[0]
            intact = [record for record in records if _is_intact(record)]
            if len(intact) < len(records):
                damaged = len(records) - len(intact)
                logger.warning("%s has %d damaged answers: these questions are asked again", path, damaged)
            self.records |= {record["key"]: record for record in intact}

    def add(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Adds records by key. They are on disk when this returns."""
        if not (self.directory / SETTINGS).exists():
            write_json(self.directory / SETTINGS, self.settings)  # tells people what the directory is for
        added = {key: {"key": key, **record} for key, record in records.items()}
        append_json_lines(self.own, ({**record, CHECKSUM: _checksum(record)} for record in added.values()))
        self.records |= added


def _is_intact(record: dict[str, Any]) -> bool:
    """Returns whether a record is as it was written; takes its checksum out."""
    checksum = record.pop(CHECKSUM, None)
    return isinstance(record.get("key"), str) and checksum in (None, _checksum(record))


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(to_json(record).encode())
