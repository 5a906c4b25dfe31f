"""Tiny checkpoints have real classes, the published turn structure, gradients and reproducible files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3ForConditionalGeneration,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    Gemma3Processor,
    GemmaTokenizer,
)

from vlm_core.models.tiny import write_tiny_gemma3
from vlm_core.models.tiny_gemma3n import write_tiny_gemma3n

TEXTS = ["Is there a lesion in this image?", "Yes", "No", "The axial CT slice shows one large lesion."] * 5
WRITERS: dict[str, Callable[..., None]] = {"gemma3": write_tiny_gemma3, "gemma3n": write_tiny_gemma3n}
CLASSES = {
    "gemma3": (Gemma3ForConditionalGeneration, Gemma3Processor, "<start_of_image>"),
    "gemma3n": (Gemma3nForConditionalGeneration, Gemma3nProcessor, "<image_soft_token>"),
}


@pytest.fixture(scope="module", params=list(WRITERS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def directory(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(family)
    WRITERS[family](path, TEXTS, seed=1)
    return path


@pytest.fixture
def processor(directory: Path) -> Any:
    return AutoProcessor.from_pretrained(directory)


@pytest.fixture
def model(directory: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(directory)


def _batch(processor: Any, answer: str | None) -> Any:
    """Returns one encoded conversation about a grey image; without an answer, it ends with the generation prompt."""
    content = [{"type": "image"}, {"type": "text", "text": TEXTS[0]}]
    conversation = [{"role": "user", "content": content}]
    if answer is not None:
        conversation.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = processor.apply_chat_template(conversation, add_generation_prompt=answer is None)
    images = [[Image.new("L", (90, 70), 120)]]
    return processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)


def test_auto_classes_pick_the_real_ones(family: str, processor: Any, model: Any) -> None:
    model_class, processor_class, _ = CLASSES[family]
    assert type(model) is model_class
    assert type(processor) is processor_class
    assert type(processor.tokenizer) is GemmaTokenizer
    assert sum(weight.numel() for weight in model.parameters()) < 1_500_000
    assert set(model.config.text_config.layer_types) == {"sliding_attention", "full_attention"}


def test_template_renders_the_published_turns(family: str, processor: Any) -> None:
    image = CLASSES[family][2]
    content = [{"type": "image"}, {"type": "text", "text": "  Where? "}]
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": " Left. "}]},
        {"role": "user", "content": "Sure?"},
    ]
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == (
        f"<bos><start_of_turn>user\nBe brief.\n\n{image}Where?<end_of_turn>\n"
        "<start_of_turn>model\nLeft.<end_of_turn>\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_template_refuses_two_user_turns_in_a_row(processor: Any) -> None:
    turns = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]
    with pytest.raises(TemplateError, match="must alternate"):
        processor.apply_chat_template(turns)


def test_tokenizer_round_trips_and_keeps_turns_apart(processor: Any) -> None:
    tokenizer = processor.tokenizer
    text = "The lesion, 3 mm:\n\né?  <end_of_turn>\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert ids[-2:] == tokenizer.convert_tokens_to_ids(["<end_of_turn>", "\n"])
    assert tokenizer.tokenize("model\n") == ["model", "\n"]
    assert tokenizer.tokenize("Is there a lesion") == ["Is", "▁there", "▁a", "▁lesion"]


def test_an_image_becomes_soft_tokens_between_markers(family: str, processor: Any) -> None:
    batch = _batch(processor, "Yes")
    tokenizer = processor.tokenizer
    is_image = batch["input_ids"][0] == tokenizer.image_token_id
    assert int(is_image.sum()) == {"gemma3": 16, "gemma3n": 4}[family]
    first, last = torch.nonzero(is_image).flatten()[[0, -1]].tolist()
    assert batch["input_ids"][0, first - 1] == tokenizer.boi_token_id
    assert batch["input_ids"][0, last + 1] == tokenizer.eoi_token_id
    assert torch.equal(batch["token_type_ids"][0].bool(), is_image)


def test_gradient_reaches_every_weight_and_the_image_counts(processor: Any, model: Any) -> None:
    batch = _batch(processor, "Yes")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if "audio" not in name}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    with torch.no_grad():
        grey = model(**batch).logits
        batch["pixel_values"] = torch.randn_like(batch["pixel_values"])
        assert (model(**batch).logits - grey).abs().max() > 1e-3


def test_generation_stops_at_the_end_of_the_turn(processor: Any, model: Any) -> None:
    batch = _batch(processor, None)
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert model.generation_config.eos_token_id == [processor.tokenizer.eos_token_id, end]
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
    generated = model.generate(**batch, max_new_tokens=3, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert generated[0] == logits.argmax()


def test_a_loaded_model_saves_again(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_equal_seeds_write_equal_files(family: str, directory: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    WRITERS[family](tmp_path / "same", TEXTS, seed=1)
    WRITERS[family](tmp_path / "other", TEXTS, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for file in sorted(directory.iterdir()):
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes(), file.name
    weights = "model.safetensors"
    assert (tmp_path / "other" / weights).read_bytes() != (directory / weights).read_bytes()
