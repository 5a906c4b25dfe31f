"""Samples during training ask the same questions at each validation, and the losses are the golden curve."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import without_answer
from vlm_core.generation.samples import LONGEST
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.models.model_reference import find_model
from vlm_core.run_directory import LATEST, METRICS, SAMPLES
from vlm_core.training.distributed import Ranks

# Losses of the demo's model on 40 images with 8 questions per step. A commit that changes them must say why.
GOLDEN = [6.9288, 6.8908, 6.6010, 6.7039, 6.4830]


def train(directory: Path, conversations: Path, **overrides: Any) -> None:
    finetune(small_config(**{"checkpoint.checkpoint_dir": str(directory)} | overrides), Ranks(), conversations)


@pytest.mark.parametrize("peft", [pytest.param(None, marks=pytest.mark.slow), {"dim": 4}], ids=["full", "lora"])
def test_the_same_questions_are_asked_at_each_validation(
    peft: dict[str, int] | None, conversations: Path, tmp_path: Path
) -> None:
    train(tmp_path, conversations, **{"step_scheduler.val_every_steps": 2, "peft": peft, "packing.max_tokens": 300})
    records = read_json_lines(tmp_path / SAMPLES)[0]
    by_step = {step: [r for r in records if r["step"] == step] for step in (2, 3)}
    assert [len(shown) for shown in by_step.values()] == [6, 6]  # one per validation image
    dataset = ConversationDataset(conversations, "validation")
    examples = {row["example_id"]: dataset[i] for i, row in enumerate(dataset.conversations)}
    asked = [examples[record["example_id"]]["conversation"] for record in by_step[3]]
    assert [r["question"] for r in by_step[2]] == [r["question"] for r in by_step[3]]
    assert [r["reference"] for r in by_step[3]] == [turns[1]["content"][0]["text"] for turns in asked]
    answerer = Answerer.load(find_model(str(tmp_path / LATEST)))
    answers = answerer.answer([without_answer(turns) for turns in asked], GenerationSettings(LONGEST))
    assert [r["prediction"] for r in by_step[3]] == [answer.text for answer in answers]


def test_the_curve_is_golden_and_each_step_reports_its_cost(conversations: Path, tmp_path: Path) -> None:
    train(tmp_path, conversations, **{"step_scheduler.max_steps": 5})
    records = read_json_lines(tmp_path / METRICS)[0]
    assert [record["loss"] for record in records] == pytest.approx(GOLDEN, rel=1e-3)
    for record in records:
        assert record["tokens_per_second"] > record["supervised_tokens_per_second"] > 0
        assert record["peak_memory_mb"] > 100
        assert 0 <= record["data_seconds"] < 60
