"""Rejected rows are named by the file and line that a person can open, in every format."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import small_config
from vlm_core.cache import read_manifest
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.rejects import describe_rejects, reject_lines
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.pages.data_report import write_data_report

ROWS = [{"question": f"Case\n{i}?", "answer": "" if i == 3 else "Yes.", "case": str(i)} for i in range(6)]


def csv(path: Path) -> None:
    lines = [f'"{row["question"]}",{row["answer"]},{row["case"]}' for row in ROWS]
    path.write_text("\n".join(["question,answer,case", *lines]) + "\n")


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n\n" for row in ROWS).encode()))


FORMATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "x.csv": (csv, "x.csv, line 8"),  # each question has a line break in quotes
    "x.jsonl": (lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in ROWS)), "x.jsonl, line 4"),
    "x.jsonl.gz": (packed, "x.jsonl.gz, line 7"),
    "x.json": (lambda p: p.write_text(json.dumps({"data": ROWS}, indent=1)), "x.json, line 18"),
    "x.parquet": (parquet, "x.parquet, row 3 (the first is 0)"),
}


def prepared(folder: Path, **others: Any) -> Path:
    settings = {"dataset.path_or_dataset": str(folder), "dataset.image_column": None, "dataset.max_reject_share": 0.5}
    return prepare_conversations(small_config(**settings | others))[0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_rejected_row_is_named_by_file_and_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    write, place = FORMATS[name]
    write(tmp_path / "scans" / name)
    cache = prepared(tmp_path / "scans")
    assert reject_lines(read_manifest(cache)["rejects"]) == [f"empty answer: 1 row, train-3 ({place})"]
    assert place not in (cache / STATISTICS).read_text()  # statistics hold no paths


def test_the_second_file_of_a_table_is_named(tmp_path: Path) -> None:
    for part in (1, 2):
        csv(tmp_path / f"part-{part}.csv")
    assert reject_lines(read_manifest(prepared(tmp_path))["rejects"]) == [
        "empty answer: 2 rows, train-3 (part-1.csv, line 8), train-9 (part-2.csv, line 8)"
    ]


def test_the_finding_says_the_reasons_and_the_page_shows_them(tmp_path: Path) -> None:
    csv(tmp_path / "x.csv")
    cache = prepared(tmp_path)
    assert "16.67% of the rows were rejected: empty answer (1 row)." in read_json(cache / STATISTICS)["findings"]
    write_data_report(small_config(**{"dataset.path_or_dataset": str(tmp_path)}), cache, tmp_path / "page.html")
    assert "train-3 (x.csv, line 8)" in (tmp_path / "page.html").read_text()
    hidden = small_config(**{"dataset.path_or_dataset": str(tmp_path), "report.images": False})
    write_data_report(hidden, cache, tmp_path / "page.html")
    assert "x.csv, line" not in (tmp_path / "page.html").read_text()
    assert "empty answer" in (tmp_path / "page.html").read_text()


def test_a_manifest_without_places_is_described_by_ids() -> None:
    assert describe_rejects({"no image": {"rows": 2000, "examples": ["train-1"], "about": "x"}}) == (
        "no image: 2,000 rows, train-1 (x)"
    )


def turn(role: str, **content: Any) -> dict[str, Any]:
    return {"role": role, **content}


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([turn("user", content="x"), turn("asistant", content="y")],
         "a role other than system, user and assistant: 1 row, train-3 (x.jsonl, line 4) (column messages: turn 1: "
         "found 'asistant')"),
        ([turn("user", contents="x"), turn("assistant", content="y")],
         "a turn without content: 1 row, train-3 (x.jsonl, line 4) (column messages: turn 0: found an object with "
         "role, contents; the text belongs under 'content')"),
        ([turn("user", content="x"), turn("assistant", content=" ")],
         "empty answer: 1 row, train-3 (x.jsonl, line 4) (column messages: turn 1 (assistant))"),
        ([turn("user", content="x"), turn("user", content="y")],
         "turns that do not go from user to assistant, and end there: 1 row, train-3 (x.jsonl, line 4) (column "
         "messages: the turns are user, user)"),
    ],
)  # fmt: skip
def test_a_malformed_conversation_names_the_row_the_turn_and_the_key(
    messages: list[dict[str, Any]], line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [turn("user", content="One?"), turn("assistant", content="Yes.")]
    rows = [messages if i == 3 else [{**good[0], "content": f"{i}?"}, good[1]] for i in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    settings = {"dataset.conversation_column": "messages", "dataset.mode_column": None}
    cache = prepared(tmp_path, **settings)
    assert reject_lines(read_manifest(cache)["rejects"]) == [line]
    assert f"rejected: {line}" in caplog.messages
    prepared(tmp_path, **settings, **{"report.images": False})
    assert caplog.messages[-1] == f"rejected: {line.partition(' (column')[0]}"  # no text of the data in a log
