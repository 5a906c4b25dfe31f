"""Creates the workload: models with Gemma 3's proportions and random weights, and data in MedPix-VQA's shape.

As with Gemma 3 4B on MedPix-VQA, an image has 256 tokens, and a question with its answer about 50. In FLOPs, the vision
tower costs 2.6 forward passes of the language model over an example of 319 tokens (4B: 2.7). Attention adds 7 % to the
linear layers (4B: 1.4 %), since attention has a larger share in narrow models.
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
BFLOAT16 = torch.cuda.is_available()  # the usual dtype on GPUs; float32 on a CPU


@dataclass(frozen=True)
class Size:
    """The dimensions of a model's language model and vision tower."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int | None  # None = the tokenizer's size
    vision_hidden: int
    vision_layers: int
    head_dim: int | None = None  # None = hidden / heads
    image_size: int = 448


SIZES = {
    # Attention and MLP dominate.
    "layers": Size(hidden=640, layers=8, heads=8, vocabulary=None, vision_hidden=448, vision_layers=12),
    # The published shapes, for a GPU.
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
    # The head dominates.
    "vocabulary": Size(hidden=256, layers=4, heads=4, vocabulary=65_536, vision_hidden=128, vision_layers=8),
    # For tests.
    "tiny": Size(hidden=64, layers=1, heads=2, vocabulary=None, vision_hidden=64, vision_layers=1, image_size=224),
}


def write_model(directory: Path, size: Size) -> None:
    """Writes a Gemma 3 model of `size` with random weights, and its processor, unless the directory has one."""
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
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)  # its default is zero
    for parameter in model.model.language_model.layers.parameters():
        if parameter.ndim > 1:  # Otherwise the tied embedding dominates, and each token predicts itself.
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
    """Returns the config of a run on this model and data, with a frozen tower; `tuning` is lora or sft."""
    tree: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(model), "torch_dtype": "bfloat16" if BFLOAT16 else "float32"},
        "dataset.path_or_dataset": str(data),
        "packing.max_tokens": 2048,  # the default; the demo's recipe has another value
        "checkpoint": {"enabled": False, "checkpoint_dir": str(run)},
        "step_scheduler": {"num_epochs": 100, "val_every_steps": None},
        "optimizer.lr": 1e-4,
        "lr_scheduler": {"lr_warmup_steps": 0, "lr_decay_style": "constant"},
        "freeze_config": {"freeze_vision_tower": True, "freeze_embeddings": True},
        "peft": {"dim": 8, "alpha": 32} if tuning == "lora" else None,
    }
    return load_config("demo", tree | overrides)


def decode(encoded: bytes) -> Image.Image:
    """Decodes the image of a row, for contenders that read the files themselves."""
    return Image.open(io.BytesIO(encoded)).convert("RGB")
