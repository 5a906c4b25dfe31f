"""Each dataset of the corpus is stored as it is written there, or refused with the reason that is written there."""

from pathlib import Path

import pytest

from tests.conftest import small_config
from tests.data.corpus import Case, chats, json_files, layouts, tables
from vlm_core.cache import read_manifest
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations

CASES = [case for module in (chats, json_files, layouts, tables) for case in module.CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_stored(case: Case, home: Path) -> None:
    case.write(home / "folder")
    config = small_config(**{
        "dataset.path_or_dataset": str(home / "folder" / case.path),
        "dataset.max_reject_share": 1.0,
    } | dict(case.settings))  # fmt: skip
    if case.error:
        with pytest.raises(ValueError, match=case.error):
            prepare_conversations(config)
        return
    cache, _ = prepare_conversations(config)
    rejects = read_manifest(cache)["rejects"]
    found = {reason: sum(row.startswith("train-") for row in r["examples"]) for reason, r in rejects.items()}
    assert [(reason, rows) for reason, rows in found.items() if rows] == [
        (next((r for r in found if r.startswith(reason)), reason), rows) for reason, rows in case.rejects.items()
    ]
    assert [stored_of(row) for row in ConversationDataset(cache, "train")] == [list(map(list, s)) for s in case.stored]


def stored_of(row: dict) -> list[list[str | int]]:
    """Returns the parts of each turn of a row, an image as its number."""
    return [
        [
            part["text"] if part["type"] == "text" else round(part["image"].getpixel((0, 0))[0] / 40)
            for part in turn["content"]
        ]
        for turn in row["conversation"]
    ]
