"""What is measured on: models with Gemma 3's proportions and random weights, and data of MedPix-VQA's shape.

An image has 256 tokens and a question with its answer about 50, as with Gemma 3 4B on MedPix-VQA. In floating-point
operations the vision tower costs 2.6 forward passes of the language model over a row (4B: 2.7), and attention adds 7 %
to the linear layers of a row of 319 tokens (4B: 1.4 %): narrow models pay more for attention than wide ones.
"""

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

from vlm_core.config import Config, ModelConfig
from vlm_core.data.phantom import write_phantom
from vlm_core.models.base_model import fetch_model
from vlm_core.models.load import load_processor
from vlm_core.recipe import load_config

IMAGE_TOKENS = 256
VALIDATION_IMAGES = 1
BFLOAT16 = torch.cuda.is_available()  # as people train there; float32 on a CPU


@dataclass(frozen=True)
class Size:
    """Dimensions of a model: text and vision."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int | None  # None = that of the tokenizer
    vision_hidden: int
    vision_layers: int
    head_dim: int | None = None  # None = hidden / heads
    image_size: int = 448


SIZES = {
    "layers": Size(hidden=640, layers=3, heads=8, vocabulary=None, vision_hidden=256, vision_layers=12),
    "gemma3-4b": Size(
        hidden=2560,
        layers=34,
        heads=8,
        vocabulary=262_208,
        vision_hidden=1152,
        vision_layers=27,
        head_dim=256,
        image_size=896,
    ),
    "vocabulary": Size(hidden=256, layers=4, heads=4, vocabulary=65_536, vision_hidden=128, vision_layers=8),
    "tiny": Size(hidden=64, layers=1, heads=2, vocabulary=None, vision_hidden=64, vision_layers=1, image_size=224),
}
"""Where attention and MLP dominate, the published shapes for a GPU, where the head dominates, and one for tests."""


def write_model(directory: Path, size: Size) -> None:
    """Writes a Gemma 3 of `size` with random weights and its processor, unless it is there."""
    if (directory / "config.json").exists():
        return
    tiny = load_processor(fetch_model(ModelConfig(pretrained_model_name_or_path="builtin:tiny-gemma3")))
    tokenizer: Any = tiny.tokenizer
    image_processor = Gemma3ImageProcessor(size={"height": size.image_size, "width": size.image_size})
    head_dim = size.head_dim or size.hidden // size.heads
    processor = Gemma3Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=tiny.chat_template,
        image_seq_length=IMAGE_TOKENS,
    )
    config = Gemma3Config(
        text_config={
            "vocab_size": size.vocabulary or len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": 4 * size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads // 2,
            "head_dim": head_dim,
            "query_pre_attn_scalar": head_dim,
            "sliding_window": 1024,  # five of six layers, as published
            "max_position_embeddings": 8192,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": size.image_size,
            "patch_size": 14,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 4 * size.vision_hidden,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_hidden // 64,
            "vision_use_head": False,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Gemma3ForConditionalGeneration._from_config(config, dtype=torch.bfloat16 if BFLOAT16 else torch.float32)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)  # zero otherwise
    for parameter in model.model.language_model.layers.parameters():
        if parameter.ndim > 1:  # Layers that outweigh the tied embedding, or each token would be followed by itself.
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def write_data(directory: Path, images: int, questions: int) -> None:
    """Writes `images` training images with `questions` questions each, and a small validation split."""
    if directory.exists():
        return
    phantom = directory.with_name(f"{directory.name}-phantom")
    write_phantom(phantom, num_images=max(20, images + VALIDATION_IMAGES), seed=0, image_size=448)
    source = pq.read_table(sorted(phantom.rglob("*.parquet"))).to_pylist()
    encoded = list({row["image_id"]["bytes"]: None for row in source})
    words = sorted({word.lower() for row in source for word in row["answer"].split() if word.isalpha()})
    generator = random.Random(0)
    directory.mkdir(parents=True)
    shares = {"train": encoded[:images], "validation": encoded[images : images + VALIDATION_IMAGES]}
    for split, chosen in shares.items():
        rows = [
            {
                "image_id": {"bytes": image, "path": f"{split}-{number}.png"},
                "mode": "benchmark",
                "case_id": f"{split}-{number}",
                "question": _sentence(words, generator, 20) + "?",
                "answer": _sentence(words, generator, 20) + ".",
            }
            for number, image in enumerate(chosen)
            for _ in range(questions)
        ]
        pq.write_table(pa.Table.from_pylist(rows), directory / f"{split}-00000-of-00001.parquet")


def _sentence(words: list[str], generator: random.Random, mean: int) -> str:
    count = generator.randint(mean // 2, mean + mean // 2)
    return " ".join(generator.choice(words) for _ in range(count)).capitalize()


def config_of(model: Path, data: Path, run: Path, tuning: str, **overrides: Any) -> Config:
    """Returns a run on that model and data; `tuning` is lora or sft, the tower is frozen."""
    tree: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(model), "torch_dtype": "bfloat16" if BFLOAT16 else "float32"},
        "dataset.path_or_dataset": str(data),
        "packing.max_tokens": 2048,  # the default, which the demo's recipe changes
        "checkpoint": {"enabled": False, "checkpoint_dir": str(run)},
        "step_scheduler": {"num_epochs": 100, "val_every_steps": None},
        "optimizer.lr": 1e-4,
        "lr_scheduler": {"lr_warmup_steps": 0, "lr_decay_style": "constant"},
        "freeze_config": {"freeze_vision_tower": True, "freeze_embeddings": True},
        "peft": {"dim": 8, "alpha": 32} if tuning == "lora" else None,
    }
    return load_config("demo", tree | overrides)


def decode(encoded: bytes) -> Image.Image:
    """Returns the image of a row, for contenders that read the files themselves."""
    return Image.open(io.BytesIO(encoded)).convert("RGB")
