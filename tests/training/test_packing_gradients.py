"""Packed rows give the same loss and gradients as padded examples; wrong masks or positions do not."""

import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.flex_attention import WrappedFlexAttention

from tests.conftest import every_family, small_config, tiny_directory
from vlm_core.data.batches import DecodedImages, shown_images
from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.collate import collate_tokens
from vlm_core.data.conversation_dataset import image_sizes
from vlm_core.data.packing import pack
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.token_cache import TokenDataset, TokenizedExample, build_tokens, shared_prefix
from vlm_core.families import Family
from vlm_core.models.attention import Places, packed_masks
from vlm_core.models.forward import targets_of
from vlm_core.models.freeze import frozen_parts
from vlm_core.models.frozen_tower import DetachedTower, feature_inputs, vision_features
from vlm_core.models.load import load_model, unwrapped
from vlm_core.models.lora import apply_lora
from vlm_core.models.structured_attention import Structure, use_structured_attention
from vlm_core.training.loss import TokenLoss
from vlm_core.training.parallel import compile_layers

# Gemma 3n's AltUp amplifies rounding: a padded batch already differs from single examples by 9e-6.
TOLERANCE = defaultdict(lambda: 1e-5, gemma3n=5e-5)


@pytest.fixture(scope="module")
def tokens(conversations: Path, chat: ChatModel) -> TokenDataset:
    return TokenDataset(build_tokens(conversations, chat), "train")


@pytest.fixture
def images(conversations: Path, chat: ChatModel) -> DecodedImages:
    return DecodedImages.of(conversations, chat)


EITHER_WAY = pytest.mark.parametrize(("tuning", "checkpointing"), [("full", False), ("lora", True)])


def model_of(family: Family, tuning: str, *, checkpointing: bool = False) -> Any:
    torch.manual_seed(0)
    config = small_config(**{"freeze_config.freeze_vision_tower": tuning == "lora"})
    model = load_model(tiny_directory(family.model_type), config.model)
    if tuning == "lora":
        lora = small_config(**{"peft.dim": 4}).peft
        assert lora is not None
        model = apply_lora(model, lora, family, frozen_parts(config.freeze_config, family))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # It starts at zero, and lora_A would have no gradient.
                parameter.data.normal_(std=0.03)
    if checkpointing:
        checkpoint_layers(model)
    return model.train()


def checkpoint_layers(model: Any) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()


def groups_of(tokens: TokenDataset, sizes: list[int]) -> list[list[TokenizedExample]]:
    """Returns one group per entry of `sizes`: that many examples about one image."""
    members: dict[int, list[int]] = {}
    for index, group in enumerate(tokens.groups.tolist()):
        members.setdefault(group, []).append(index)
    return [[tokens[i] for i in indices[:size]] for indices, size in zip(members.values(), sizes, strict=False)]


def packed_batch(rows: list[list[list[TokenizedExample]]], images: DecodedImages) -> Batch:
    return pack(rows, images.chat) | images([shown_images(rows)])


