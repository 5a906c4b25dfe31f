"""CSV, TSV, parquet and Arrow files: separators, encodings, labels, dates, and what does not fit."""

import gzip
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Value

from tests.data.corpus import Case, both, jsonl, png, rows, stored

CSV = "image,question,answer\nimages/0.png,q0?,left\nimages/1.png,q1?,right\n"
QUOTED = 'image,question,answer\nimages/0.png,q0?,"a, b"\nimages/1.png,q1?,"two\nlines"\nimages/2.png,q2?,"a ""b"""\n'
LEFT_RIGHT = stored("left", "right")
CARD = """---
dataset_info:
  features:
  - name: answer
    dtype:
      class_label:
        names:
          '0': left
          '1': right
---
"""


def answers(column: Any, **others: Any) -> pa.Table:
    """Returns a table with a column of answers, in the form of `rows`."""
    column = column if isinstance(column, pa.Array) else pa.array(column)
    names = [f"images/{i}.png" for i in range(len(column))]
    return pa.table({"image": names, "question": [f"q{i}?" for i in range(len(column))], "answer": column} | others)


def parquet(table: pa.Table) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for split in ("train", "validation"):
            pq.write_table(table, folder / f"{split}.parquet")

    return write


def arrow(table: pa.Table, new: Any, suffix: str = ".arrow") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for split in ("train", "validation"):
            with pa.OSFile(str(folder / f"{split}{suffix}"), "wb") as sink, new(sink, table.schema) as writer:
                writer.write_table(table)

    return write


def of_datasets(kind: str, **options: Any) -> Callable[[Path], None]:
    """Returns what writes a table of the `datasets` library in the format `kind`."""

    def write(folder: Path) -> None:
        table = Dataset.from_dict(**options)
        for split in ("train", "validation"):
            if kind == "parquet":
                pq.write_table(table.data.table, folder / f"{split}.parquet")
            else:
                table.save_to_disk(folder / "saved")

    return write


def labels() -> dict[str, Any]:
    features = Features(
        {"image": Value("string"), "question": Value("string"), "answer": ClassLabel(names=["left", "right"])}
    )
    return {"mapping": answers([0, 1]).to_pydict(), "features": features}


def mixed() -> dict[str, Any]:
    table = answers(["", "", ""]).to_pydict() | {"answer": [2, "two", ["a"]]}
    return {"mapping": table, "on_mixed_types": "use_json"}


def two_files(folder: Path) -> None:
    for number, name in enumerate(("answer", "label")):
        pq.write_table(
            answers(["left"]).rename_columns(["image", "question", name]), folder / f"train-{number}.parquet"
        )
    pq.write_table(answers(["left"]), folder / "validation.parquet")


MOMENTS = pa.array([datetime(2024, 3, 1), datetime(2024, 3, 1, 12, 30)], pa.timestamp("us"))

