"""Gemma 4 on the fast path, in float32: small (causal images), large (experts, a thought) and unified (no tower).

What all families have to get right is in the other files, where small and unified are tried; here is the rest.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import noise, small_config, tiny_directory
from tests.generation.test_decode import one_by_one, together
from tests.generation.test_likelihood import plain_logprob
from tests.training.test_packing_gradients import by_index, largest_difference, loss_and_gradients
from vlm_core.data.batches import shown_images
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate_tokens, require_keys
from vlm_core.data.conversation import answer_turn, question_turn
from vlm_core.data.packing import pack
from vlm_core.data.shown_images import shown_images as pictures
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.data.tokenization import require_template
from vlm_core.families import FULL, GEMMA4, SLIDING
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.prompts import Prompts
from vlm_core.models.attention import LayerRule, layer_rules
from vlm_core.models.chat import GenericChat, load_chat
from vlm_core.models.derived_family import _own_row
from vlm_core.models.freeze import frozen_parts
from vlm_core.models.frozen_tower import DetachedTower, feature_inputs, vision_features
from vlm_core.models.load import load_model, unwrapped
from vlm_core.models.lora import apply_lora
from vlm_core.models.structured_attention import STRUCTURED, use_structured_attention

SIZES = [(56, 56), (150, 60), (40, 130), (300, 20)]
ASKED = {
    (0,): ["Where is it?", "Which organ is shown?", "Is there a lesion?"],
    (1, 2): ["Which is larger?", "Which of the two slices is axial?"],
    (3,): ["What is shown?"],
    (): ["What is a lesion?"],
}


@pytest.fixture(scope="module", params=["gemma4", "gemma4_26b", "gemma4_unified"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def chat(name: str) -> ChatModel:
    return load_chat(tiny_directory(name))


@pytest.fixture
def model(name: str) -> Any:
    return load_model(tiny_directory(name), small_config().model)


def conversations() -> list[tuple[tuple[int, ...], Any]]:
    """Returns (images, conversation) of questions about images of several shapes, about two images, and about none."""
    return [
        (shown, [question_turn(text, [noise(SIZES[i]) for i in shown]), answer_turn(f"On the {text[-6:-1]} side.")])
        for shown, questions in ASKED.items()
        for text in questions
    ]


def groups_of(chat: ChatModel) -> list[list[TokenizedExample]]:
    groups: dict[tuple[int, ...], list[TokenizedExample]] = {shown: [] for shown in ASKED}
    for shown, conversation in conversations():
        tokenized, grids = chat.tokenize(conversation), chat.image_grids([SIZES[i] for i in shown])
        groups[shown].append(TokenizedExample(tokenized.input_ids, tokenized.supervised, [*shown], grids))
    return [*groups.values()]


def pixels(chat: ChatModel, rows: Any) -> Any:
    return chat.image_inputs([[noise(SIZES[i]) for i in row] for row in rows])


def test_rows_answer_as_the_processor_does(name: str, chat: ChatModel) -> None:
    require_template(chat)
    directory = tiny_directory(name)
    generic = GenericChat(chat.processor, _own_row(directory, chat.family.model_type))
    for _, conversation in conversations():
        assert chat.tokenize(conversation) == generic.tokenize(conversation)
        assert chat.prompt_ids(conversation[:1]) == generic.prompt_ids(conversation[:1])
    for size in [*SIZES, (1, 900), (1000, 1), (3000, 2000), (48, 48)]:
        assert chat.image_tokens(size) == generic.image_tokens(size) <= 70
    ids = torch.tensor([chat.tokenize(conversations()[3][1]).input_ids])
    ((key, types),) = generic.token_types(ids).items()
    assert types.equal(chat.token_types(ids)[key])


def test_a_thought_belongs_to_the_prompt_of_a_row(name: str, chat: ChatModel) -> None:
    conversation: list[Any] = [question_turn("What is shown?", [noise((56, 56))]), answer_turn("A mass.")]
    conversation += [question_turn("Where?", []), answer_turn(" Left. ")]
    tokenized, tokenizer = chat.tokenize(conversation), chat.processor.tokenizer
    pairs = list(zip(tokenized.input_ids, tokenized.supervised, strict=True))
    asked, answered = (tokenizer.decode([i for i, target in pairs if target is kind]) for kind in (False, True))
    thinks = name != "gemma4"
    assert tokenized.unasked == thinks
    assert answered == ("" if thinks else "A mass.<turn|>") + "Left.<turn|>"
    assert asked.endswith("<|turn>model\n" + ("<|channel>thought\n<channel|>" if thinks else "") + "\n")
    assert asked.count("<|channel>") == thinks
    prompt = chat.prompt_ids(conversation[:3])
    assert tokenized.input_ids[: len(prompt)] == prompt
    assert tokenized.supervised[len(prompt)]


large_only = pytest.mark.parametrize("name", ["gemma4_26b"], indirect=True, scope="module")


@pytest.mark.parametrize(
    ("name", "tuning"), [("gemma4", "lora"), ("gemma4_26b", "full")], indirect=["name"], scope="module"
)
def test_packed_gradients_equal_those_of_single_examples(tuning: str, chat: ChatModel, model: Any) -> None:
    config = small_config(**{"peft.dim": 4, "freeze_config.freeze_vision_tower": True})
    if tuning == "lora":
        torch.manual_seed(0)
        assert config.peft is not None
        model = apply_lora(model, config.peft, chat.family, frozen_parts(config.freeze_config, chat.family))
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data.normal_(std=0.03)
    model.train()
    groups = groups_of(chat)
    examples = [example for group in groups for example in group]
    single = [collate_tokens([example], chat) | pixels(chat, [example.images]) for example in examples]
    expected_loss, expected = loss_and_gradients(model, chat, single)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    rows = [[groups[1], groups[0]], [groups[2], groups[3]]]
    packed = pack(rows, chat) | pixels(chat, [shown_images(rows)])
    require_keys(packed, replace(chat.family, required_keys=frozenset({"input_ids"})))
    loss, gradients = loss_and_gradients(model, chat, [packed])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(gradients, expected) < 1e-5
    use_structured_attention(model, torch.device("cpu"))
    assert unwrapped(model).config.get_text_config()._attn_implementation == STRUCTURED
    loss, gradients = loss_and_gradients(model, chat, [packed])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(gradients, expected) < 1e-5
    wrong = [by_index(packed), packed | {"branch_ids": torch.zeros_like(packed["branch_ids"])}]
    if layer_rules(model.config, chat.family)[SLIDING].bidirectional_images:
        wrong.append(packed | {"image_ids": torch.zeros_like(packed["image_ids"])})
    for changed in wrong:
        assert loss_and_gradients(model, chat, [changed])[0] != pytest.approx(loss, rel=1e-4)


@large_only
def test_cached_features_give_the_gradients_of_live_ones(chat: ChatModel, model: Any) -> None:
    model.get_submodule(chat.family.vision_tower).requires_grad_(False)
    groups = groups_of(chat)
    live = pack([groups[:2], groups[2:]], chat) | pixels(chat, [shown_images([groups])])
    expected_loss, expected = loss_and_gradients(model, chat, [live])
    grids = [grid for group in groups for grid in group[0].grids]
    features = vision_features(model, {key: live[key] for key in chat.family.image_inputs}, chat.family)
    assert [len(of_image) for of_image in features] == [chat.image_tokens(size) for size in SIZES]
    cached = {key: live[key] for key in live.keys() - {*chat.family.image_inputs}}
    cached |= feature_inputs([*features], grids, chat)
    tower = DetachedTower(model, chat.family)
    loss, gradients = loss_and_gradients(model, chat, [cached])
    assert loss == expected_loss
    assert all(gradients[parameter].equal(expected[parameter]) for parameter in expected)
    assert any("embed_vision" in parameter for parameter in gradients)
    padded = collate_tokens([groups[0][0]], chat) | feature_inputs([features[0]], grids[:1], chat)
    require_keys(padded, chat.family)
    without_tower, _ = loss_and_gradients(model, chat, [padded])
    with tower.attached():
        plain = collate_tokens([groups[0][0]], chat) | pixels(chat, [[0]])
        assert loss_and_gradients(model, chat, [plain])[0] == pytest.approx(without_tower, rel=1e-6)


def varied(model: Any) -> Any:
    """Returns the model with weights that give long and varied answers."""
    torch.manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 0.3 if "embed_tokens" in parameter_name else 2.0
            parameter.data.normal_(std=scale * parameter.shape[-1] ** -0.5)
    return model.eval()


@large_only
def test_answers_equal_those_of_generate(chat: ChatModel, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = Answerer(varied(model), chat)
    asked = [conversation[:1] for _, conversation in conversations()]
    expected = one_by_one(answerer, asked, stops={1})
    assert len(set(map(tuple, expected))) > 4
    monkeypatch.setattr("vlm_core.generation.chunks.TOKENS_AT_ONCE", 200)
    assert together(answerer, asked, stops={1}) == expected


@large_only
def test_likelihoods_equal_those_of_plain_logits(chat: ChatModel, model: Any) -> None:
    examples = Prompts([example for group in groups_of(chat) for example in group], chat)
    answerer, found = Answerer(model.eval(), chat), dict[int, Any]()
    for groups in examples.batches(16):
        found |= answerer.score_groups(examples, groups, lambda rows: pixels(chat, rows))
    for number, (_, conversation) in enumerate(conversations()):
        logprob, count = plain_logprob(model, {"conversation": conversation}, chat)
        assert (found[number].tokens, found[number].logprob) == (count, pytest.approx(logprob, rel=1e-5))


def test_masks_follow_the_checkpoint(name: str, chat: ChatModel, model: Any) -> None:
    rules = layer_rules(model.config, chat.family)
    expected = {
        "gemma4": {FULL: LayerRule(None, False), SLIDING: LayerRule(32, False)},
        "gemma4_26b": {FULL: LayerRule(None, False), SLIDING: LayerRule(32, True)},
        "gemma4_unified": {FULL: LayerRule(None, True, True), SLIDING: LayerRule(32, True, True)},
    }
    assert rules == expected[name]
    model.config.text_config.use_bidirectional_attention = "all"
    with pytest.raises(ValueError, match="use_bidirectional_attention='all' lets each token"):
        layer_rules(model.config, chat.family)


def test_patches_are_shown_as_the_picture(chat: ChatModel) -> None:
    rows, columns = np.mgrid[0:80, 0:120].astype(np.uint8)
    picture = Image.fromarray(np.stack([rows, columns, rows // 2 + columns // 2], axis=-1))
    (shown,) = pictures(chat.image_inputs([[picture]]), chat.processor.image_processor)
    ((down, across),) = chat.image_grids([picture.size])
    assert shown.size == (48 * across, 48 * down)
    expected = np.asarray(picture.resize(shown.size, Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(np.asarray(shown, dtype=float) - expected).mean() < 1


def test_a_batch_without_positions_of_patches_is_refused(tmp_path: Path) -> None:
    batch = dict.fromkeys(["input_ids", "attention_mask", "pixel_values", "mm_token_type_ids"])
    with pytest.raises(ValueError, match="a batch for gemma4 lacks image_position_ids"):
        require_keys(batch, GEMMA4)
