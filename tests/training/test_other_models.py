"""Generic models train exactly as in a plain transformers loop, and their checkpoints load without this project."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import noise, small_config, tiny_directory
from tests.other_models import WRITERS, directory_of
from vlm_core.config import Config
from vlm_core.data.collate import collate, require_keys
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.loader import plan_epoch
from vlm_core.encode import encode
from vlm_core.families import FAMILIES, part_of
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.chat import FastChat, GenericChat, load_chat
from vlm_core.models.derived_family import _own_row, family_of
from vlm_core.models.freeze import frozen_parts
from vlm_core.models.load import load_model, load_processor
from vlm_core.models.lora import apply_lora
from vlm_core.models.weights import load_trained
from vlm_core.run_directory import LATEST, METRICS
from vlm_core.training.distributed import Ranks
from vlm_core.training.loss import TokenLoss, supervised_tokens
from vlm_core.training.optim import build_scheduler

STEPS = 3
# The text that a template writes after the end of an answer's turn.
AFTER_ANSWER = {"idefics3": "\n", "llava_onevision": "", "llava": ""}


@pytest.fixture(params=WRITERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(name: str, directory: Path | None = None, **overrides: Any) -> Config:
    settings = {"model.pretrained_model_name_or_path": str(directory_of(name)), "step_scheduler.max_steps": STEPS}
    return small_config(**settings | {"checkpoint.checkpoint_dir": directory and str(directory)} | overrides)


def plain_batch(examples: list[dict[str, Any]], processor: Any, name: str) -> dict[str, torch.Tensor]:
    """The usual code: the processor's batch, with the answers' tokens as labels."""
    texts, images, prompts = [], [], []
    for example in examples:
        question, answer = example["conversation"]
        text = processor.apply_chat_template([question, answer], tokenize=False)
        prompt = processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        if name == "llava":  # its template does not end answers
            text = text.removesuffix(" ") + "</s>"
        if not text.startswith(prompt):  # LLaVA-OneVision shows one space more
            text = prompt + "".join(text.rpartition(answer["content"][0]["text"])[1:])
        texts.append(text)
        prompts.append(prompt)
        images.append([part["image"] for part in question["content"] if part["type"] == "image"])
    padded = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    batch = dict(processor(text=texts, images=images, **padded))
    starts = processor(text=prompts, images=images, **padded)["attention_mask"].sum(1)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    after = len(processor.tokenizer(AFTER_ANSWER[name], add_special_tokens=False)["input_ids"])
    for i, (start, length) in enumerate(zip(starts, batch["attention_mask"].sum(1), strict=True)):
        batch["labels"][i, start : length - after] = batch["input_ids"][i, start : length - after]
    return batch


def plain_loop(config: Config, name: str, conversations: Path) -> list[tuple[float, float]]:
    """The readable reference; returns (loss, norm of the gradient) of each step."""
    base = directory_of(name)
    torch.manual_seed(config.rng.seed)
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model.get_encoder("image").requires_grad_(False)
    if config.peft:
        model = apply_lora(model, config.peft, family_of(base), frozen_parts(config.freeze_config, family_of(base)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, betas=(0.9, 0.95), weight_decay=0.01)
    scheduler = build_scheduler(optimizer, config.lr_scheduler, STEPS)
    dataset, processor = ConversationDataset(conversations, "train"), AutoProcessor.from_pretrained(base)
    losses = []
    for indices in plan_epoch(len(dataset), config.step_scheduler.global_batch_size, config.rng.seed, 0)[:STEPS]:
        batch = plain_batch([dataset[i] for i in indices], processor, name)
        loss = model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss
        loss.backward()
        losses.append((loss.item(), float(torch.nn.utils.clip_grad_norm_(trained, 1.0))))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [{}, {"peft.dim": 4}], ids=["full", "lora"])
def test_finetune_is_a_plain_loop_and_its_checkpoint_loads_without_us(
    name: str, tuning: dict[str, Any], conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(name, tmp_path, **tuning)
    with caplog.at_level(logging.WARNING):
        finetune(config, Ranks(), conversations)
    warnings = [record.message for record in caplog.records if "is not in vlm_core/families.py" in record.message]
    assert [text.partition(":")[0] for text in warnings] == ["packing and vision_cache have no effect"]
    records = read_json_lines(tmp_path / METRICS)[0]
    for record, (loss, norm) in zip(records, plain_loop(config, name, conversations), strict=True):
        assert record["loss"] == pytest.approx(loss, rel=2e-6)
        assert record["grad_norm"] == pytest.approx(norm, rel=2e-5)
    weights = tmp_path / LATEST / "model"
    plain: Any = AutoModelForImageTextToText.from_pretrained(directory_of(name) if tuning else weights)
    if tuning:
        plain = PeftModel.from_pretrained(plain, str(weights))
    processor = AutoProcessor.from_pretrained(directory_of(name) if tuning else weights)
    batch = plain_batch([ConversationDataset(conversations, "validation")[0]], processor, name)
    ours = load_trained(tmp_path / LATEST, directory_of(name), config.model).eval()
    with torch.no_grad():
        expected = plain.eval()(**batch).logits
        assert ours(**batch).logits.equal(expected)
        untrained = load_model(directory_of(name), config.model).eval()(**batch).logits
    assert not torch.allclose(expected, untrained, atol=1e-4)


def test_every_gradient_equals_that_of_transformers_loss(name: str, conversations: Path) -> None:
    base, dataset = directory_of(name), ConversationDataset(conversations, "train")
    chat = load_chat(base)
    processor = chat.processor
    examples = [dataset[i] for i in (0, 15, 33)]
    ours, plain = (load_model(base, config_of(name).model) for _ in range(2))
    batch = collate(examples, chat)
    total = supervised_tokens(batch)
    loss = TokenLoss(ours, chat)(batch) / total
    loss.backward()
    expected = plain(**plain_batch(examples, processor, name), num_items_in_batch=torch.tensor(total)).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    pairs = zip(ours.named_parameters(), plain.parameters(), strict=True)
    for (parameter, mine), other in pairs:
        assert (mine.grad is None) == (other.grad is None), parameter
        if other.grad is not None:
            assert (mine.grad - other.grad).norm() <= 1e-5 * other.grad.norm() + 1e-7, parameter


def test_examples_with_no_one_and_two_images_share_a_batch(name: str) -> None:
    """The loss of a batch is the sum of its examples' losses, for any number of images."""
    base = directory_of(name)
    chat = load_chat(base)
    model = load_model(base, config_of(name).model).eval()
    sizes = ([(56, 56)], [], [(150, 60), (56, 90)], [(40, 130)])
    answer = {"role": "assistant", "content": [{"type": "text", "text": "In the left part."}]}
    examples = []
    for images in sizes:
        parts: list[Any] = [{"type": "image", "image": noise(size)} for size in images]
        question = {"role": "user", "content": [*parts, {"type": "text", "text": "Where is the lesion?"}]}
        examples.append({"conversation": [question, answer]})
    with torch.no_grad():
        together = TokenLoss(model, chat)(collate(examples, chat)).item()
        alone = [TokenLoss(model, chat)(collate([example], chat)).item() for example in examples]
    assert together == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("known", FAMILIES)
