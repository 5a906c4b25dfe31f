"""The tiny Qwen3-VL has real classes, published turns, features at several layers, and reproducible files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
)

from tests.conftest import noise
from vlm_core.models.tiny_qwen3 import write_tiny_qwen3_vl, write_tiny_qwen3_vl_moe

TEXTS = ["Is there a lesion in this image?", "Yes", "No"] * 5
KINDS = {
    Qwen3VLForConditionalGeneration: write_tiny_qwen3_vl,
    Qwen3VLMoeForConditionalGeneration: write_tiny_qwen3_vl_moe,
}


@pytest.fixture(scope="module", params=list(KINDS), ids=["dense", "experts"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def directory(kind: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3_vl")
    KINDS[kind](path, TEXTS, seed=1)
    return path


def test_every_weight_has_a_gradient_and_every_output_of_the_tower_counts(kind: Any, directory: Path) -> None:
    processor: Any = AutoProcessor.from_pretrained(directory)
    model: Any = AutoModelForImageTextToText.from_pretrained(directory)
    assert (type(processor), type(model)) == (Qwen3VLProcessor, kind)
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Where?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Left. "}]}
    text = processor.apply_chat_template([question, answer])
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{image} Where?<|im_end|>\n<|im_start|>assistant\nLeft. <|im_end|>\n"
    batch = dict(processor(text=[text], images=[[noise((128, 64))]], return_tensors="pt"))
    assert batch["image_grid_thw"].tolist() == [[1, 4, 8]]
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 8
    model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    images = {key: batch.pop(key) for key in ("pixel_values", "image_grid_thw")}
    positions, _ = model.model.get_rope_index(**batch, image_grid_thw=images["image_grid_thw"])
    with torch.no_grad():
        encoded = model.get_image_features(**images)
        given = {"mm_encoder_outputs": {"image": encoded}, "position_ids": positions}
        expected = model(**batch, **given).logits
        for feature in (encoded.pooler_output, *encoded.deepstack_features):
            feature[0].mul_(2)
            assert (model(**batch, **given).logits - expected).abs().max() > 1e-3
            feature[0].div_(2)


def test_equal_seeds_write_equal_files(kind: Any, directory: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    KINDS[kind](tmp_path, TEXTS, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for file in sorted(directory.iterdir()):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