CASES = [
    Case("CSV", both(".csv", CSV), LEFT_RIGHT),
    Case("semicolons", both(".csv", CSV.replace(",", ";")), LEFT_RIGHT),
    Case("tabs in .csv", both(".csv", CSV.replace(",", "\t")), LEFT_RIGHT),
    Case("TSV", both(".tsv", CSV.replace(",", "\t")), LEFT_RIGHT),
    Case("Excel's hint", both(".csv", "sep=;\n" + CSV.replace(",", ";")), LEFT_RIGHT),
    Case("a byte-order mark", both(".csv", CSV.encode("utf-8-sig")), LEFT_RIGHT),
    Case("UTF-16 (Excel's Unicode text)", both(".csv", CSV.replace(",", "\t").encode("utf-16")), LEFT_RIGHT),
    Case("packed CSV", both(".csv.gz", gzip.compress(CSV.encode())), LEFT_RIGHT),
    Case("packed TSV in capitals", both(".TSV.GZ", gzip.compress(CSV.replace(",", "\t").encode())), LEFT_RIGHT),
    Case("quotes", both(".csv", QUOTED), stored("a, b", "two\nlines", 'a "b"')),
    Case(
        "texts that pandas takes for missing",
        both(".csv", CSV.replace("left", "None").replace("right", "NA")),
        stored("None", "NA"),
    ),
    Case(
        "texts that look like numbers",
        both(".csv", CSV.replace("left", "007").replace("right", "1.0")),
        stored("007", "1.0"),
    ),
    Case(
        "lists as pandas writes them",
        both(".csv", CSV.replace("left", "\"['yes', 'no']\"")),
        [[[1, "q1?"], ["right"]]],
        {"answer is a list as Python writes it": 1},
    ),
    Case("lists as JSON", both(".csv", CSV.replace("left", '"[""yes""]"')), stored('["yes"]', "right")),
    Case(
        "another encoding",
        both(".csv", CSV.replace("left", "lesión").encode("cp1252")),
        error="line 2: byte 0xf3 is not UTF-8",
    ),
    Case(
        "a comma without quotes", both(".csv", CSV.replace("left", "left, upper")), error="line 2: the row has 4 fields"
    ),
    Case("a row that is too short", both(".csv", CSV + "images/2.png,q2?\n"), error="line 4: the row has 2 fields"),
    Case(
        "two columns of one name",
        both(".csv", CSV.replace("question", "answer")),
        error="two columns are named 'answer'",
    ),
    Case("no header", both(".csv", ""), error="train.csv is empty"),
    Case(
        "a header alone",
        {"train.csv": CSV, "validation.csv": CSV[:22]},
        error="is empty: split 'validation' has no rows",
    ),
    Case(
        "labels of the card, CSV",
        both(".csv", CSV.replace("left", "0").replace("right", "1")) | {"README.md": CARD},
        LEFT_RIGHT,
    ),
    Case(
        "labels of the card, JSONL",
        both(".jsonl", jsonl(rows(0, 1, "right", -1))) | {"README.md": CARD},
        stored("left", "right", "right"),
        {"empty answer": 1},
    ),
    Case("labels in parquet", of_datasets("parquet", **labels()), LEFT_RIGHT),
    Case(
        "labels in a saved dataset",
        of_datasets("saved", **labels()),
        [[["q0?"], ["left"]], [["q1?"], ["right"]]],
        path="saved",
        settings={"dataset.image_column": None, "validation_dataset.split": "train"},
    ),
    Case(
        "mixed types that `datasets` wrote",
        of_datasets("parquet", **mixed()),
        stored("2", "two"),
        {"answer is a list": 1},
    ),
    Case(
        "categories",
        parquet(answers(pa.array(["left", "right", "left"]).dictionary_encode())),
        stored("left", "right", "left"),
    ),
    Case("whole numbers with a missing one", parquet(answers([1.0, 2.0, None])), stored("1", "2"), {"empty answer": 1}),
    Case("not a number", parquet(answers([0.5, float("nan")])), stored("0.5"), {"empty answer": 1}),
    Case(
        "infinity", parquet(answers([0.5, float("inf")])), stored("0.5"), {"answer is a number that is not finite": 1}
    ),
    Case("short floats", parquet(answers(pa.array([0.1, 2.0], pa.float32()))), stored("0.1", "2")),
    Case("booleans", parquet(answers([True, False])), stored("true", "false")),
    Case("dates", parquet(answers([date(2024, 3, 1), date(2023, 1, 2)])), stored("2024-03-01", "2023-01-02")),
    Case("moments", parquet(answers(MOMENTS)), stored("2024-03-01", "2024-03-01 12:30:00")),
    Case("decimals", parquet(answers([Decimal("2.50"), Decimal("1.00")])), stored("2.50", "1.00")),
    Case(
        "texts as bytes",
        parquet(answers([b"left", "l\u00e9".encode(), b"\xff"])),
        stored("left", "l\u00e9"),
        {"answer is bytes that": 1},
    ),
    Case("durations", parquet(answers(pa.array([timedelta(days=1)]))), error="answer is a cell that is not a text"),
    Case("lists", parquet(answers([["yes", "no"]])), error="answer is a list, which is not one text.*answer_column"),
    Case("objects", parquet(answers([{"text": "yes"}])), error="answer is an object, which is not one text"),
    Case("large strings", parquet(answers(pa.array(["left", "right"], pa.large_string()))), LEFT_RIGHT),
    Case(
        "names with dots and spaces",
        parquet(answers(["left", "right"]).rename_columns(["image", "q.text", "the answer"])),
        LEFT_RIGHT,
        settings={"dataset.question_column": "q.text", "dataset.answer_column": "the answer"},
    ),
    Case("Arrow, stream", arrow(answers(["left", "right"]), pa.ipc.new_stream), LEFT_RIGHT),
    Case("Arrow, file", arrow(answers(["left", "right"]), pa.ipc.new_file), LEFT_RIGHT),
    Case("Feather", arrow(answers(["left", "right"]), pa.ipc.new_file, ".feather"), LEFT_RIGHT),
    Case(
        "images in the table",
        parquet(answers(["left"], image=pa.array([{"bytes": png(0), "path": None}]))),
        stored("left"),
    ),
    Case(
        "two columns of one name, parquet",
        parquet(answers(["a"]).append_column("answer", pa.array(["b"]))),
        error="two columns named 'answer'",
    ),
    Case(
        "two columns of one name, Arrow",
        arrow(answers(["a"]).append_column("answer", pa.array(["b"])), pa.ipc.new_file),
        error="two columns named 'answer'",
    ),
    Case(
        "files of a split that differ", two_files, error=r"train-1.parquet lacks the column answer, which other files"
    ),
    Case(
        "CSV files of a split that differ",
        {"train-1.csv": CSV, "train-2.csv": CSV.replace("answer", "x"), "validation.csv": CSV},
        error=r"train-2.csv lacks the column answer",
    ),
    Case(
        "CSV files of a split with other names of the image",
        {"train-1.csv": CSV, "train-2.csv": CSV.replace("image,", "img,"), "validation.csv": CSV},
        error="the image may be in the column image or img",
    ),
    Case(
        "a column more in one file",
        {"train-1.csv": CSV, "train-2.csv": "note," + CSV.replace("\n", "\nn,")[:-2], "validation.csv": CSV},
        [*LEFT_RIGHT, *LEFT_RIGHT],
    ),
    Case("parquet that is cut off", both(".parquet", b"PAR1abc"), error="train.parquet cannot be read as parquet"),
    Case("parquet that is empty", both(".parquet", b""), error="train.parquet cannot be read as parquet: it is empty"),
    Case("Arrow that is not", both(".arrow", b"nothing"), error="train.arrow cannot be read as arrow"),
    Case("a Git LFS pointer", both(".parquet", "version https://git-lfs.github.com/spec/v1\n"), error="git lfs pull"),
    Case(
        "two formats", {"train.csv": CSV, "train.jsonl": jsonl(rows("a"))}, error="the split train in several formats"
    ),
]
