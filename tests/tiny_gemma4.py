"""Writes tiny Gemma 4 checkpoints of the real classes: one like E2B, one like 26B-A4B, and one like 12B.

Tokenizers and chat templates have the form of the published ones. The template of the larger models ends a generation
prompt with an empty thought, which its rendering of an answer lacks.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedVideoProcessor,
    Gemma4VideoProcessor,
    GenerationConfig,
)

from vlm_core.models.tiny import tiny_tokenizer

END = "<turn|>"
NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "sot_token": "<|turn>",
    "eot_token": END,
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "think_token": "<|think|>",
}
TEMPLATE = """\
{%- macro strip_thinking(text) -%}
    {%- set ns = namespace(result='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set ns.result = ns.result + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- ns.result | trim -}}
{%- endmacro -%}
{{- bos_token -}}
{%- if enable_thinking is defined and enable_thinking -%}{{- '<|turn>system\\n<|think|>\\n<turn|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<|turn>' + role + '\\n' -}}
    {%- for item in message['content'] -%}
        {%- if item['type'] == 'text' -%}
            {{- strip_thinking(item['text']) if role == 'model' else (item['text'] | trim) -}}
        {%- elif item['type'] == 'image' -%}
            {{- '<|image|>' -}}
        {%- endif -%}
    {%- endfor -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
"""
CLOSED_THOUGHT = "<|channel>thought\\n<channel|>"
EMPTY_THOUGHT = (
    "    {%- if not (enable_thinking is defined and enable_thinking) -%}{{- '" + CLOSED_THOUGHT + "' -}}{%- endif -%}\n"
)
LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "layer_types": LAYERS * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 32,
    "max_position_embeddings": 4096,
    "final_logit_softcapping": 30.0,
    "initializer_range": 0.1,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "initializer_range": 0.1,
}
PATCHES = {"mm_embed_dim": 48, "output_proj_dims": 48}
EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}


def write_tiny_e2b(directory: Path, texts: Iterable[str]) -> None:
    """Writes a Gemma 4 with per-layer embeddings, layers that share keys and values, and causal images."""
    small = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 3, "use_double_wide_mlp": True}
    _write(directory, texts, small, "")


def write_tiny_26b(directory: Path, texts: Iterable[str]) -> None:
    """Writes a Gemma 4 with experts, bidirectional images in its sliding layers, and empty thoughts in its prompts."""
    large = {"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", **EXPERTS}
    _write(directory, texts, large, EMPTY_THOUGHT)


def write_tiny_unified(directory: Path, texts: Iterable[str]) -> None:
    """Writes a Gemma 4 like 12B: it embeds the patches of an image without a vision tower."""
    processor = Gemma4UnifiedProcessor(
        feature_extractor=Gemma4UnifiedAudioFeatureExtractor(),
        image_processor=Gemma4UnifiedImageProcessor(max_soft_tokens=70),
        tokenizer=tiny_tokenizer(texts, NAMED),
        video_processor=Gemma4UnifiedVideoProcessor(),
        chat_template=TEMPLATE + EMPTY_THOUGHT + "{%- endif -%}\n",
    )
    text = _text(processor.tokenizer, {"use_bidirectional_attention": "vision"})
    config = Gemma4UnifiedConfig(text_config=text, vision_config=PATCHES, audio_config=None, **_image_ids(processor))
    _save(directory, Gemma4UnifiedForConditionalGeneration, config, processor)


def _write(directory: Path, texts: Iterable[str], own: dict[str, Any], prompt: str) -> None:
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer=tiny_tokenizer(texts, NAMED),
        video_processor=Gemma4VideoProcessor(),
        chat_template=TEMPLATE + prompt + "{%- endif -%}\n",
    )
    text = _text(processor.tokenizer, own)
    config = Gemma4Config(text_config=text, vision_config=VISION, audio_config=None, **_image_ids(processor))
    _save(directory, Gemma4ForConditionalGeneration, config, processor)


def _text(tokenizer: Any, own: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    sizes = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    return TEXT | own | sizes | {name: getattr(tokenizer, name) for name in names}


def _image_ids(processor: Any) -> dict[str, int]:
    find = processor.tokenizer.convert_tokens_to_ids
    names = {"image_token_id": "image_token", "boi_token_id": "boi_token", "eoi_token_id": "eoi_token"}
    others = {"audio_token_id": find("<|audio|>"), "video_token_id": find("<|video|>")}
    return {key: find(NAMED[name]) for key, name in names.items()} | others


def _save(directory: Path, kind: Any, config: Any, processor: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    tokenizer = processor.tokenizer
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