def test_listed_families_have_the_same_loss_as_generic_models(known: str, conversations: Path) -> None:
    """A family's row and its derived row agree: token types, grids, a head with soft-capped logits."""
    base, dataset = tiny_directory(known), ConversationDataset(conversations, "train")
    processor = load_processor(base)
    chats = FastChat(processor, FAMILIES[known]), GenericChat(processor, _own_row(base, known))
    keys = [chat.family.token_types_key for chat in chats]
    assert keys[0] == (keys[1] or "token_type_ids")
    examples, model = [dataset[i] for i in (0, 15, 33)], load_model(base, config_of("llava").model)
    losses, gradients = [], []
    for chat in chats:
        batch = collate(examples, chat)
        require_keys(batch, FAMILIES[known])
        losses.append(TokenLoss(model, chat)(batch))
        losses[-1].backward()
        gradients.append(
            [parameter.grad.norm().item() for parameter in model.parameters() if parameter.grad is not None]
        )
        model.zero_grad()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-4, abs=1e-6)


def test_the_derived_row_has_the_models_modules(name: str) -> None:
    model, family = load_model(directory_of(name), config_of(name).model), family_of(directory_of(name))
    found = {part: {n for n, _ in model.named_parameters() if part_of(n, family) == part} for part in family.parts}
    assert set().union(*found.values()) == {n for n, _ in model.named_parameters()}
    connecting = ("connector", "multi_modal_projector", "image_newline")
    assert found["projector"] == {n for n, _ in model.named_parameters() if n.split(".")[1] in connecting}
    assert found["vision_tower"] == {n for n, _ in model.named_parameters() if n.split(".")[1].startswith("vision")}
    assert found["embeddings"] == {n for n, _ in model.named_parameters() if "embed_tokens" in n or "lm_head" in n}


def test_generic_models_have_no_vision_cache(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("llava")
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO):
        encode(config, Ranks(), conversations)
    assert "llava is not in vlm_core/families.py, so it trains on unpacked examples: no images are" in caplog.text
    assert not (tmp_path / "cache" / "vision").exists()


def test_an_unusable_model_is_refused(tmp_path: Path) -> None:
    for file in directory_of("idefics3").glob("*.json"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match=r"idefics3 model without a row .* has no chat template; give it"):
        family_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="type 'bert', which AutoModelForImageTextToText does not load"):
        family_of(tmp_path)
