"""Random tables in every format: each text, id and image that is stored is the one that was written, or is rejected."""

import csv
import gzip
import io
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpus import png
from vlm_core.config import DatasetConfig
from vlm_core.config.data import ImagesConfig
from vlm_core.data.case_ids import case_text
from vlm_core.data.cell_images import CellImages
from vlm_core.data.dataset_files import read_table
from vlm_core.data.examples import Columns, RejectedRow, example_of
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.source import fetch_split

# Not the characters that no file can hold, and those that the project reserves.
CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\ue000\ue001\0")
TEXTS = st.text(CHARACTERS, max_size=12)
NUMBERS = st.one_of(st.integers(-(2**60), 2**60), st.floats(width=64), st.booleans())
NAMES = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=8).map(str.strip).filter(bool)
OTHERS = st.one_of(
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text("ab", min_size=1), st.integers(), max_size=2)
)
CELLS = st.one_of(TEXTS, NUMBERS, st.none())
Rows = list[dict[str, Any]]


def rows_of(names: list[str], cells: st.SearchStrategy[Any]) -> st.SearchStrategy[Rows]:
    row = dict.fromkeys(names[1:], cells) | {names[0]: st.sampled_from(["0.png", "1.png", "2.png"])}
    return st.lists(st.fixed_dictionaries(row), min_size=1, max_size=5)


def tables(cells: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[list[str], Rows]]:
    """Generates (the names of the columns of the image, question, answer and case, rows)."""
    names = st.lists(NAMES, min_size=4, max_size=4, unique=True)
    return names.flatmap(lambda found: st.tuples(st.just(found), rows_of(found, cells)))


def expected(row: dict[str, Any], names: list[str]) -> tuple[str, str, str | None, bytes] | None:
    """Returns what must be stored of a row: question, answer, case, image; None if it must be rejected.

    An independent and slow statement of how cells become texts.
    """
    texts = []
    for name in names[1:]:
        cell = row[name]
        if isinstance(cell, float) and math.isnan(cell):
            cell = None
        if isinstance(cell, list | dict) or cell in (math.inf, -math.inf):
            return None
        if isinstance(cell, bool):
            cell = {True: "true", False: "false"}[cell]
        if isinstance(cell, float) and cell == round(cell) and abs(cell) <= 2**53:
            cell = round(cell)
        texts.append(None if cell is None else str(cell))
    question, answer, case = texts
    if not (question or "").strip() or not (answer or "").strip():
        return None
    return question, answer, None if case is None else case_text(case), png(int(row[names[0]][0]))


def stored(folder: Path, file: str, names: list[str]) -> list[tuple[str, str, str | None, bytes] | None]:
    """Returns what is read of each row of a file; None for a rejected row."""
    columns = dict(zip(("image_column", "question_column", "answer_column", "case_column"), names, strict=True))
    source = fetch_split(DatasetConfig(path_or_dataset=str(folder / file), mode_column=None, **columns))
    found: list[Any] = []
    for _, rows in source.rows.batches(source.columns.used, source.start, source.stop):
        for row in rows:
            try:
                example = example_of(row, source.columns, source.images)
            except RejectedRow:
                found.append(None)
                continue
            (image, question), (answer,) = (turn["content"] for turn in example.conversation)
            assert image == {"type": "image", "image": 0}
            found.append((question["text"], answer["text"], example.case, *example.images))
    return found


def as_jsonl(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: Rows, separator: str = ",") -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def written_arrow(rows: Rows, new: Any) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def written_parquet(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
MIXED: dict[str, Callable[[Rows], bytes]] = {
    **{f"x.{e}.jsonl": lambda rows, e=e: as_jsonl(rows).encode(e) for e in ENCODINGS},
    "x.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "object.json": lambda rows: json.dumps({"data": rows, "version": "1"}).encode(),
    "columns.json": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode(),
    "x.JSONL.gz": lambda rows: gzip.compress(as_jsonl(rows).encode()),
}
TYPED: dict[str, Callable[[Rows], bytes]] = {
    "x.parquet": written_parquet,
    "x.arrow": lambda rows: written_arrow(rows, pa.ipc.new_stream),
    "x.feather": lambda rows: written_arrow(rows, pa.ipc.new_file),
}
TEXT_ALONE: dict[str, Callable[[Rows], bytes]] = {
    **{f"x.{e}.csv": lambda rows, e=e: as_csv(rows).encode(e) for e in ENCODINGS},
    "x.tsv": lambda rows: as_csv(rows, "\t").encode(),
    "semicolons.csv": lambda rows: as_csv(rows, ";").encode(),
    "x.csv.gz": lambda rows: gzip.compress(as_csv(rows).encode()),
}


def check_folder(folder: Path, file: str, write: Callable[[Rows], bytes], names: list[str], rows: Rows) -> None:
    """Checks a table and its images in a folder, of which the folder is the dataset."""
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / file).write_bytes(write(rows))
    assert stored(folder, ".", names) == [expected(row, names) for row in rows]


