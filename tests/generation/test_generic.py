"""Generic models answer as their own `generate` does for one prompt at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import fresh_home, noise, small_config
from tests.other_models import WRITERS, directory_of
from vlm_core.data.batches import DecodedImages
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens, last_answer_of
from vlm_core.evaluate import evaluate
from vlm_core.files import read_json
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import stop_tokens, to_answer, without_answer
from vlm_core.generation.prompts import Prompts
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.models.chat import load_chat
from vlm_core.models.load import load_model
from vlm_core.run_directory import RESULT
from vlm_core.training.distributed import Ranks
from vlm_core.training.loss import TokenLoss

NEW_TOKENS = 10


@pytest.fixture(scope="module", params=WRITERS)
def answerer(request: pytest.FixtureRequest) -> Answerer:
    """A model with random weights that gives long and varied answers."""
    directory = directory_of(request.param)
    model = load_model(directory, small_config().model).eval()
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=2.0 * parameter.shape[-1] ** -0.5)
    return Answerer(model, load_chat(directory))


@pytest.fixture(scope="module")
def asked(conversations: Path) -> list[list[dict[str, Any]]]:
    """Questions about one image, about two of other sizes, and about no image."""
    dataset = ConversationDataset(conversations, "validation")
    images = [{"type": "image", "image": noise(size)} for size in ((90, 56), (56, 150))]
    text = {"type": "text", "text": "What is the difference between them?"}
    others = [[{"role": "user", "content": [*images, text]}], [{"role": "user", "content": [text]}]]
    return [without_answer(dataset[i]["conversation"]) for i in (0, 10, 1, 23)] + others


def test_answers_equal_those_of_generate(answerer: Answerer, asked: list[Any]) -> None:
    processor = answerer.chat.processor
    stops, expected = stop_tokens(answerer.chat), []
    for conversation in asked:
        inputs = processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        length = inputs["input_ids"].shape[1]
        output = answerer.model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=list(stops), pad_token_id=0
        )
        expected.append(to_answer(output[0, length:].tolist(), answerer.chat))
    assert answerer.answer(asked, GenerationSettings(NEW_TOKENS)) == expected
    assert len({answer.text for answer in expected}) > 4


def test_an_answer_ends_at_its_stop(answerer: Answerer, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop tokens occur, so some answers end early while the others continue as before."""
    monkeypatch.setattr("vlm_core.generation.answerer.to_answer", lambda ids, chat, logprob: ids)
    whole: Any = answerer.answer(asked, GenerationSettings(NEW_TOKENS))
    stops = {whole[0][3], whole[1][6]} | stop_tokens(answerer.chat)
    monkeypatch.setattr("vlm_core.generation.answerer.stop_tokens", lambda chat: stops)
    ends = [next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids)) for ids in whole]
    assert answerer.answer(asked, GenerationSettings(NEW_TOKENS)) == [
        i[:end] for i, end in zip(whole, ends, strict=True)
    ]
    assert min(ends) < NEW_TOKENS


def test_a_sampled_answer_is_independent_of_the_others(answerer: Answerer, asked: list[Any]) -> None:
    settings = GenerationSettings(NEW_TOKENS, temperature=0.7, top_p=0.9, seed=1)
    together = answerer.answer(asked, settings)
    assert [answerer.answer([conversation], settings)[0] for conversation in asked] == together
    assert together != answerer.answer(asked, GenerationSettings(NEW_TOKENS))


def test_likelihoods_equal_the_loss(answerer: Answerer, conversations: Path) -> None:
    chat = answerer.chat
    dataset = ConversationDataset(conversations, "validation")
    tokens = TokenDataset(build_tokens(conversations, chat), "validation")
    examples = Prompts([last_answer_of(tokens[i]) for i in range(6)], chat)
    found = {}
    for groups in examples.batches(4):
        found |= answerer.score_groups(examples, groups, DecodedImages.of(conversations, chat))
    for i in range(6):
        batch = collate([dataset[i]], chat)
        with torch.no_grad():
            assert found[i].logprob == pytest.approx(-TokenLoss(answerer.model, chat)(batch).item(), rel=1e-5)
        assert found[i].tokens == int((batch["labels"] != -100).sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_an_evaluation_asks_under_every_condition(
    name: str, tmp_path: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(fresh_home(tmp_path / "home")))
    overrides = {"evaluation.max_new_tokens": 4, "evaluation.limit": 12, "evaluation.batch_size": 5}
    config = small_config(**overrides, **{"model.pretrained_model_name_or_path": str(directory_of(name))})
    evaluate(config, None, tmp_path / "out", Ranks(), conversations)
    result = read_json(tmp_path / "out" / RESULT)
    assert {"model", "shuffled", "blank", "question_only"} <= result["scores"].keys()
    perplexities = {result["scores"][kind]["perplexity"]["value"] for kind in ("model", "shuffled", "blank")}
    assert len(perplexities) == 3  # the model sees the images
