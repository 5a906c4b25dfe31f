"""The controls: another case's image, a black image or none. Nothing else about the question changes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import small_config, tiny_directory
from vlm_core.data.batches import DecodedImages
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate_prompts
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.evaluation.answering import Questions
from vlm_core.evaluation.conditions import black_image, shuffle_between_cases
from vlm_core.evaluation.result_names import BLANK, QUESTION_ONLY, RIGHT, SHUFFLED
from vlm_core.generation.decode import without_answer
from vlm_core.models.frozen_tower import feature_inputs, vision_features
from vlm_core.models.load import load_model
from vlm_core.training.vision_cache import SameFeatures


def example(case: str, *images: int) -> dict:
    content = [{"type": "image", "image": image} for image in images]
    return {"case_id": case, "conversation": [{"role": "user", "content": content}]}


def test_every_image_is_replaced_by_one_of_another_case() -> None:
    case_of = {0: "a", 1: "a", 2: "b", 3: "c", 4: "c", 5: "c"}
    mapping = shuffle_between_cases([example(case, image) for image, case in case_of.items()], seed=3)
    assert mapping is not None
    assert mapping.keys() == {(image,) for image in case_of}
    assert all(case_of[image] != case_of[shown] for (image,), (shown,) in mapping.items())


def test_a_volume_is_replaced_as_a_whole() -> None:
    """By the slices of one other case, in their order; volumes with as many slices are preferred."""
    volumes = {"a": (0, 1, 2, 3), "b": (4, 5, 6, 7), "c": (8, 9), "d": (10, 11, 12)}
    for seed in range(20):
        examples = [example(case, *images) for case, images in volumes.items()] * 2
        mapping = shuffle_between_cases([*examples, example("e")], seed)
        assert mapping is not None
        assert (mapping[volumes["a"]], mapping[volumes["b"]]) == ([*volumes["b"]], [*volumes["a"]])
        for case in "cd":
            shown, (source,) = mapping[volumes[case]], [v for v in volumes.values() if mapping[volumes[case]][0] in v]
            assert source != volumes[case]
            assert len(shown) == len(volumes[case])
            assert shown == sorted(shown)
            assert set(shown) <= set(source)
    few = shuffle_between_cases([example("a", 0, 1, 2, 3, 4), example("b", 5, 6)], seed=0)
    assert few == {(0, 1, 2, 3, 4): [5, 5, 6, 6, 6], (5, 6): [1, 3]}


def test_volumes_that_share_a_slice_are_one_case() -> None:
    assert shuffle_between_cases([example("a", 0, 1), example("b", 1, 2)], seed=0) is None
    mapping = shuffle_between_cases([example("a", 0, 1), example("b", 1, 2), example("c", 3)], seed=0)
    assert mapping is not None
    assert mapping[0, 1] == mapping[1, 2] == [3, 3]


def test_one_case_alone_has_no_control() -> None:
    assert shuffle_between_cases([example("a", 0), example("a", 1)], seed=3) is None


@pytest.fixture
def asked(conversations: Path, chat: ChatModel) -> dict[str, Any]:
    dataset = ConversationDataset(conversations, "validation")
    shuffled = shuffle_between_cases(list(dataset.conversations), seed=1)
    questions = Questions(conversations, list(range(20)), shuffled)
    tokens = TokenDataset(build_tokens(conversations, chat), "validation")
    return {c: questions.under(c, tokens, chat) for c in (RIGHT, SHUFFLED, BLANK, QUESTION_ONLY)}


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
    asked: dict[str, Any], conversations: Path, chat: ChatModel
) -> None:
    dataset = ConversationDataset(conversations, "validation")
    for i in range(0, 20, 5):
        conversation = without_answer(dataset[i]["conversation"])
        text_only = [{"role": "user", "content": [p for p in conversation[0]["content"] if p["type"] == "text"]}]
        expected = collate_prompts([{"conversation": text_only}], chat)["input_ids"][0].tolist()
        assert asked[QUESTION_ONLY].prompts[i].input_ids == expected
        assert asked[QUESTION_ONLY].prompts[i].images == []


def test_the_answered_form_supervises_the_answer_alone(asked: dict[str, Any]) -> None:
    for prompt, answered in zip(asked[RIGHT].prompts, asked[RIGHT].answered, strict=True):
        length = len(prompt.input_ids)
        assert answered.input_ids[:length] == prompt.input_ids
        assert not any(answered.supervised[:length])
        assert answered.supervised[length]


def test_a_black_image_stands_for_every_image(conversations: Path, chat: ChatModel) -> None:
    """From pixels and from cached features alike."""
    black, model = black_image(), load_model(tiny_directory(chat.family.model_type), small_config().model)
    shown = DecodedImages.of(conversations, chat).replaced(black)([[4], [4, 7]])
    expected = chat.image_inputs([[black, black, black]])
    assert shown.keys() == expected.keys()
    assert all(shown[key].equal(expected[key]) for key in shown)
    features = SameFeatures.of(black, model, chat)
    by_features, pixels = features([[4], [4, 7]]), features([])
    assert pixels == {}
    expected = feature_inputs(
        [*vision_features(model, expected, chat.family)], chat.image_grids([black.size] * 3), chat
    )
    assert by_features.keys() == expected.keys()
    assert all(torch.allclose(by_features[key], expected[key], atol=1e-5) for key in expected)
