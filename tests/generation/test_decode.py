"""Answers from a shared prefix equal those of `model.generate` for one question at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import every_family, noise, small_config, tiny_directory
from vlm_core.data.batches import DecodedImages
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate_prompts
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.token_cache import TokenDataset, build_tokens, last_answer_of
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import Answer, to_answer, without_answer
from vlm_core.generation.prompts import Prompts, prompt_of
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.models.load import load_model

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def answerer(chat: ChatModel) -> Answerer:
    """A model with random weights that gives long and varied answers."""
    model = load_model(tiny_directory(chat.family.model_type), small_config().model).eval()
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # Otherwise the tied embedding dominates, and each token predicts itself.
            scale = 0.3 if "embed_tokens" in name else 2.0
            parameter.data.normal_(std=scale * parameter.shape[-1] ** -0.5)
    return Answerer(model, chat)


def one_by_one(answerer: Answerer, conversations: list[Any], stops: set[int]) -> list[list[int]]:
    """The reference: transformers' own greedy generation."""
    generated = []
    for conversation in conversations:
        inputs = collate_prompts([{"conversation": conversation}], answerer.chat)
        output = answerer.model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=list(stops), pad_token_id=0
        )
        generated.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return generated


def together(answerer: Answerer, conversations: list[Any], stops: set[int]) -> list[list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_core.generation.answerer.stop_tokens", lambda chat: stops)
        patch.setattr("vlm_core.generation.answerer.to_answer", lambda ids, chat, logprob: ids)
        return answerer.answer(conversations, GenerationSettings(NEW_TOKENS))


@pytest.fixture(scope="module")
def asked(conversations: Path) -> list[list[dict[str, Any]]]:
    """Questions about three images (4, 3 and 1 questions), mixed."""
    dataset = ConversationDataset(conversations, "validation")
    return [without_answer(dataset[i]["conversation"]) for i in (0, 10, 1, 20, 11, 2, 3, 12)]


@every_family
def test_a_shared_prefix_changes_no_answer(answerer: Answerer, asked: list[Any]) -> None:
    expected = one_by_one(answerer, asked, stops={1})
    assert together(answerer, asked, stops={1}) == expected
    assert len(set(map(tuple, expected))) > 5
    # The window is shorter than the prompt, so lost or extra keys in a sliding layer would change answers.
    window = getattr(answerer.model.config.get_text_config(), "sliding_window", None)
    longest = collate_prompts([{"conversation": c} for c in asked], answerer.chat)
    assert window is None or longest["input_ids"].shape[1] + NEW_TOKENS > window


@pytest.mark.one_family
def test_branches_end_one_by_one(answerer: Answerer, asked: list[Any]) -> None:
    """The stop tokens occur, so some answers end early while the others continue as before."""
    whole = one_by_one(answerer, asked, stops={1})
    stops = {whole[0][3], whole[1][6], whole[4][1]}
    expected = one_by_one(answerer, asked, stops)
    assert len({len(ids) for ids in expected}) > 2
    assert together(answerer, asked, stops) == expected


@pytest.mark.one_family
def test_a_batch_in_chunks_has_the_same_answers(
    answerer: Answerer, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts about one image, two of other sizes, and none: each chunk gets its own pixels."""
    text = {"type": "text", "text": "Which organ is shown?"}
    for sizes in ([(90, 56), (56, 150)], [], [(130, 40)]):
        images = [{"type": "image", "image": noise(size)} for size in sizes]
        asked = [*asked, [{"role": "user", "content": [*images, text]}]]
    expected = one_by_one(answerer, asked, stops={1})
    tower, seen = answerer.model.get_submodule(answerer.chat.family.vision_tower), list[object]()
    handle = tower.register_forward_hook(lambda *_: seen.append(None))
    try:
        for tokens, parts in ((1, 5), (2048, 1)):  # one row at a time, or all at once
            monkeypatch.setattr("vlm_core.generation.chunks.TOKENS_AT_ONCE", tokens)
            seen.clear()
            assert together(answerer, asked, stops={1}) == expected
            assert len(seen) == parts
    finally:
        handle.remove()


def test_an_answer_is_cut_at_its_end_or_marked(chat: ChatModel) -> None:
    tokenizer = chat.processor.tokenizer
    end = tokenizer.convert_tokens_to_ids(chat.family.end_of_turn)
    ids = tokenizer("On the left side.", add_special_tokens=False)["input_ids"]
    assert to_answer([*ids, end], chat) == Answer("On the left side.", len(ids) + 1, truncated=False)
    assert to_answer(ids, chat) == Answer("On the left side.", len(ids), truncated=True)
    assert to_answer([end], chat) == Answer("", 1, truncated=False)


def test_cached_prompts_equal_the_processors(answerer: Answerer, conversations: Path, chat: ChatModel) -> None:
    tokens = TokenDataset(build_tokens(conversations, chat), "validation")
    dataset = ConversationDataset(conversations, "validation")
    for i in range(0, len(dataset), 7):
        conversation = without_answer(dataset[i]["conversation"])
        expected = collate_prompts([{"conversation": conversation}], chat)["input_ids"][0].tolist()
        assert prompt_of(tokens[i]).input_ids == expected


def test_one_pass_gives_the_answers_and_the_likelihoods(
    answerer: Answerer, conversations: Path, chat: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the examples are only scored. Rows whose branches have all ended leave the cache."""
    tokens, images = (
        TokenDataset(build_tokens(conversations, chat), "validation"),
        DecodedImages.of(conversations, chat),
    )
    examples = Prompts([last_answer_of(tokens[i]) for i in (0, 10, 1, 20, 11, 2, 3, 12)], chat)
    prompts = Prompts([prompt_of(example) for example in examples.prompts], chat)
    settings, keys = GenerationSettings(NEW_TOKENS), dict.fromkeys((0, 1, 2, 3, 4, 7), "key")
    (own,), (groups,) = prompts.batches(8), examples.batches(8)
    monkeypatch.setattr("vlm_core.generation.answerer.to_answer", lambda ids, chat, logprob: ids)
    monkeypatch.setattr("vlm_core.generation.answerer.stop_tokens", lambda chat: {1})
    whole: Any = answerer.answer_groups(prompts, own, images, settings, [""] * 8)
    # All answers about one image end early: example 3 is the only one about its image.
    stops = {whole[3][2], whole[0][5]}
    monkeypatch.setattr("vlm_core.generation.answerer.stop_tokens", lambda chat: stops)
    separate = answerer.answer_groups(prompts, own, images, settings, [""] * 8)
    expected = answerer.score_groups(examples, groups, images)
    rows: list[int] = []
    forward = type(answerer.model.model).forward

    def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(type(answerer.model.model), "forward", counted)
    answers, scores = answerer.answer_and_score(examples, groups, images, settings, keys)
    assert answers == {i: separate[i] for i in keys}
    assert scores.keys() == expected.keys()
    for i, found in scores.items():
        assert found.tokens == expected[i].tokens
        assert found.logprob == pytest.approx(expected[i].logprob, rel=1e-6)
    assert rows[0] == 3
    assert rows[-1] < 3
    rows.clear()
    assert answerer.answer_and_score(examples, groups, images, settings, {}) == ({}, expected)
    assert rows == [3]


def test_full_batches_and_few_keys(conversations: Path, chat: ChatModel) -> None:
    tokens = TokenDataset(build_tokens(conversations, chat), "validation")
    prompts = Prompts([prompt_of(tokens[i]) for i in range(len(tokens))], chat)
    sizes = [sum(len(group.members) for group in batch) for batch in prompts.batches(16)]
    assert min(sizes[:-1]) > 12  # groups of ten would leave six places empty
    longest = max(prompts.lengths)
    for batch in prompts.batches(16, keys=2 * int(longest)):
        assert len(batch) == 1 or len(batch) * batch[0].tokens <= 2 * longest


def test_batches_hold_every_prompt_once_and_share_prefixes(conversations: Path, chat: ChatModel) -> None:
    tokens = TokenDataset(build_tokens(conversations, chat), "validation")
    prompts = Prompts([prompt_of(tokens[i]) for i in range(len(tokens))], chat)
    for batch_size in (1, 4, 16):
        batches = prompts.batches(batch_size)
        members = [i for groups in batches for group in groups for i in group.members]
        assert sorted(members) == list(range(len(prompts)))
        assert all(sum(len(group.members) for group in groups) <= batch_size for groups in batches)
    shares = [prompts.share(16, rank, 3) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(len(prompts)))
    about_one = Prompts([replace(p, images=[5 for _ in p.images]) for p in prompts.prompts], chat)
    assert len(set(about_one.groups.tolist())) == 1
