"""JSON and JSONL files: mixed types, whole objects, encodings, and what is not JSON."""

import gzip
import json

from tests.data.corpus import Case, both, jsonl, rows, stored

MIXED = rows(2, "two lesions", 2.5, True)
TEXTS = stored("2", "two lesions", "2.5", "true")
PLAIN, PLAIN_STORED = rows("left", "right"), stored("left", "right")
COLUMNS = {key: [row[key] for row in MIXED] for key in MIXED[0]}

CASES = [
    Case("mixed answers, JSONL", both(".jsonl", jsonl(MIXED)), TEXTS),
    Case("mixed answers, an array", both(".json", json.dumps(MIXED)), TEXTS),
    Case("mixed answers, pretty-printed", both(".json", json.dumps(MIXED, indent=2)), TEXTS),
    Case("JSON lines in a .json file", both(".json", jsonl(MIXED)), TEXTS),
    Case("an array in a .jsonl file", both(".jsonl", json.dumps(MIXED)), TEXTS),
    Case("objects over several lines", both(".jsonl", "\n".join(json.dumps(row, indent=1) for row in MIXED)), TEXTS),
    Case("rows under a key", both(".json", json.dumps({"version": 1, "info": {"a": 1}, "data": MIXED})), TEXTS),
    Case("columns", both(".json", json.dumps(COLUMNS)), TEXTS),
    Case(
        "columns by number (pandas)",
        both(".json", json.dumps({key: {str(i): cell for i, cell in enumerate(c)} for key, c in COLUMNS.items()})),
        TEXTS,
    ),
    Case("splits in one file", {"all.json": json.dumps({"train": PLAIN, "val": MIXED})}, PLAIN_STORED, path="all.json"),
    Case("a byte-order mark", both(".jsonl", jsonl(PLAIN).encode("utf-8-sig")), PLAIN_STORED),
    Case("UTF-16", both(".jsonl", jsonl(PLAIN).encode("utf-16")), PLAIN_STORED),
    Case("packed", both(".jsonl.gz", gzip.compress(jsonl(PLAIN).encode())), PLAIN_STORED),
    Case("capital letters in the suffix", {"TRAIN.JSONL": jsonl(PLAIN), "Val.JSONL": jsonl(PLAIN)}, PLAIN_STORED),
    Case("blank lines and \\r\\n", both(".jsonl", jsonl(PLAIN).replace("\n", "\r\n\r\n")), PLAIN_STORED),
    Case("U+2028 in a text", both(".jsonl", jsonl(rows("a\u2028b", "a\x85"))), stored("a\u2028b", "a\x85")),
    Case(
        "texts that look like JSON",
        both(".jsonl", jsonl(rows('{"a": 1}', '["b"]', '"c"'))),
        stored('{"a": 1}', '["b"]', '"c"'),
    ),
    Case("big numbers", both(".jsonl", jsonl(rows(2**70, -(2**70), 1e30))), stored(str(2**70), str(-(2**70)), "1e+30")),
    Case(
        "a key that only some rows have",
        both(".jsonl", jsonl([*PLAIN, {"image": "images/2.png", "question": "q2?"}])),
        PLAIN_STORED,
        {"empty answer": 1},
    ),
    Case(
        "a column that is null in one split",
        {
            "train.jsonl": jsonl([row | {"note": None} for row in PLAIN]),
            "validation.jsonl": jsonl([row | {"note": "x"} for row in PLAIN]),
        },
        PLAIN_STORED,
    ),
    Case(
        "an unused column of several types",
        both(".jsonl", jsonl([r | {"x": x} for r, x in zip(PLAIN, (1, [{}]), strict=True)])),
        PLAIN_STORED,
    ),
    Case(
        "nothing in the validation file",
        {"train.jsonl": jsonl(PLAIN), "validation.jsonl": ""},
        error=r"is empty: split 'validation' has no rows .*validation.jsonl",
    ),
    Case("an empty array", {"train.json": "[]", "validation.json": jsonl(PLAIN)}, error="is empty: split 'train'"),
    Case("a broken line", both(".jsonl", jsonl(PLAIN) + '{"image": }\n'), error=r"train.jsonl, line 3: not JSON"),
    Case(
        "a file that ends too early", both(".json", json.dumps(PLAIN)[:-20]), error="train.json, line 1: the JSON ends"
    ),
    Case("single quotes", both(".jsonl", "{'a': 1}\n"), error="train.jsonl, line 1: not JSON .*json.dumps"),
    Case("a comma too many", both(".json", '[{"a": 1},]'), error="train.json, line 1: not JSON"),
    Case("text after the array", both(".json", '[{"a": 1}] []'), error="text after the end of the array"),
    Case(
        "two lists of one name",
        both(".json", '{"data": [{"a": 1}], "data": [{"a": 2}]}'),
        error="two values named 'data'",
    ),
    Case(
        "rows that are lists", both(".jsonl", "[1, 2]\n[3]\n"), error="train.jsonl, line 1: a row is an object, found"
    ),
    Case("rows that are texts", both(".json", '["a"]'), error="a row is an object, found a text"),
    Case(
        "two values of one name", both(".jsonl", '{"answer": "a", "answer": "b"}\n'), error="two values named 'answer'"
    ),
    Case(
        "several lists of rows",
        both(".json", json.dumps({"images": PLAIN, "questions": PLAIN})),
        error=r"an object with several lists of rows \(images, questions\)",
    ),
    Case(
        "two lists of one split",
        both(".json", json.dumps({"train": PLAIN, "training": PLAIN})),
        error=r"an object with several lists of rows \(train, training\)",
    ),
    Case("rows by name", both(".json", json.dumps({"a": PLAIN[0], "b": PLAIN[1]})), error="an object of objects"),
    Case(
        "another encoding",
        both(".jsonl", jsonl(rows("lesión")).encode("latin-1")),
        error="line 1: byte 0xf3 is not UTF-8",
    ),
    Case(
        "a packed file that is damaged",
        both(".jsonl.gz", gzip.compress(jsonl(PLAIN).encode())[:-9]),
        error="cannot be unpacked",
    ),
    Case("a Git LFS pointer", both(".jsonl", "version https://git-lfs.github.com/spec/v1\n"), error="git lfs pull"),
]
