"""The Arrow cache: images once, rejects counted, the same content found again, another content built anew."""

import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import small_config
from vlm_core.cache import read_manifest
from vlm_core.data.conversation_cache import build_conversations
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.images import FORMATS, decode_image
from vlm_core.data.phantom import write_phantom
from vlm_core.data.splits import Splits, fetch_splits


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    write_phantom(tmp_path / "data-set", num_images=12, seed=5, image_size=56)
    return tmp_path / "data-set"


def splits(directory: Path) -> Splits:
    return fetch_splits(small_config(**{"dataset.path_or_dataset": str(directory)}))


def replace(directory: Path, column: str, values: dict[int, Any]) -> None:
    (path,) = directory.glob("data/train-*.parquet")
    table = pq.read_table(path)
    rows = table[column].to_pylist()
    for i, value in values.items():
        rows[i] = value
    position = table.column_names.index(column)
    pq.write_table(table.set_column(position, column, pa.array(rows, table.schema.field(column).type)), path)


def test_rows_come_back_as_conversations(directory: Path) -> None:
    cache, reused = build_conversations(splits(directory))
    assert not reused
    manifest = read_manifest(cache)
    assert manifest["rows"] == {"train": 100, "validation": 20}
    assert manifest["images"] == 12  # ten questions an image, stored once
    assert manifest["rejects"] == {}
    (path,) = directory.glob("data/validation-*.parquet")
    rows = pq.read_table(path).to_pylist()
    dataset = ConversationDataset(cache, "validation")
    assert len(dataset) == len(rows)
    for row, example in zip(rows, (dataset[i] for i in range(20)), strict=True):
        (picture, question), (answer,) = (turn["content"] for turn in example["conversation"])
        assert [turn["role"] for turn in example["conversation"]] == ["user", "assistant"]
        assert question == {"type": "text", "text": row["question"]}
        assert answer == {"type": "text", "text": row["answer"]}
        assert picture["image"].tobytes() == decode_image(row["image_id"]["bytes"]).tobytes()
        assert (example["case_id"], example["mode"]) == (row["case_id"], row["mode"])
    for name in ("images.arrow", "validation.arrow"):
        content = (cache / name).read_bytes()
        for left in (len(content) // 2, 3, 0):
            (cache / name).write_bytes(content[:left])
            with pytest.raises(ValueError, match=f"{name} is damaged .*: delete {cache}, and run again to build it"):
                ConversationDataset(cache, "validation")
        (cache / name).write_bytes(content)


def test_the_same_content_is_reused_and_a_changed_byte_is_not(directory: Path) -> None:
    cache, _ = build_conversations(splits(directory))
    assert build_conversations(splits(directory)) == (cache, True)
    replace(directory, "answer", {0: "Something else"})
    other, reused = build_conversations(splits(directory))
    assert (other == cache, reused) == (False, False)


def test_rejects_are_counted_by_reason_with_examples(directory: Path) -> None:
    replace(directory, "answer", {3: "  ", 4: None})
    replace(directory, "question", {5: ""})
    broken = {"bytes": b"no image", "path": "broken.png"}
    replace(directory, "image_id", {6: {"bytes": None, "path": "gone.png"}, 7: broken, 8: broken})
    cache, _ = build_conversations(splits(directory))
    manifest = read_manifest(cache)
    for reject in manifest["rejects"].values():
        rows = [name.removeprefix("train-") for name in reject["examples"]]
        assert [re.sub(r".*, row (\d+) \(the first is 0\)", r"\1", place) for place in reject.pop("places")] == rows
    assert manifest["rejects"] == {
        "empty answer": {"rows": 2, "examples": ["train-3", "train-4"]},
        "empty question": {"rows": 1, "examples": ["train-5"]},
        "image file is missing": {
            "rows": 1,
            "examples": ["train-6"],
            "about": f"dataset.image_column=image_id: 'gone.png' was looked for as {directory / 'gone.png'}; "
            "no file there has a similar name",
        },
        f"image of no supported format ({', '.join(FORMATS)})": {"rows": 2, "examples": ["train-7", "train-8"]},
    }
    assert manifest["rows"]["train"] == 94


def test_a_split_without_usable_rows_is_refused_and_leaves_no_cache(directory: Path) -> None:
    replace(directory, "answer", dict.fromkeys(range(100), ""))
    with pytest.raises(ValueError, match="no row is left for train"):
        build_conversations(splits(directory))
    assert list((Path(os.environ["MEDPIX_HOME"]) / "cache" / "conversations").glob("*/manifest.json")) == []


def _build(directory: Path, results: Any) -> None:
    results.put(build_conversations(splits(directory))[1])


@pytest.mark.slow
def test_of_two_builders_one_builds(directory: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    builders = [context.Process(target=_build, args=(directory, results)) for _ in range(2)]
    for builder in builders:
        builder.start()
    assert sorted(results.get(timeout=60) for _ in builders) == [False, True]
    for builder in builders:
        builder.join()
