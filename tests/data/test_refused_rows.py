"""Rows that one model cannot be shown are counted rejects of that model; the others train and are evaluated."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import noise, small_config, tiny_directory
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluation.answering import shown_rows
from vlm_core.models.chat import load_chat
from vlm_core.models.model_reference import find_model
from vlm_core.training.training_examples import require_few_left_out

SIZES = [(60, 60), (3000, 4), (60, 60), (4, 3000), (1, 1), (1, 201), (1, 199), (60, 60)]
REFUSED = [1, 3, 5]


@pytest.fixture
def strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a conversation cache with images of `SIZES` in both splits."""
    models = tiny_directory("qwen2_5_vl")
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "cache").mkdir(parents=True)
    (tmp_path / "home" / "cache" / "models").symlink_to(models.parent)
    for number, size in enumerate(SIZES):
        noise(size).save(tmp_path / f"{number}.png")
    rows = [{"image_id": f"{i}.png", "question": f"{i}?", "answer": "Yes."} for i in range(len(SIZES))]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"dataset.case_column": None, "dataset.mode_column": None}
    return prepare_conversations(small_config(**{"dataset.path_or_dataset": str(tmp_path)} | columns))[0]


def test_rows_that_a_model_cannot_take_are_counted_and_left_out(strips: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(**{"model.pretrained_model_name_or_path": "builtin:tiny-qwen2_5_vl"})
    files = find_model(None, config.model)
    tokens = TokenDataset(build_tokens(strips, load_chat(files.base)), "train")
    kept = [row for row in range(len(SIZES)) if row not in REFUSED]
    assert [tokens.row_of(i) for i in range(len(tokens))] == kept == sorted(tokens.shown_rows())
    (reason,) = tokens.rejects
    assert "aspect ratio must be smaller than 200" in reason
    assert tokens.rejects[reason] | {"about": ""} == {
        "rows": 3,
        "examples": [f"train-{row}" for row in REFUSED],
        "about": "",
    }
    assert "750" in tokens.rejects[reason]["about"]
    assert tokens.of_row(4) == tokens[2]
    with pytest.raises(ValueError, match="row 3 .*cannot be shown"):
        tokens.of_row(3)

    rows, of_row = [{"example_id": f"train-{i}"} for i in range(len(SIZES))], np.zeros(len(SIZES), dtype=int)
    with pytest.raises(ValueError, match=r"of 8 examples of train, 3 cannot be shown.*crop or pad"):
        require_few_left_out(config, "train", tokens, rows, of_row)
    allowed = small_config(**{"dataset.max_reject_share": 0.5})
    with caplog.at_level(logging.WARNING):
        require_few_left_out(allowed, "train", tokens, rows, of_row)
        assert shown_rows(files, strips) == kept
    assert "left out of the evaluation" in caplog.text
