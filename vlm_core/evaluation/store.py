"""What a model answered, on disk: an answer is found by what was asked, and no question is asked twice.

A directory belongs to one model and one way of asking it. Each writer appends to a file of its own, line by line, so
that a job killed at any moment loses the batch at hand, and a limited evaluation, a control or a comparison that asks
the same again finds the answer there.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core.cache import touch
from vlm_core.files import append_json_lines, read_json_lines, write_json

ANSWERS_VERSION = 2  # raise it whenever the same model and question must give another answer
SETTINGS = "settings.json"


class Store:
    """Records by key; `store[key]` is one that was added here or by an earlier job, or seen at the last refresh."""

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
        """Reads what others added."""
        touch(self.directory)
        for path in sorted(self.directory.glob("*.jsonl")):
            self.records |= {record["key"]: record for record in read_json_lines(path)[0]}

    def add(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Adds records by key; when it returns, a kill can no longer lose them."""
        if not (self.directory / SETTINGS).exists():
            write_json(self.directory / SETTINGS, self.settings)  # says to people what the directory is
        added = {key: {"key": key, **record} for key, record in records.items()}
        append_json_lines(self.own, added.values())
        self.records |= added
