"""Case ids become keyed hashes: no output has an original id, and splits and leaks are as they were."""

import csv
import stat
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import small_config
from vlm_core.cache import read_manifest
from vlm_core.config import Config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.explained_row import explain_row, explain_some
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.pseudonyms import FILE, KEY, Pseudonyms, read_pseudonyms
from vlm_core.data.splits import SPLITS, fetch_splits
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.pages.data_report import write_data_report

PATIENTS = [f"MRN-77{number:04}" for number in range(10)]


def write_study(folder: Path) -> None:
    """Writes 23 questions about images whose paths have the ids of the patients; three rows cannot be read."""
    rows = []
    for number, patient in enumerate(PATIENTS):
        (folder / patient).mkdir(parents=True)
        for image in range(2):
            Image.new("L", (8, 8), 12 * (2 * number + image)).save(folder / patient / f"{patient}_{image}.png")
            written = (patient, patient.lower().replace("-", "\u2013") + " ")[image]  # one patient in two spellings
            rows.append((f"{patient}_{image}.png", f"what, {number}?", "mass", written, f"row of {patient}"))
    first, second, third = PATIENTS[:3]
    rows.append((f"{first}_9.png", "where?", "left", first, ""))
    rows.append((f"{second}_0.png", "", "left", second, ""))
    rows.append((f"{third}_0.png", "who?", "left", f"['{third}']", ""))
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "question", "answer", "patient_id", "remark"), *rows])


def config_of(folder: Path, *, validation: str | None = None, **settings: Any) -> Config:
    data = {"path_or_dataset": str(folder), "max_reject_share": 1.0, "split_by": "case", "validation_share": 0.4}
    own = {f"dataset.{key}": value for key, value in (data | settings).items()}
    return small_config(**own | {"validation_dataset.split": validation})


def shown(cache: Path) -> dict[str, list[tuple[str, str]]]:
    """Returns (example id, case id) of each row by split."""
    tables = {split: ConversationDataset(cache, split).conversations for split in SPLITS}
    return {split: [*zip(table["example_id"], table["case_id"], strict=True)] for split, table in tables.items()}


@pytest.mark.parametrize("split_by", ["case", "image"])
def test_no_output_has_an_original_id_and_nothing_else_changes(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], split_by: str
) -> None:
    folder, output = tmp_path / "study", home / "home" / "data-report"
    write_study(folder)
    config = config_of(folder, pseudonymise_case_ids=True, split_by=split_by)
    with caplog.at_level("DEBUG"):
        splits = fetch_splits(config)
        cache, _ = prepare_conversations(config, splits)
        write_data_report(config, cache, output / "report.html", [*explain_some(splits), explain_row(splits, "20")])
    written = b"".join(path.read_bytes() for path in (home / "home").rglob("*") if path.is_file())
    names = " ".join(map(str, (home / "home").rglob("*")))
    said = [caplog.text, *capsys.readouterr(), *splits.notes]
    seen = " ".join([written.decode("utf-8", "replace"), names, *said])
    for patient in PATIENTS:
        for form in (patient, patient.lower(), patient[4:], patient.lower().replace("-", "\u2013")):
            assert form not in seen
    assert read_pseudonyms().of(PATIENTS[0]) in seen
    assert read_pseudonyms().key.decode() not in seen.replace((home / "home" / FILE).read_text(), "")

    plain, _ = prepare_conversations(config_of(folder, split_by=split_by))
    assert plain != cache
    hidden, original = shown(cache), shown(plain)
    for split in SPLITS:
        assert [(name, read_pseudonyms().of(case)) for name, case in original[split]] == hidden[split]
    statistics = [read_json(directory / STATISTICS) for directory in (cache, plain)]
    assert statistics[0] == statistics[1]
    assert read_manifest(cache)["cases"] == 10
    assert sum(reject["rows"] for reject in read_manifest(cache)["rejects"].values()) == 3


def test_ids_that_differ_by_zeros_are_still_counted(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for split, ids in (("train", ["0101", "7", "0102"]), ("validation", ["101", "8", "102"])):
        rows = [f"a scan of {case}?,x,{case}\n" for case in ids]
        (folder / f"{split}.csv").write_text("question,answer,patient_id\n" + "".join(rows))
    for hidden in (False, True):
        own = {"image_column": None, "split_by": "published", "pseudonymise_case_ids": hidden}
        config = config_of(folder, validation="validation", **own)
        found = read_json(prepare_conversations(config)[0] / STATISTICS)
        assert found["overlap"]["cases"]["but_for_zeros"] == 2
        assert found["personal_texts"] == {"the id of its case": 2}  # 101 and 7 are too short to tell


def test_the_key_is_private_and_decides_the_pseudonyms(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, file = read_pseudonyms(), home / "home" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_pseudonyms() == first
    assert len({first.of(case) for case in ("101", "101.0", " 101 ")}) == 1
    assert first.of("101") != first.of("0101")
    assert "key" not in repr(first)
    monkeypatch.setenv(KEY, "a key of the whole lab")
    assert read_pseudonyms().of("101") == Pseudonyms(b"a key of the whole lab").of("101") != first.of("101")
    assert read_pseudonyms().fingerprint != first.fingerprint
    monkeypatch.setenv(KEY, "short")
    with pytest.raises(ValueError, match=f"environment variable {KEY} must hold a key of at least 16 characters"):
        read_pseudonyms()
    monkeypatch.delenv(KEY)
    file.chmod(0o640)
    with pytest.raises(ValueError, match="can be read by others: chmod 600 it"):
        read_pseudonyms()


def test_settings_that_do_not_fit(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "study"
    write_study(folder)
    with pytest.raises(ValueError, match="dataset.mode_column=patient_id is the column of the case ids"):
        fetch_splits(config_of(folder, pseudonymise_case_ids=True, case_column="patient_id", mode_column="patient_id"))
    fetch_splits(config_of(folder, pseudonymise_case_ids=True, case_column=None, split_by="image"))
    assert "pseudonymise_case_ids has no effect: the data has no case column" in caplog.text