def check(file: str, write: Callable[[Rows], bytes], names: list[str], rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(png(number))
        (folder / file).write_bytes(write(rows))
        assert stored(folder, file, names) == [expected(row, names) for row in rows]


LIKE = st.sampled_from([st.integers(-(2**60), 2**60), st.floats(), st.booleans(), TEXTS])
FEW = settings(max_examples=25)


@FEW
@given(st.sampled_from(sorted(MIXED)), tables(st.one_of(CELLS, OTHERS)))
def test_json(file: str, table: tuple[list[str], Rows]) -> None:
    check(file, MIXED[file], *table)


@FEW
@given(st.sampled_from(sorted(TYPED)), LIKE.flatmap(lambda cells: tables(st.one_of(cells, st.none()))))
def test_parquet_and_arrow(file: str, table: tuple[list[str], Rows]) -> None:
    check(file, TYPED[file], *table)


@FEW
@given(st.sampled_from(sorted(TEXT_ALONE)), tables(TEXTS))
def test_csv(file: str, table: tuple[list[str], Rows]) -> None:
    check(file, TEXT_ALONE[file], *table)


@FEW
@given(NAMES, NAMES, tables(TEXTS))
def test_folders_of_any_name(folder: str, stem: str, table: tuple[list[str], Rows]) -> None:
    with tempfile.TemporaryDirectory() as name:
        write = TEXT_ALONE["x.tsv"]
        check_folder(Path(name, f"d{folder}".replace("/", "")), f"x{stem}.tsv".replace("/", ""), write, *table)


PARTS = st.lists(
    st.one_of(TEXTS.filter(lambda text: text.strip() and "<" not in text), st.integers(0, 2)), min_size=1, max_size=4
)
TALKS = st.lists(st.tuples(PARTS, TEXTS.filter(lambda text: text.strip() and "<" not in text)), min_size=1, max_size=3)


def as_parts(talk: list[tuple[list[Any], str]], held: bool) -> list[dict[str, Any]]:
    """Returns a conversation with parts, of which images are `held` or take those of the image column."""

    def part(value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            return {"type": "text", "text": value}
        return {"type": "image", "path": f"{value}.png"} if held else {"type": "image"}

    return [
        turn
        for question, answer in talk
        for turn in ({"role": "user", "content": [*map(part, question)]}, {"role": "assistant", "content": answer})
    ]


def as_tags(talk: list[tuple[list[Any], str]]) -> list[dict[str, str]]:
    return [
        turn
        for question, answer in talk
        for turn in (
            {"from": "human", "value": "".join(v if isinstance(v, str) else "<image>" for v in question)},
            {"from": "gpt", "value": answer},
        )
    ]


@FEW
@given(TALKS)
def test_conversations(talk: list[tuple[list[Any], str]]) -> None:
    shown = [f"{value}.png" for question, _ in talk for value in question if isinstance(value, int)]
    has_breaks = any(isinstance(v, str) and (v[0] == "\n" or v[-1] == "\n") for question, _ in talk for v in question)
    rows = [
        {"images": [], "messages": as_parts(talk, held=True)},
        {"images": shown, "messages": as_parts(talk, held=False)},
        {"images": shown, "messages": json.dumps(as_parts(talk, held=False))},
        *([] if has_breaks else [{"images": shown, "messages": as_tags(talk)}]),
    ]
    columns = Columns("images", None, None, None, None, "messages")
    with tempfile.TemporaryDirectory() as name:
        for number in range(3):
            Path(name, f"{number}.png").write_bytes(png(number))
        Path(name, "x.jsonl").write_text(as_jsonl(rows), encoding="utf-8", newline="")
        images = CellImages(ImageFolder(Path(name), anywhere=True), ImagesConfig())
        ((_, found),) = (
            read_table(Path(name, "x.jsonl"), "x", anywhere=True)
            .by_split["train"]
            .rows.batches(["images", "messages"], 0, None)
        )
        for row in found:
            example = example_of(row, columns, images)
            assert [plain(turn["content"], example.images) for turn in example.conversation] == [
                parts for question, answer in talk for parts in (joined(question), [answer])
            ]


def plain(parts: list[Any], images: list[bytes]) -> list[Any]:
    return [part["text"] if part["type"] == "text" else images[part["image"]] for part in parts]


def joined(parts: list[Any]) -> list[Any]:
    """Returns texts and the bytes of images, with neighbouring texts as one."""
    found: list[Any] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part if isinstance(part, str) else png(part))
    return found