def loss_and_gradients(
    model: Any, chat: ChatModel, batches: list[Batch], **savings: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    objective = TokenLoss(model, chat, **savings)
    total = 0.0
    for batch in batches:
        loss = objective(batch)
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def plain(model: Any, groups: list[list[TokenizedExample]], images: DecodedImages) -> Any:
    """The reference: one padded row per example, with transformers' own masks."""
    examples = [example for group in groups for example in group]
    batches = [collate_tokens([example], images.chat) | images([example.images]) for example in examples]
    return loss_and_gradients(model, images.chat, batches)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Returns the largest relative difference over all tensors: norm of the difference / norm."""
    assert one.keys() == other.keys()
    overall = torch.stack([g.norm() for g in other.values()]).norm()
    # Skip tensors whose gradient is only rounding noise, such as a bias of the keys, which softmax cancels.
    relevant = [name for name in other if other[name].norm() > 1e-6 * overall]
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in relevant)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_packed_gradients_equal_those_of_padded_examples(
    tuning: str, tokens: TokenDataset, images: DecodedImages
) -> None:
    chat, family = images.chat, images.chat.family
    model = model_of(family, tuning)
    groups = groups_of(tokens, [3, 1, 4, 2, 1])
    rows = [[groups[0], groups[1]], [groups[2], groups[3]], [groups[4]]]  # Images start at different offsets.
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    assert window is None or max(len(e.input_ids) for g in groups for e in g) > window
    expected_loss, expected = plain(model, groups, images)
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_layers(model)
        loss, gradients = loss_and_gradients(model, chat, [packed_batch(rows, images)])
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert largest_difference(gradients, expected) < TOLERANCE[family.model_type]


@pytest.mark.one_family
@EITHER_WAY
def test_a_last_layer_without_unused_positions_has_the_same_gradients(
    tuning: str, checkpointing: bool, tokens: TokenDataset, images: DecodedImages
) -> None:
    chat, family = images.chat, images.chat.family
    computed: list[int] = []

    def count(mlp: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        computed.append(inputs[0][..., 0].numel())

    groups = groups_of(tokens, [3, 2])
    of_rows = collate_tokens(groups[0], chat) | images([example.images for example in groups[0]])
    model = model_of(family, tuning, checkpointing=checkpointing)
    for batch in (packed_batch([groups], images), of_rows):
        expected_loss, expected = loss_and_gradients(model, chat, [batch])
        computed.clear()
        handle = unwrapped(model).get_decoder().layers[-1].mlp.register_forward_hook(count)
        loss, gradients = loss_and_gradients(model, chat, [batch], skip_unused=True)
        handle.remove()
        assert computed == [int((targets_of(batch) != -100).sum())]
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert largest_difference(gradients, expected) < TOLERANCE[family.model_type]


@pytest.mark.one_family
@every_family
@EITHER_WAY
def test_structured_attention_gives_the_gradients_of_dense_masks(
    tuning: str, checkpointing: bool, tokens: TokenDataset, images: DecodedImages
) -> None:
    """With padding, several groups in a row, and examples that are alone in their group."""
    chat, family = images.chat, images.chat.family
    groups = groups_of(tokens, [3, 1, 4, 2, 1, 1])
    batch = packed_batch([[groups[0], groups[1]], [groups[2], groups[3]], [groups[4]], [groups[5]]], images)
    model = model_of(family, tuning, checkpointing=checkpointing)
    expected_loss, expected = loss_and_gradients(model, chat, [batch])
    use_structured_attention(model, model.device)
    assert any(isinstance(mask, Structure) for mask in masks_of(batch, model, family))
    loss, gradients = loss_and_gradients(model, chat, [batch], skip_unused=True)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(gradients, expected) < TOLERANCE[family.model_type]


def masks_of(batch: Batch, model: Any, family: Family) -> list[Any]:
    places = Places.of(batch)
    masks = packed_masks(places, places, unwrapped(model), family)
    return [*masks.values()] if isinstance(masks, dict) else [masks]


def test_text_only_and_many_images_pack_too(conversations: Path, tokens: TokenDataset, images: DecodedImages) -> None:
    """One pack with a text-only example, two questions about two images, and a conversation of several turns."""
    sizes = image_sizes(conversations)

    def example(*texts: str, shown: list[int]) -> TokenizedExample:
        content: list[Any] = [{"type": "image"}] * len(shown)
        conversation: list[Any] = []
        for text in texts:
            role = "assistant" if len(conversation) % 2 else "user"
            conversation.append({"role": role, "content": [*content, {"type": "text", "text": text}]})
            content = []
        grids = images.chat.image_grids([sizes[i] for i in shown])
        tokenized = images.chat.tokenize(conversation, grids)
        return TokenizedExample(tokenized.input_ids, tokenized.supervised, shown, grids)

    text = example("What is a lesion?", "A finding.", shown=[])
    pair = [
        example(question, answer, shown=[2, 5])
        for question, answer in (("Which shows a lesion?", "The left one."), ("Which is axial?", "Both."))
    ]
    turns = example("Is there a lesion?", "Yes.", "Where?", "On the left side.", shown=[1])
    groups = [[text], pair, [turns], groups_of(tokens, [3])[0]]
    assert shared_prefix(pair[0], images.chat) > 0
    chat, family = images.chat, images.chat.family
    model = model_of(family, "full")
    expected_loss, expected = plain(model, groups, images)
    loss, gradients = loss_and_gradients(model, chat, [packed_batch([groups[:2], groups[2:]], images)])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(gradients, expected) < TOLERANCE[family.model_type]


@pytest.mark.slow
def test_bfloat16_loses_no_more_than_in_padded_examples(tokens: TokenDataset, images: DecodedImages) -> None:
    chat, family = images.chat, images.chat.family
    model = model_of(family, "full")
    errors: dict[str, list[float]] = {"plain": [], "packed": []}
    for start in range(8):
        groups = groups_of(tokens, [3] * (start + 2))[start:]
        exact, _ = plain(model, groups, images)
        with torch.autocast("cpu", torch.bfloat16):
            errors["plain"].append(abs(plain(model, groups, images)[0] / exact - 1))
            packed = loss_and_gradients(model, chat, [packed_batch([groups], images)])[0]
            errors["packed"].append(abs(packed / exact - 1))
    means = {name: sum(values) / len(values) for name, values in errors.items()}
    assert 0 < means["packed"] < 2 * means["plain"] + 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_attention_kernel_gets_the_mask_that_it_reads(
    attention: str, tokens: TokenDataset, images: DecodedImages
) -> None:
    chat, family = images.chat, images.chat.family
    model = model_of(family, "full")
    groups = groups_of(tokens, [3, 2])
    expected_loss, _ = plain(model, groups, images)
    model.set_attn_implementation({"text_config": attention})
    loss, _ = loss_and_gradients(model, chat, [packed_batch([groups], images)])
    assert loss == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns about its own code while it compiles
def test_compiled_layers_compute_the_same(
    tokens: TokenDataset, images: DecodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the traced graph, since compiling the default backend's C++ takes minutes on two cores."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    counters.clear()
    chat, family = images.chat, images.chat.family
    model = model_of(family, "full")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batches = [packed_batch([groups_of(tokens, [3, 2])], images)]
    expected_loss, expected = loss_and_gradients(model, chat, batches)
    compile_layers(model)
    loss, gradients = loss_and_gradients(model, chat, batches)
    assert counters["frames"]["ok"] > 0
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(gradients, expected) < TOLERANCE[family.model_type]


@pytest.mark.slow
def test_flex_attention_equals_sdpa(
    tokens: TokenDataset, images: DecodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs flex attention without compilation: a compiled CPU kernel has no backward pass."""
    chat, family = images.chat, images.chat.family
    model = model_of(family, "full")
    if not model.model.language_model._supports_flex_attn:
        pytest.skip(f"{family.model_type} has no FlexAttention in transformers")
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda _: flex_attention)
    batch = packed_batch([groups_of(tokens, [3, 2])], images)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # it warns that it is not compiled
        expected = TokenLoss(model, chat)(batch)
        model.set_attn_implementation({"text_config": "flex_attention"})
        assert float(TokenLoss(model, chat)(batch)) == pytest.approx(float(expected), rel=1e-6)
        wrong = TokenLoss(model, chat)(batch | {"branch_ids": torch.zeros_like(batch["branch_ids"])})
        assert float(wrong) != pytest.approx(float(expected), rel=1e-4)


