"""The audit trail of a home: who did what, when, with which parameters and data, and what was decided.

`audit.jsonl` is append-only. Each line holds the sha256 of the line before it, so that a line that was changed or
removed shows. MLflow's tags repeat what belongs to a run, a version and a model.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.trackers.provenance import responsible_user
from vlm_core.cache import locked
from vlm_core.home import medpix_home
from vlm_core.plain_text import without_secrets

AUDIT = "audit.jsonl"
BEFORE = "before"  # key of an entry: the sha256 of the line before it
FIRST = "0" * 64


def audit_file() -> Path:
    """Returns the path of the trail."""
    return medpix_home() / AUDIT


def audit(action: str, **facts: Any) -> None:
    """Appends an entry of this moment and of the user of this process; it is on the disk when this returns."""
    path = audit_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "user": responsible_user(), "action": action}
    with locked(path.with_name(f".{AUDIT}.lock")), path.open("ab+") as stream:
        line = json.dumps(entry | facts | {BEFORE: _digest(_last_line(stream))}, ensure_ascii=False, default=str)
        stream.write(f"{without_secrets(line)}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_audit() -> list[dict[str, Any]]:
    """Returns the entries, oldest first; raises ValueError that names the first line that does not follow its own."""
    path, before, entries = audit_file(), FIRST, []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            follows = entry[BEFORE] == before
        except (ValueError, KeyError, TypeError):
            entry, follows = {}, False
        if not follows:
            raise ValueError(
                f"{path}, line {number}: it does not follow the line before it; one of them was changed or removed"
            )
        entries.append(entry)
        before = _digest(line)
    return entries


def _last_line(stream: Any) -> bytes:
    """Returns the last line of a file without its end, nothing for an empty file."""
    size = stream.seek(0, os.SEEK_END)
    block = 65_536
    while size:
        stream.seek(max(0, size - block))
        lines = stream.read().rstrip(b"\n").rsplit(b"\n", 1)
        if len(lines) > 1 or block >= size:
            return lines[-1]
        block *= 4
    return b""


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest() if line else FIRST
