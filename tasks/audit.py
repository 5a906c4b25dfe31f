"""The audit trail of a home: who did what, when, with which parameters and data, and what was decided.

`audit.jsonl` is append-only. Each line has the sha256 of the line before it, which reveals a line that was changed or
removed. MLflow's tags repeat what belongs to a run, a version and a model.
"""

import hashlib
import json
import os
from collections.abc import Mapping
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
    """Appends an entry with the current time and user; it is on the disk when this returns."""
    path = audit_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "user": responsible_user(), "action": action}
    with locked(path.with_name(f".{AUDIT}.lock")), path.open("ab+") as stream:
        stream.seek(0)
        *lines, unfinished = stream.read().split(b"\n")
        stream.truncate(stream.tell() - len(unfinished))  # a writer was killed, or its disk was full
        follows = {BEFORE: _digest(lines[-1]) if lines else FIRST}
        stream.write(f"{json.dumps(_masked(entry | facts) | follows, ensure_ascii=False)}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_audit() -> list[dict[str, Any]]:
    """Returns the entries, oldest first. A last line without its end is ignored: it is still being written.

    Raises ValueError that names the first line that does not have the sha256 of the line before it.
    """
    path, before, entries = audit_file(), FIRST, []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            follows = entry[BEFORE] == before
        except (ValueError, KeyError, TypeError):
            entry, follows = {}, False
        if not follows:
            raise ValueError(
                f"{path}, line {number}: it does not follow the line before it, so one of them was changed or removed; "
                "find out why, then restore the file from a backup"
            )
        entries.append(entry)
        before = _digest(line)
    return entries


def _masked(value: Any) -> Any:
    """Returns `value` as JSON can hold it, with the secrets in its URLs masked."""
    if isinstance(value, Mapping):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else without_secrets(str(value))


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
