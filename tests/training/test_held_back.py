"""Validation losses leave the held-back cases out."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.held_back import is_held_back
from vlm_core.training.distributed import Ranks
from vlm_core.training.setup import gather


def gathered(tmp_path: Path, conversations: Path, **overrides: Any) -> Any:
    return gather(small_config(**overrides), tmp_path, Ranks(), conversations)


def test_validation_losses_leave_out_the_held_back_cases(tmp_path: Path, conversations: Path) -> None:
    cases = ConversationDataset(conversations, "validation").conversations["case_id"]
    everything = gathered(tmp_path, conversations)
    selected = gathered(tmp_path, conversations, **{"validation_dataset.held_back": 0.5})
    left = {cases[selected.validation.row_of(index)] for index in range(len(selected.validation))}
    assert left == {case for case in cases if not is_held_back(case, 0.5)}
    assert 0 < len(selected.validation) < len(everything.validation) == 60
    assert len(selected.train) == len(everything.train)


def test_both_parts_need_cases(tmp_path: Path, conversations: Path) -> None:
    with pytest.raises(ValueError, match=r"held_back=0.001 holds back 0 of the \d+ cases"):
        gathered(tmp_path, conversations, **{"validation_dataset.held_back": 0.001})
    with pytest.raises(ValueError, match=r"validation_dataset.held_back=1.0 holds back (\d+) of the \1 cases"):
        gathered(tmp_path, conversations, **{"validation_dataset.held_back": 1.0})


def test_a_custom_collate_function_cannot_hold_back(
    tmp_path: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPIX_TARGETS", "tests")
    target = {"dataloader.collate_fn._target_": f"{__name__}.gathered"}
    with pytest.raises(ValueError, match="set validation_dataset.held_back=0"):
        gathered(tmp_path, conversations, **{"validation_dataset.held_back": 0.5}, **target)
