"""Samples during training ask the same questions at each validation, and the losses are the golden curve."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from vlm_core.config import Config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluation.training_scores import TrainingScores
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import without_answer
from vlm_core.generation.samples import LONGEST
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.models.model_reference import find_model
from vlm_core.run_directory import LATEST, LOWEST_VAL, METRICS, PROGRESS, SAMPLES, VALIDATION
from vlm_core.training.checkpoint import RunProgress
from vlm_core.training.distributed import Ranks

# Losses of the demo's model on 40 images with 8 questions per step. A commit that changes them must say why.
GOLDEN = [6.9288, 6.8908, 6.6010, 6.7039, 6.4830]


def train(directory: Path, conversations: Path, **overrides: Any) -> None:
    finetune(small_config(**{"checkpoint.checkpoint_dir": str(directory)} | overrides), Ranks(), conversations)


@pytest.mark.parametrize("peft", [pytest.param(None, marks=pytest.mark.slow), {"dim": 4}], ids=["full", "lora"])
def test_the_same_questions_are_asked_at_each_validation(
    peft: dict[str, int] | None, conversations: Path, tmp_path: Path
) -> None:
    settings = {"step_scheduler.val_every_steps": 2, "peft": peft, "packing.max_tokens": 300}
    scored = {"step_scheduler.val_questions": 12, "checkpoint.best_metric": "token_f1", "evaluation.max_new_tokens": 8}
    train(tmp_path, conversations, **settings | scored)
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
    require_scores(tmp_path, conversations, answerer, small_config(**settings | scored))


def require_scores(run: Path, conversations: Path, answerer: Answerer, config: Config) -> None:
    """Fails unless the last validation has the scores of the last model, and LOWEST_VAL the highest score."""
    found = {record["step"]: record for record in read_json_lines(run / VALIDATION)[0]}
    tokens = TokenDataset(build_tokens(conversations, answerer.chat), "validation")
    drawn = TrainingScores(config, conversations, tokens)
    assert drawn.chosen == TrainingScores(config, conversations, tokens).chosen
    dataset = ConversationDataset(conversations, "validation")
    asked = [without_answer(dataset[tokens.row_of(i)]["conversation"]) for i in drawn.chosen]
    texts = [answer.text for answer in answerer.answer(asked, GenerationSettings(8))]
    assert {name: found[3][name] for name in ("token_f1", "closed_accuracy")} == drawn.scores(texts)
    best = max(found, key=lambda step: found[step]["token_f1"])
    assert (run / LOWEST_VAL).resolve().name.endswith(f"step_{best}")
    assert read_json(run / LOWEST_VAL / PROGRESS)["lowest_validation_loss"] == pytest.approx(
        1 - found[best]["token_f1"]
    )


def test_a_model_that_says_nothing_is_not_the_best(conversations: Path) -> None:
    config = small_config(**{"checkpoint.best_metric": "contradictions", "step_scheduler.val_questions": 20})
    tokens = TokenDataset(build_tokens(conversations, find_model(None, config.model).chat), "validation")
    drawn = TrainingScores(config, conversations, tokens)
    references = [expected.reference for expected in drawn.expected]
    silent, right = (drawn.scores(texts) for texts in ([""] * len(references), references))
    assert silent["contradictions"] == right["contradictions"] == 0
    assert drawn.criterion(1.0, right) == 0 < drawn.criterion(1.0, silent) == 1


def test_a_metric_without_a_value_is_refused_before_training(conversations: Path, tmp_path: Path) -> None:
    open_only = {"checkpoint.best_metric": "closed_accuracy", "step_scheduler.val_questions": 1, "rng.seed": 1}
    with pytest.raises(ValueError, match="closed_accuracy has no value on the 1 validation questions that are drawn"):
        train(tmp_path, conversations, **open_only)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="token_f1 is a score of answers, and step_scheduler.val_questions=0"):
        small_config(**{"checkpoint.best_metric": "token_f1"})


def test_progress_by_another_metric_starts_again() -> None:
    progress = RunProgress("data", step=9, lowest_validation_loss=0.4, validations_since_lowest=3)
    assert progress.by("loss") is progress
    other = progress.by("token_f1")
    assert (other.step, other.lowest_validation_loss, other.validations_since_lowest) == (9, None, 0)
    assert other.record_validation(0.7)
    assert not other.record_validation(0.8)
    assert other.is_exhausted(1)


def test_the_curve_is_golden_and_each_step_reports_its_cost(conversations: Path, tmp_path: Path) -> None:
    train(tmp_path, conversations, **{"step_scheduler.max_steps": 5})
    records = read_json_lines(tmp_path / METRICS)[0]
    assert [record["loss"] for record in records] == pytest.approx(GOLDEN, rel=1e-3)
    for record in records:
        assert record["tokens_per_second"] > record["supervised_tokens_per_second"] > 0
        assert record["peak_memory_mb"] > 100
        assert 0 <= record["data_seconds"] < 60
