"""One patient, however the id is written; and two patients whose ids are merely alike."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import small_config
from tests.data.image_files import encode
from vlm_core.data.case_ids import case_key, case_text, without_zeros
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json


@pytest.mark.parametrize(
    "same",
    [
        (101, 101.0, "101", "101.0", " 101 ", b"101", Decimal("101.00"), "\uff11\uff10\uff11", "101\u200b"),
        ("P1", "p1", "p1 ", "P1\n", "\ufeffP1", "\uff301"),
        ("Müller-1", "Mu\u0308ller-1", "MÜLLER\u20131", "müller\u20111"),
        ("doe  john", "Doe John", "doe\tjohn", "doe\u00a0john"),
        (0, 0.0, "0", "-0.0"[1:]),
    ],
)
def test_spellings_of_one_patient(same: tuple[Any, ...]) -> None:
    assert len({case_key(case_text(cell) or "") for cell in same}) == 1


def test_patients_whose_ids_are_merely_alike() -> None:
    others = ["101", "0101", "00101", "101.5", "1010", "P101", "P-101", "P 101", 1.5, 15, "-101", "l01", True]
    assert len({case_key(case_text(cell) or "") for cell in others}) == len(others)
    assert without_zeros("P-0012") == without_zeros("p-12") != without_zeros("P-120")
    assert without_zeros("000") == "0"


@pytest.mark.parametrize("cell", [None, "", "  ", float("nan"), "nan", "NaN", "None", "null", "N/A", "<NA>", "\u200b"])
def test_no_id(cell: Any) -> None:
    assert case_text(cell) is None


def test_a_written_id_is_shown_as_it_was_written() -> None:
    assert [case_text(cell) for cell in ("MPX1 a", "é", 7.0, 1e20)] == ["MPX1 a", "é", "7", "1" + "0" * 20]
    with pytest.raises(ValueError, match="not one value"):
        case_text(["P1", "P2"])


def _write(directory: Path, name: str, rows: list[tuple[Any, bytes]]) -> None:
    directory.mkdir(exist_ok=True)
    for number, (_, encoded) in enumerate(rows):
        (directory / f"{name}{number}.img").write_bytes(encoded)
    lines = [
        {"image": f"{name}{number}.img", "question": f"{name} {number}?", "answer": "a", "patient": case}
        for number, (case, _) in enumerate(rows)
    ]
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _grey(value: int, kind: str, mode: str = "L") -> bytes:
    return encode(Image.linear_gradient("L").point(lambda v: (v + value) % 256).convert(mode), kind)


def test_leaks_are_seen_whatever_the_spelling_and_the_file_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    train = [("P1", _grey(1, "png")), ("101", _grey(2, "bmp")), ("007", _grey(3, "tiff")), ("x", _grey(4, "png"))]
    validation = [("p1 ", _grey(11, "png")), ("101.0", _grey(12, "png")), ("7", _grey(13, "png"))]
    validation.append(("y", _grey(4, "tiff", "RGB")))
    _write(tmp_path / "d", "train", train)
    _write(tmp_path / "d", "validation", validation)
    columns = {"dataset.image_column": "image", "dataset.case_column": "patient", "dataset.mode_column": None}
    cache, _ = prepare_conversations(small_config(**{"dataset.path_or_dataset": str(tmp_path / "d")} | columns))
    found = read_json(cache / STATISTICS)
    assert found["overlap"]["cases"]["shared"] == 2
    assert found["overlap"]["cases"]["but_for_zeros"] == 1
    assert found["overlap"]["images"]["shared"] == 1
    assert found["images"]["count"] == 7
    shown = [
        row["case_id"] for split in ("train", "validation") for row in ConversationDataset(cache, split).conversations
    ]
    assert shown == ["P1", "101", "007", "x", "P1", "101", "7", "y"]


@pytest.mark.parametrize("split_by", ["case", "image"])
def test_a_division_keeps_them_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_by: str) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    kinds = [("png", "L"), ("bmp", "L"), ("tiff", "RGB")]
    spelled = [str, lambda n: f"{n}.0", lambda n: f" {n}\t"]
    rows = [
        (spell(number), _grey(number if split_by == "image" else 3 * number + i, *kinds[i]))
        for number in range(12)
        for i, spell in enumerate(spelled)
    ]
    _write(tmp_path / "d", "train", rows)
    rules = {"split_by": split_by, "validation_share": 0.5, "path_or_dataset": str(tmp_path / "d")}
    rules |= {"image_column": "image", "mode_column": None, "case_column": "patient" if split_by == "case" else None}
    config = small_config(
        **{f"dataset.{key}": value for key, value in rules.items()}, **{"validation_dataset.split": None}
    )
    cache, _ = prepare_conversations(config)
    sides = {
        int(row["example_id"].rpartition("-")[2]): split
        for split in ("train", "validation")
        for row in ConversationDataset(cache, split).conversations
    }
    assert len(sides) == 36
    groups = [{sides[3 * number + i] for i in range(3)} for number in range(12)]
    assert all(len(group) == 1 for group in groups)
    assert len(set().union(*groups)) == 2
