"""The tiny Qwen2.5-VL has real classes, published turns, images of any shape, gradients and reproducible files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.vision_utils import get_vision_window_index

from vlm_core.models.tiny_qwen import write_tiny_qwen2_5_vl

TEXTS = ["Is there a lesion in this image?", "Yes", "No", "The axial CT slice shows one large lesion."] * 5
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen2_5_vl")
    write_tiny_qwen2_5_vl(path, TEXTS, seed=1)
    return path


@pytest.fixture
def processor(directory: Path) -> Any:
    return AutoProcessor.from_pretrained(directory)


@pytest.fixture
def model(directory: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(directory)


def _image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _conversation(question: str, answer: str | None) -> list[dict[str, Any]]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def _batch(processor: Any, images: list[Image.Image], answer: str | None, side: str = "right") -> Any:
    """Returns one encoded question per image; without an answer, it ends with the generation prompt."""
    texts = [
        processor.apply_chat_template(_conversation(question, answer), add_generation_prompt=answer is None)
        for question in TEXTS[: len(images)]
    ]
    return processor(
        text=texts, images=[[image] for image in images], return_tensors="pt", padding=True, padding_side=side
    )


def test_auto_classes_pick_the_real_ones(processor: Any, model: Any) -> None:
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert type(processor) is Qwen2_5_VLProcessor
    assert type(processor.tokenizer) is Qwen2Tokenizer
    assert type(processor.image_processor) is Qwen2VLImageProcessor
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
    assert set(model.config.text_config.layer_types) == {"full_attention"}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_tower_has_a_windowed_and_a_full_block(model: Any) -> None:
    tower = model.model.visual
    assert len(tower.blocks) == 2
    assert list(tower.fullatt_block_indexes) == [1]
    grid = torch.tensor([[1, 8, 8]])
    index, ends = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    assert ends.tolist() == [0, 16, 32, 48, 64]
    assert index[:6].tolist() == [0, 1, 4, 5, 2, 3]


def test_template_renders_the_published_turns(processor: Any) -> None:
    conversation = _conversation("  Where? ", " Left.\n")
    asked = [*conversation, {"role": "user", "content": "Sure?"}]
    turns = (
        f"<|im_start|>user\n{IMAGE}  Where? <|im_end|>\n<|im_start|>assistant\n Left.\n<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template(asked, add_generation_prompt=True) == SYSTEM + turns
    asked.insert(0, {"role": "system", "content": "Be brief."})
    assert processor.apply_chat_template(asked, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n" + turns
    )


@pytest.mark.parametrize("counted", [False, True])
def test_template_numbers_images_and_videos_on_request(processor: Any, counted: bool) -> None:
    content = [{"type": "image"}, {"type": "video"}, {"image": "a.png"}, {"image_url": "b.png"}, {"text": "Which?"}]
    video = IMAGE.replace("image", "video")
    marks = ["Picture 1: ", "Video 1: ", "Picture 2: ", "Picture 3: "] if counted else [""] * 4
    shown = "".join(map(str.__add__, marks, [IMAGE, video, IMAGE, IMAGE]))
    rendered = processor.apply_chat_template([{"role": "user", "content": content}], add_vision_id=counted)
    assert rendered == f"{SYSTEM}<|im_start|>user\n{shown}Which?<|im_end|>\n"


def test_tokenizer_round_trips_and_keeps_turns_apart(processor: Any) -> None:
    tokenizer = processor.tokenizer
    text = "The lesion, 3 mm:\n\né?  <|im_end|>\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids[-2:] == [tokenizer.convert_tokens_to_ids("<|im_end|>"), *tokenizer("\n").input_ids]
    assert tokenizer.tokenize("<|im_start|>assistant\nYes") == ["<|im_start|>", "assistant", "Ċ", "Yes"]
    assert tokenizer.tokenize("Is there a lesion") == ["Is", "Ġthere", "Ġa", "Ġlesion"]


def test_tokenizer_has_the_published_tokens(processor: Any) -> None:
    tokenizer = processor.tokenizer
    added = [token for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    assert [token.content for token in added[:3]] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [token.special for token in added] == [True] * 14 + [False] * 8
    assert min(tokenizer.added_tokens_decoder) == tokenizer.vocab_size
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    assert not hasattr(tokenizer, "image_token_id")  # only the processor has it
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")


@pytest.mark.parametrize(
    ("size", "grid"),
    [((56, 56), (4, 4)), ((20, 20), (4, 4)), ((90, 70), (4, 6)), ((112, 112), (8, 8)), ((150, 150), (8, 8))],
)
def test_image_becomes_tokens_by_its_shape(directory: Path, processor: Any, size: Any, grid: Any) -> None:
    batch = _batch(processor, [_image(*size)], "Yes")
    height, width = grid
    assert batch["image_grid_thw"].tolist() == [[1, height, width]]
    assert batch["pixel_values"].shape == (height * width, 3 * 2 * 14 * 14)
    is_image = batch["input_ids"][0] == processor.image_token_id
    assert int(is_image.sum()) == height * width // 4
    first, last = torch.nonzero(is_image).flatten()[[0, -1]].tolist()
    around = batch["input_ids"][0, [first - 1, last + 1]]
    assert processor.tokenizer.convert_ids_to_tokens(around) == ["<|vision_start|>", "<|vision_end|>"]
    assert torch.equal(batch["mm_token_type_ids"][0].bool(), is_image)
    without_torchvision = AutoImageProcessor.from_pretrained(directory, backend="pil")
    assert type(without_torchvision) is Qwen2VLImageProcessorPil
    assert without_torchvision([_image(*size)], return_tensors="pt")["image_grid_thw"].tolist() == [[1, height, width]]


def test_gradient_reaches_every_weight_and_the_image_counts(processor: Any, model: Any) -> None:
    batch = _batch(processor, [_image(112, 112)], "Yes")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    with torch.no_grad():
        before = model(**batch).logits
        batch["pixel_values"] = torch.randn_like(batch["pixel_values"])
        assert (model(**batch).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("order", [[0, 2, 1], [0, 1, 1]], ids=["swapped", "rows for columns"])
def test_rows_and_columns_of_an_image_are_distinguished(processor: Any, model: Any, order: list[int]) -> None:
    batch = _batch(processor, [_image(112, 56)], "Yes")
    types = batch.pop("mm_token_type_ids")
    positions, _ = model.model.get_rope_index(**batch, mm_token_type_ids=types)
    with torch.no_grad():
        expected = model(**batch, position_ids=positions).logits
        assert (model(**batch, position_ids=positions[order]).logits - expected).abs().max() > 1e-2


def test_generation_stops_at_the_end_of_the_turn(processor: Any, model: Any) -> None:
    batch = _batch(processor, [_image(90, 70)], None)
    ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == ends
    assert model.generation_config.pad_token_id == ends[1]
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
    generated = model.generate(**batch, max_new_tokens=3, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert generated[0] == logits.argmax()


def test_images_of_two_sizes_in_a_batch_equal_single_ones(processor: Any, model: Any) -> None:
    images = [_image(112, 60, seed=1), _image(56, 56, seed=2)]
    together = _batch(processor, images, None, side="left")
    assert together["image_grid_thw"].tolist() == [[1, 4, 8], [1, 4, 4]]
    generated = model.generate(**together, max_new_tokens=5, min_new_tokens=5, do_sample=False)[:, -5:]
    for row, image in enumerate(images):
        texts = [processor.apply_chat_template(_conversation(TEXTS[row], None), add_generation_prompt=True)]
        alone = processor(text=texts, images=[[image]], return_tensors="pt")
        expected = model.generate(**alone, max_new_tokens=5, min_new_tokens=5, do_sample=False)[0, -5:]
        assert torch.equal(generated[row], expected)


def test_a_loaded_model_saves_again(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_equal_seeds_write_equal_files(directory: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    write_tiny_qwen2_5_vl(tmp_path / "same", TEXTS, seed=1)
    write_tiny_qwen2_5_vl(tmp_path / "other", TEXTS, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for file in sorted(directory.iterdir()):
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes(), file.name
    weights = "model.safetensors"
    assert (tmp_path / "other" / weights).read_bytes() != (directory / weights).read_bytes()
