"""An interrupted evaluation resumes, no question is asked twice, and a model that ignores images is detected."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import fresh_home, small_config, tiny_directory
from vlm_core.config import Config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.evaluate import evaluate
from vlm_core.evaluation.answering import Questions, answer_questions
from vlm_core.evaluation.conditions import shuffle_between_cases
from vlm_core.evaluation.result_names import BLANK, QUESTION_ONLY, RIGHT, SHUFFLED
from vlm_core.evaluation.store import Store
from vlm_core.files import read_json
from vlm_core.generation.answerer import Answerer
from vlm_core.models.load import load_model
from vlm_core.models.model_reference import ModelFiles, find_model
from vlm_core.run_directory import RESULT
from vlm_core.training.distributed import Ranks

CONDITIONS = (RIGHT, SHUFFLED, BLANK, QUESTION_ONLY)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversations: Path) -> Path:
    home = fresh_home(tmp_path / "home")
    monkeypatch.setenv("MEDPIX_HOME", str(home))
    return home


@pytest.fixture
def config() -> Config:
    return small_config(**{"evaluation.max_new_tokens": 4, "evaluation.batch_size": 8})


@pytest.fixture
def files(config: Config) -> ModelFiles:
    return find_model(None, config.model)


@pytest.fixture
def questions(conversations: Path) -> Questions:
    dataset = ConversationDataset(conversations, "validation")
    return Questions(conversations, list(range(0, 60, 2)), shuffle_between_cases(list(dataset.conversations), seed=1))


def ask(files: ModelFiles, questions: Questions, config: Config) -> dict[str, Any]:
    return answer_questions(files, questions, CONDITIONS, config, Ranks(), "model")


def test_a_second_evaluation_loads_no_model(
    files: ModelFiles, questions: Questions, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(files, questions, config)
    monkeypatch.setattr(Answerer, "load", None)  # whoever asks now fails
    assert ask(files, questions, config) == first
    other = small_config(**{"evaluation.max_new_tokens": 5})
    with pytest.raises(TypeError, match="not callable"):  # another setting is another question
        ask(files, questions, other)


def test_an_interrupted_evaluation_asks_the_rest(
    files: ModelFiles, questions: Questions, config: Config, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(files, questions, config)
    shutil.rmtree(home / "cache" / "answers")
    asked: list[str] = []
    add = Store.add

    def add_some(store: Store, records: dict[str, Any]) -> None:
        if len(asked) >= 60:
            raise KeyboardInterrupt
        asked.extend(records)
        add(store, records)

    monkeypatch.setattr(Store, "add", add_some)
    with pytest.raises(KeyboardInterrupt):
        ask(files, questions, config)
    # A kill in the middle of a line: the half line is no answer.
    path = max(home.glob("cache/answers/*/*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    with path.open("a") as stream:
        stream.write('{"key": "half')
    monkeypatch.setattr(Store, "add", lambda store, records: (asked.extend(records), add(store, records)))
    assert ask(files, questions, config) == whole
    assert len(asked) == len(set(asked))  # each once, over both


@pytest.mark.slow
def test_a_model_that_ignores_images_shows_no_reliance(conversations: Path, tmp_path: Path) -> None:
    """Its projector returns zeros, so the language model gets the same input for every image."""
    config = small_config(**{"evaluation.max_new_tokens": 4, "evaluation.compare_with": []})
    blind = shutil.copytree(tiny_directory("gemma3"), tmp_path / "blind")
    model = load_model(blind, config.model)
    torch.nn.init.zeros_(model.model.multi_modal_projector.mm_input_projection_weight)
    model.save_pretrained(blind)
    for name, is_blind in (("blind", True), ("seeing", False)):
        checkpoint = blind if is_blind else tiny_directory("gemma3")
        evaluate(config, str(checkpoint), tmp_path / name, Ranks(), conversations)
        result = read_json(tmp_path / name / RESULT)
        scores, change = result["scores"], result["visual_reliance"]["logprob"]
        if is_blind:
            for metric, found in scores["model"].items():
                for control in ("shuffled", "blank"):
                    expected = None if found["value"] is None else pytest.approx(found["value"], rel=1e-5)
                    assert scores[control][metric]["value"] == expected
            assert change["value"] == 0.0
        else:
            assert scores["shuffled"]["logprob"] != scores["model"]["logprob"] != scores["blank"]["logprob"]
        assert scores["question_only"]["logprob"] != scores["model"]["logprob"]


def test_sampled_answers_repeat_with_their_seed(files: ModelFiles, questions: Questions, home: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        shutil.rmtree(home / "cache" / "answers", ignore_errors=True)
        drawn = small_config(**{"evaluation.max_new_tokens": 4, "evaluation.temperature": 1.5, "rng.seed": seed})
        found.append([reply.text for reply in ask(files, questions, drawn)[RIGHT]])
    assert found[0] == found[1] != found[2]
