"""Folders: where tables, images and cards lie, how they are named, and which of them are taken."""

import gzip

from tests.data.corpus import Case, both, jsonl, png, rows, stored

ROWS, STORED = rows("left", "right"), stored("left", "right")
LINES = jsonl(ROWS)
CARD = (
    "---\nconfigs:\n- config_name: ct\n  data_files: ct/train.jsonl\n- config_name: mr\n  data_files: mr/*.jsonl\n---\n"
)
BY_SPLIT = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: a.jsonl
  - split: validation
    path: [b.jsonl]
---
"""
TWO = {"ct/train.jsonl": LINES, "mr/train.jsonl": jsonl(rows("up")), "README.md": CARD}
SAME = {"validation_dataset.split": "train"}
BARE = [row | {"image": row["image"].removeprefix("images/")} for row in ROWS]

CASES = [
    Case("a folder of images beside one table", {"data.jsonl": LINES}, STORED, settings=SAME),
    Case(
        "more images than rows",
        {"data.jsonl": LINES} | {f"images/more/{i}.png": b"" for i in range(20)},
        STORED,
        settings=SAME,
    ),
    Case("names of images alone", {"data.jsonl": jsonl(BARE)}, STORED, settings=SAME),
    Case("paths of Windows", {"data.jsonl": LINES.replace("images/", "images\\\\")}, STORED, settings=SAME),
    Case("brackets in a file's name", {"data [1].jsonl": LINES}, STORED, settings=SAME, path="data [1].jsonl"),
    Case(
        "brackets in a folder's name",
        {"a [1]/data.jsonl": LINES.replace("images/", "../images/")},
        STORED,
        settings=SAME,
        path="a [1]",
    ),
    Case("a star in a name", {"data*?.jsonl": LINES}, STORED, settings=SAME, path="data*?.jsonl"),
    Case("a hash and a percent sign", {"50%25 #2.jsonl": LINES}, STORED, settings=SAME, path="50%25 #2.jsonl"),
    Case("train and val", {"train.jsonl": LINES, "val.jsonl": LINES}, STORED),
    Case(
        "train and dev",
        {"train.csv": "question,answer\nq0?,left\n", "dev.csv": "question,answer\nq0?,left\n"},
        [[["q0?"], ["left"]]],
        settings={"dataset.image_column": None},
    ),
    Case("train and test", {"Train.jsonl": LINES, "TEST.jsonl": LINES}, STORED),
    Case("folders of splits", {"train/a.jsonl": LINES, "valid/b.jsonl": LINES}, STORED),
    Case(
        "packed files",
        {"train.jsonl.gz": gzip.compress(LINES.encode()), "test.JSONL.GZ": gzip.compress(LINES.encode())},
        STORED,
    ),
    Case("shards", {f"data-{i}.jsonl": jsonl(ROWS[i : i + 1]) for i in range(2)}, STORED, settings=SAME),
    Case(
        "shards of which one is empty", {"train-0.jsonl": LINES, "train-1.jsonl": "", "validation.jsonl": LINES}, STORED
    ),
    Case(
        "settings beside a table", {"data.jsonl": LINES, "config.json": "{}", "notes.json": "{}"}, STORED, settings=SAME
    ),
    Case("hidden files", {"data.jsonl": LINES, ".data.jsonl": "x", "__MACOSX/data.jsonl": "x"}, STORED, settings=SAME),
    Case("a card without configs", {"data.jsonl": LINES, "README.md": "# Scans\n"}, STORED, settings=SAME),
    Case("a card that names files", {"a.jsonl": LINES, "b.jsonl": LINES, "README.md": BY_SPLIT}, STORED),
    Case("a config of a card", TWO, [[[0, "q0?"], ["up"]]], settings=SAME | {"dataset.config_name": "mr"}),
    Case("several configs", TWO, error=r"has several configs: ct, mr; choose one.*dataset.config_name=ct"),
    Case(
        "a config that is not there",
        TWO,
        error="no config dataset.config_name='us': it has ct, mr",
        settings={"dataset.config_name": "us"},
    ),
    Case(
        "a config without configs",
        {"data.jsonl": LINES},
        error="its card lists none",
        settings={"dataset.config_name": "ct"},
    ),
    Case(
        "a default config",
        TWO | {"README.md": CARD.replace("name: mr\n", "name: mr\n  default: true\n")},
        [[[0, "q0?"], ["up"]]],
        settings=SAME,
    ),
    Case(
        "a card whose files are missing",
        {"README.md": BY_SPLIT},
        error="its card names a.jsonl, and no such file exists",
    ),
    Case("images alone", {"notes.txt": "nothing"}, error="lacks the column of the question", path="images"),
    Case("a file that is not a table", {"notes.txt": "nothing"}, error="is not a file of .parquet", path="notes.txt"),
    Case("a folder that is not there", {}, error="no dataset .*neither a directory or file", path="nowhere"),
    Case("a sheet", {"a.xlsx": "PK"}, error="no table but a.xlsx: save it as CSV"),
    Case(
        "an image that is not there",
        both(".jsonl", jsonl([*ROWS, ROWS[0] | {"image": "images/9.png"}])),
        STORED,
        {"image file is missing": 1},
    ),
    Case(
        "no image",
        both(".jsonl", jsonl([*ROWS, ROWS[0] | {"image": None}, ROWS[0] | {"image": ""}])),
        STORED,
        {"no image": 2},
    ),
    Case(
        "an image folder with brackets in its name",
        {
            "a [1]/train/metadata.jsonl": jsonl([{"file_name": "0.png", "question": "q0?", "answer": "left"}]),
            "a [1]/train/0.png": png(0),
            "a [1]/validation/metadata.jsonl": jsonl([{"file_name": "0.png", "question": "q?", "answer": "x"}]),
            "a [1]/validation/0.png": png(0),
        },
        stored("left"),
        settings={"dataset.image_column": "image"},
        path="a [1]",
    ),
    Case(
        "images as JSON text",
        both(".csv", 'image,question,answer\n"[""images/0.png"", ""images/1.png""]",q?,both\n'),
        [[[0, 1, "q?"], ["both"]]],
    ),
]
