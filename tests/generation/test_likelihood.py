"""The likelihood of answers after a shared prefix equals that from the model's logits for one example at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import every_family, small_config, tiny_directory
from vlm_core.data.batches import DecodedImages
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens, last_answer_of
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.prompts import Prompts
from vlm_core.models.load import load_model


def plain_logprob(model: Any, example: dict[str, Any], chat: ChatModel) -> tuple[float, int]:
    batch = collate([example], chat)
    labels = batch.pop("labels")[0, 1:]
    with torch.no_grad():
        logits = model(**batch).logits[0, :-1].float()
    chosen = labels != -100
    logprobs = logits[chosen].log_softmax(-1).gather(1, labels[chosen, None])
    return float(logprobs.double().sum()), int(chosen.sum())


@every_family
def test_likelihoods_equal_those_of_plain_logits(
    conversations: Path, chat: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_core.generation.likelihood.tokens_at_once", lambda model: 7)  # several chunks
    model = load_model(tiny_directory(chat.family.model_type), small_config().model).eval()
    tokens = TokenDataset(build_tokens(conversations, chat), "validation")
    dataset = ConversationDataset(conversations, "validation")
    chosen = (0, 10, 1, 20, 11, 2, 3, 12)
    answerer = Answerer(model, chat)
    examples = Prompts([last_answer_of(tokens[i]) for i in chosen], chat)
    expected = [plain_logprob(model, dataset[i], chat) for i in chosen]
    for at_once, tokens_at_once in ((16, 2048), (16, 1), (3, 2048)):
        monkeypatch.setattr("vlm_core.generation.chunks.TOKENS_AT_ONCE", tokens_at_once)
        found: dict[int, Any] = {}
        for groups in examples.batches(at_once):
            found |= answerer.score_groups(examples, groups, DecodedImages.of(conversations, chat))
        assert [found[i].tokens for i in range(len(chosen))] == [count for _, count in expected]
        assert [found[i].logprob for i in range(len(chosen))] == pytest.approx([p for p, _ in expected], rel=1e-5)
