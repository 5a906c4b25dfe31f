"""The controls: another case's image, a black image, no image; and nothing else about the question changes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_core.data.collate import collate_prompts
from vlm_core.data.conversation_cache import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluation.answering import Questions
from vlm_core.evaluation.conditions import image_inputs, shuffle_between_cases
from vlm_core.evaluation.result_names import BLANK, QUESTION_ONLY, RIGHT, SHUFFLED
from vlm_core.families import Family
from vlm_core.generation.decode import without_answer


def example(case: str, image: int) -> dict:
    return {"case_id": case, "conversation": [{"role": "user", "content": [{"type": "image", "image": image}]}]}


def test_every_image_is_replaced_by_one_of_another_case() -> None:
    case_of = {0: "a", 1: "a", 2: "b", 3: "c", 4: "c", 5: "c"}
    mapping = shuffle_between_cases([example(case, image) for image, case in case_of.items()], seed=3)
    assert mapping is not None
    assert mapping.keys() == case_of.keys()
    assert all(case_of[image] != case_of[shown] for image, shown in mapping.items())


def test_one_case_alone_has_no_control() -> None:
    assert shuffle_between_cases([example("a", 0), example("a", 1)], seed=3) is None


@pytest.fixture
def asked(conversations: Path, processor: Any, family: Family) -> dict[str, Any]:
    dataset = ConversationDataset(conversations, "validation")
    shuffled = shuffle_between_cases(list(dataset.conversations), seed=1)
    questions = Questions(conversations, list(range(20)), shuffled)
    tokens = TokenDataset(build_tokens(conversations, processor, family), "validation")
    return {c: questions.under(c, tokens, processor, family) for c in (RIGHT, SHUFFLED, BLANK, QUESTION_ONLY)}


def test_images_alone_change(asked: dict[str, Any]) -> None:
    right = asked[RIGHT]
    for condition in (SHUFFLED, BLANK):
        assert [p.input_ids for p in asked[condition].prompts] == [p.input_ids for p in right.prompts]
        assert not set(asked[condition].prompt_keys) & set(right.prompt_keys)
    assert all(a.images != b.images for a, b in zip(asked[SHUFFLED].prompts, right.prompts, strict=True))
    # The same black image for all: equal questions are one question.
    ids = {tuple(p.input_ids) for p in right.prompts}
    assert len(set(asked[BLANK].prompt_keys)) == len(ids) < len(right.prompts)


def test_a_question_without_its_image_is_what_the_processor_makes_of_it(
    asked: dict[str, Any], conversations: Path, processor: Any, family: Family
) -> None:
    dataset = ConversationDataset(conversations, "validation")
    for i in range(0, 20, 5):
        conversation = without_answer(dataset[i]["conversation"])
        text_only = [{"role": "user", "content": [p for p in conversation[0]["content"] if p["type"] == "text"]}]
        expected = collate_prompts([{"conversation": text_only}], processor, family)["input_ids"][0].tolist()
        assert asked[QUESTION_ONLY].prompts[i].input_ids == expected
        assert asked[QUESTION_ONLY].prompts[i].images == []


def test_the_answered_form_supervises_the_answer_alone(asked: dict[str, Any]) -> None:
    for prompt, answered in zip(asked[RIGHT].prompts, asked[RIGHT].answered, strict=True):
        length = len(prompt.input_ids)
        assert answered.input_ids[:length] == prompt.input_ids
        assert not any(answered.supervised[:length])
        assert answered.supervised[length]


def test_a_black_image_stands_for_every_image() -> None:
    blank, images = torch.zeros(1, 3, 2, 2), lambda indices: torch.ones(len(indices), 3, 2, 2)
    assert image_inputs(BLANK, images, blank)([4, 4, 7]).equal(torch.zeros(3, 3, 2, 2))
    assert image_inputs(SHUFFLED, images, blank)([4]).equal(torch.ones(1, 3, 2, 2))
