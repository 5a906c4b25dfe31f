"""The audit trail: who did what and when, one line each, and no line can be changed or removed unnoticed."""

import json
import multiprocessing
from pathlib import Path

import pytest

from tasks.audit import audit, audit_file, read_audit


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path))


def test_entries_say_who_when_and_what() -> None:
    assert read_audit() == []
    audit("run begins", parameters={"rng.seed": 7}, data="abc")
    urls = {"source": "http://me:secret@hub/x", "reasons": ['see https://hub/x?token=a"b', None]}
    audit("registered", name="m", text="\x1b[2J\n", **urls)
    first, second = read_audit()
    assert (first["action"], first["parameters"], first["data"]) == ("run begins", {"rng.seed": 7}, "abc")
    assert first["time"].endswith("+00:00")
    assert "@" in first["user"]
    assert (second["source"], second["reasons"]) == ("http://***@hub/x", ["see https://hub/x?token=***", None])
    assert second["text"] == "\x1b[2J\n"
    assert "\x1b" not in audit_file().read_text()  # JSON writes it as an escape


@pytest.mark.parametrize("attack", ["change", "remove", "insert", "reorder", "cut", "garbage"])
def test_a_changed_trail_is_noticed(attack: str) -> None:
    for number in range(4):
        audit("run begins", number=number)
    lines = audit_file().read_text().splitlines()
    changed = {
        "change": [lines[0], lines[1].replace('"number": 1', '"number": 9'), *lines[2:]],
        "remove": [lines[0], *lines[2:]],
        "insert": [lines[0], lines[0], *lines[1:]],
        "reorder": [lines[0], lines[2], lines[1], lines[3]],
        "cut": [lines[0][:20], *lines[1:]],
        "garbage": [lines[0], "[1]", *lines[1:]],
    }[attack]
    audit_file().write_text("\n".join(changed) + "\n")
    with pytest.raises(ValueError, match=r"audit.jsonl, line [123]: it does not follow the line before it"):
        read_audit()


def test_a_line_that_was_not_finished_is_ignored_and_then_replaced() -> None:
    audit("run begins", number=1)
    with audit_file().open("ab") as stream:
        stream.write(b'{"time": "2026')  # the disk was full
    assert [entry["number"] for entry in read_audit()] == [1]
    audit("run ends", number=2)
    assert [entry["number"] for entry in read_audit()] == [1, 2]


def write_some(number: int) -> None:
    for _ in range(20):
        audit("run begins", number=number, filler="x" * 5000)


def test_writers_at_once_keep_the_chain() -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(write_some, range(4))
    assert len(read_audit()) == 80
    assert {json.loads(line)["number"] for line in audit_file().read_text().splitlines()} == set(range(4))