def by_index(batch: Batch) -> Batch:
    index = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    return batch | {"position_ids": index, "grid_position_ids": index.expand(3, -1, -1)}


MUTATIONS = {
    "positions by index": by_index,
    "branches see each other": lambda batch: batch | {"branch_ids": torch.zeros_like(batch["branch_ids"])},
    "groups see each other": lambda batch: batch | {"group_ids": (batch["group_ids"] > 0).long()},
    "causal over the image": lambda batch: batch | {"image_ids": torch.zeros_like(batch["image_ids"])},
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_wrong_masks_and_positions_are_noticed(mutation: Any, tokens: TokenDataset, images: DecodedImages) -> None:
    chat, family = images.chat, images.chat.family
    model = model_of(family, "full")
    groups = groups_of(tokens, [3, 2, 2])
    packed = packed_batch([groups[:2], groups[2:]], images)
    _, right = loss_and_gradients(model, chat, [packed])
    _, wrong = loss_and_gradients(model, chat, [mutation(packed)])
    seen = largest_difference(wrong, right)
    if mutation is MUTATIONS["causal over the image"] and not family.bidirectional_images:
        assert seen == 0.0
    else:
        assert seen > 0.01


@pytest.mark.one_family
@every_family
@pytest.mark.parametrize("tuning", ["frozen-tower", "lora"])
def test_cached_features_give_the_gradients_of_live_ones(
    tuning: str, tokens: TokenDataset, images: DecodedImages
) -> None:
    chat, family = images.chat, images.chat.family
    if not chat.caches_features:
        pytest.skip(f"{family.model_type} has no vision tower")
    model = model_of(family, tuning)
    for parameter in unwrapped(model).get_submodule(family.vision_tower).parameters():
        parameter.requires_grad_(False)
    groups = groups_of(tokens, [2, 3, 1])
    live = packed_batch([groups[:2], groups[2:]], images)
    expected_loss, expected = loss_and_gradients(model, chat, [live])
    grids = [grid for group in groups for grid in group[0].grids]
    features = vision_features(model, {key: live[key] for key in family.image_inputs}, family)
    cached = {key: live[key] for key in live.keys() - set(family.image_inputs)}
    cached |= feature_inputs([*features], grids, chat)
    names = {name for name, _ in model.named_parameters()}
    tower = DetachedTower(model, family)
    loss, gradients = loss_and_gradients(model, chat, [cached])
    assert loss == expected_loss
    assert all(gradients[name].equal(expected[name]) for name in expected)
    if tuning == "frozen-tower" and family.vision_tower not in ("model.visual",):  # Qwen's tower includes the projector
        assert any("projector" in name or "embed_vision" in name for name in gradients)
    with tower.attached():
        assert {name for name, _ in model.named_parameters()} == names


@pytest.fixture(scope="module")
def odd_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations about four images of different sizes with three questions each, and two about a pair of images."""
    directory = tmp_path_factory.mktemp("odd-sizes")
    rows = []
    generator = np.random.default_rng(0)
    for number, size in enumerate([(56, 56), (112, 56), (60, 130), (150, 100)]):
        noise = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{number}.png")
        rows += [{"image_id": [f"{number}.png"], "question": f"What is {q}?", "answer": f"It is {q}."} for q in "abc"]
    rows += [{"image_id": ["1.png", "3.png"], "question": f"Which is {q}?", "answer": "The second."} for q in "de"]
    for split in ("train", "validation"):
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"dataset.case_column": None, "dataset.mode_column": None}
    return prepare_conversations(small_config(**columns, **{"dataset.path_or_dataset": str(directory)}))[0]


@every_family
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_images_of_different_sizes_pack_too(tuning: str, odd_sizes: Path, chat: ChatModel) -> None:
    tokens = TokenDataset(build_tokens(odd_sizes, chat), "train")
    images = DecodedImages.of(odd_sizes, chat)
    groups = [[tokens[i] for i in members] for members in ((0, 1, 2), (3, 4), (6, 7, 8), (9,), (12, 13))]
    if chat.family.image_grid:
        assert len({tuple(grid) for group in groups for grid in group[0].grids}) == 4
    chat, family = images.chat, images.chat.family
    model = model_of(family, tuning)
    expected_loss, expected = plain(model, groups, images)
    rows = [[groups[1], groups[0]], [groups[4], groups[2]], [groups[3]]]
    loss, gradients = loss_and_gradients(model, chat, [packed_batch(rows, images)])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(gradients, expected) < TOLERANCE[family.model_type]
