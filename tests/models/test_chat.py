"""The chat model: both kinds answer the same questions, and a new family is one row of the table."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import noise, small_config, tiny_directory
from tests.more_models import more_directory
from tests.training.test_packing_gradients import largest_difference, loss_and_gradients
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate_tokens
from vlm_core.data.conversation import answer_turn, question_turn
from vlm_core.data.packing import pack
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.data.tokenization import require_template
from vlm_core.families import FAMILIES, FULL, GEMMA3, GEMMA4, QWEN2_5_VL, SLIDING, Family
from vlm_core.models.attention import LayerRule, layer_rules
from vlm_core.models.chat import GenericChat, load_chat
from vlm_core.models.derived_family import _own_row
from vlm_core.models.load import load_model

SIZES = [(56, 56), (150, 60), (40, 130)]


@pytest.fixture
def generic(chat: ChatModel) -> ChatModel:
    """The model of `chat` as it would be without a row."""
    return GenericChat(chat.processor, _own_row(tiny_directory(chat.family.model_type), chat.family.model_type))


def test_both_kinds_answer_every_question(chat: ChatModel, generic: ChatModel) -> None:
    questions = {name for name in (*vars(ChatModel), *ChatModel.__annotations__) if not name.startswith("_")}
    assert len(questions) > 12
    for kind in (chat, generic):
        assert all(hasattr(kind, question) for question in questions)
        assert {name for name in dir(kind) if not name.startswith("_")} == questions


def test_both_kinds_answer_alike(chat: ChatModel, generic: ChatModel) -> None:
    images = [noise(size) for size in SIZES]
    conversation = [question_turn("Which shows a lesion?", images[:2]), answer_turn("The left one.")]
    assert chat.tokenize(conversation) == generic.tokenize(conversation)
    assert chat.prompt_ids(conversation[:1]) == generic.prompt_ids(conversation[:1])
    ids = torch.tensor([chat.tokenize(conversation).input_ids])
    for key, types in generic.token_types(ids).items():
        assert types.equal(chat.token_types(ids)[key])
    shown = [images[:2], [], images[2:]]
    made, expected = chat.image_inputs(shown), generic.image_inputs(shown)
    assert chat.image_inputs([[], []]) == generic.image_inputs([[], []]) == {}
    assert set(made) <= set(expected)
    assert all(made[key].equal(expected[key]) for key in made)


def test_an_image_has_as_many_tokens_as_the_processor_writes(chat: ChatModel, generic: ChatModel) -> None:
    for size in SIZES:
        conversation = [question_turn("What is shown?", [noise(size)])]
        made = chat.processor.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"][0]
        expected = list(made).count(chat.image_token)
        assert chat.image_tokens(size) == generic.image_tokens(size) == expected > 0


QWEN2_VL = replace(QWEN2_5_VL, model_type="qwen2_vl")


def examples_of(chat: ChatModel) -> list[TokenizedExample]:
    """Returns two questions about an image, one about two images, and a text."""
    asked = [("Where is it?", [0]), ("Which organ?", [0]), ("Which is larger?", [1, 2]), ("What is a lesion?", [])]
    found = []
    for question, shown in asked:
        conversation = [question_turn(question, [noise(SIZES[i]) for i in shown]), answer_turn("On the left side.")]
        tokenized, grids = chat.tokenize(conversation), chat.image_grids([SIZES[i] for i in shown])
        found.append(TokenizedExample(tokenized.input_ids, tokenized.supervised, shown, grids))
    return found


def test_a_new_family_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = more_directory("qwen2_vl")
    assert not load_chat(directory).packs
    monkeypatch.setitem(FAMILIES, "qwen2_vl", QWEN2_VL)
    chat = load_chat(directory)
    assert (chat.packs, chat.caches_features) == (True, True)
    require_template(chat)
    model = load_model(directory, small_config().model)
    examples = examples_of(chat)

    def images(shown: list[list[int]]) -> Any:
        return chat.image_inputs([[noise(SIZES[i]) for i in row] for row in shown])

    plain = [collate_tokens([example], chat) | images([example.images]) for example in examples]
    expected_loss, expected = loss_and_gradients(model, chat, plain)
    packed = pack([[examples[:2], examples[3:]], [examples[2:3]]], chat) | images([[0], [1, 2]])
    loss, gradients = loss_and_gradients(model, chat, [packed])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(gradients, expected) < 1e-5


def text_config(**settings: Any) -> Any:
    text = SimpleNamespace(**{"sliding_window": 512, "layer_types": [SLIDING, FULL, SLIDING]} | settings)
    return SimpleNamespace(get_text_config=lambda: text)


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        (GEMMA3, {}, {FULL: LayerRule(None, True), SLIDING: LayerRule(512, True)}),
        (GEMMA3, {"layer_types": [FULL]}, {FULL: LayerRule(None, True)}),
        (
            GEMMA4,
            {"use_bidirectional_attention": "vision"},
            {FULL: LayerRule(None, False), SLIDING: LayerRule(512, True)},
        ),
        (GEMMA4, {"use_bidirectional_attention": None}, {FULL: LayerRule(None, False), SLIDING: LayerRule(512, False)}),
        (QWEN2_5_VL, {"layer_types": None, "sliding_window": None}, LayerRule(None, False)),
    ],
)
def test_masks_follow_the_models_config(family: Family, settings: dict[str, Any], expected: Any) -> None:
    assert layer_rules(text_config(**settings), family) == expected


def test_a_layer_that_no_mask_fits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers of type linear_attention, which packing cannot mask; set packing"):
        layer_rules(text_config(layer_types=[FULL, "linear_attention"]), QWEN2_5_VL)


def test_no_other_file_asks_for_a_models_type() -> None:
    """A comparison with a model's type or with a kind of chat model belongs into the table or its two readers."""
    source = Path(load_chat.__code__.co_filename).parents[1]
    readers = {"families.py", "models/chat.py", "models/derived_family.py"}
    asks = re.compile(r"model_type\b\s*(==|!=|in\b|not in\b)|isinstance\([^)]*(FastChat|GenericChat)|plain_only")
    found = {str(path.relative_to(source)) for path in source.rglob("*.py") if asks.search(path.read_text())}
    assert found <= readers
    assert asks.search("if family.model_type == 'gemma3':")
