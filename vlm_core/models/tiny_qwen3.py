"""Makes tiny checkpoints of the real Qwen3-VL classes, dense and with a mixture of experts, without a download.

They load through the Auto classes and differ from the published checkpoints only in size and weights.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vlm_core.models.tiny_qwen import ADDED, qwen_text_config, qwen_tokenizer, save_qwen, vision_token_ids

THOUGHT: Final = ("<tool_response>", "</tool_response>", "<think>", "</think>")
CHAT_TEMPLATE: Final = """\
{%- set image_count = namespace(value=0) %}
{%- set video_count = namespace(value=0) %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                {%- set image_count.value = image_count.value + 1 %}
                {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif content.type == 'video' or 'video' in content %}
                {%- set video_count.value = video_count.value + 1 %}
                {%- if add_vision_id %}Video {{ video_count.value }}: {% endif -%}
                <|vision_start|><|video_pad|><|vision_end|>
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
VISION: Final = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "out_hidden_size": 96,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],  # as published, not the last layer
    "initializer_range": 0.1,
}
_EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def write_tiny_qwen3_vl(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Qwen3-VL of about 0.7 M parameters, its processor and generation settings into `directory`.

    An image keeps its shape, in steps of 32 pixels, and has 4 to 16 tokens of 32 x 32 pixels. Its features enter at the
    embeddings and after the first two of three layers. The tokenizer is trained on `texts`, so that their frequent
    words are one token each. Equal arguments write byte-identical files. torch's random state is not changed.
    """
    _write(directory, texts, seed, Qwen3VLConfig, Qwen3VLForConditionalGeneration, {})


def write_tiny_qwen3_vl_moe(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Qwen3-VL as `write_tiny_qwen3_vl` does; each token uses two of four experts in every layer."""
    _write(directory, texts, seed, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, _EXPERTS)


def _write(directory: Path, texts: Iterable[str], seed: int, config: Any, kind: Any, own: dict[str, Any]) -> None:
    tokenizer = qwen_tokenizer(texts, (*ADDED, *THOUGHT))
    # Pixels of a full image. A limit of exactly 16 tokens would round some square images down to 3 x 3 tokens.
    size = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128 + 1}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )
    text = qwen_text_config(tokenizer) | {"head_dim": 24} | own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(
            config(text_config=text, vision_config=VISION, tie_word_embeddings=True, **vision_token_ids(tokenizer))
        )
    save_qwen(directory, model, processor)
