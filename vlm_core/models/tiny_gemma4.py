"""Makes tiny checkpoints of the real Gemma 4 classes: one like E2B, one like 26B-A4B, and one like 12B.

Tokenizers and chat templates have the form of the published ones. The template of the larger models ends a generation
prompt with an empty thought, which its rendering of an answer lacks. An image has at most 70 tokens of 48 x 48 pixels.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

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

_END: Final = "<turn|>"
_NAMED: Final = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "sot_token": "<|turn>",
    "eot_token": _END,
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "think_token": "<|think|>",
}
_TEMPLATE: Final = """\
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
_CLOSED_THOUGHT: Final = "<|channel>thought\\n<channel|>"
_EMPTY_THOUGHT: Final = (
    "    {%- if not (enable_thinking is defined and enable_thinking) -%}{{- '"
    + _CLOSED_THOUGHT
    + "' -}}{%- endif -%}\n"
)
_LAYERS: Final = ["sliding_attention", "sliding_attention", "full_attention"]
_TEXT: Final = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "layer_types": _LAYERS * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 32,
    "max_position_embeddings": 4096,
    "final_logit_softcapping": 30.0,
    "initializer_range": 0.1,
}
_VISION: Final = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "position_embedding_size": 256,
    "initializer_range": 0.1,
}
_PATCHES: Final = {"mm_embed_dim": 48, "output_proj_dims": 48, "mm_posemb_size": 80}
_EXPERTS: Final = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}


def write_tiny_gemma4(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Gemma 4 with per-layer embeddings, layers that share keys and values, and causal images."""
    small = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 3, "use_double_wide_mlp": True}
    _write(directory, texts, small, "", seed)


def write_tiny_gemma4_26b(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Gemma 4 with experts, bidirectional images in its sliding layers, and empty thoughts in its prompts."""
    large = {"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", **_EXPERTS}
    _write(directory, texts, large, _EMPTY_THOUGHT, seed)


def write_tiny_gemma4_unified(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Gemma 4 like 12B: it embeds the patches of an image without a vision tower."""
    kinds = Gemma4UnifiedAudioFeatureExtractor, Gemma4UnifiedImageProcessor, Gemma4UnifiedVideoProcessor
    processor = _processor(Gemma4UnifiedProcessor, *kinds, texts, _EMPTY_THOUGHT)
    text = _text(processor.tokenizer, {"use_bidirectional_attention": "vision"})
    config = Gemma4UnifiedConfig(text_config=text, vision_config=_PATCHES, audio_config=None, **_image_ids(processor))
    _save(directory, Gemma4UnifiedForConditionalGeneration, config, processor, seed)


def _write(directory: Path, texts: Iterable[str], own: dict[str, Any], prompt: str, seed: int) -> None:
    kinds = Gemma4AudioFeatureExtractor, Gemma4ImageProcessor, Gemma4VideoProcessor
    processor = _processor(Gemma4Processor, *kinds, texts, prompt)
    text = _text(processor.tokenizer, own)
    config = Gemma4Config(text_config=text, vision_config=_VISION, audio_config=None, **_image_ids(processor))
    _save(directory, Gemma4ForConditionalGeneration, config, processor, seed)


def _processor(kind: Any, audio: Any, images: Any, video: Any, texts: Iterable[str], prompt: str) -> Any:
    """Return the processor; its template ends a generation prompt with what `prompt` renders."""
    return kind(
        feature_extractor=audio(),
        image_processor=images(max_soft_tokens=70),
        tokenizer=tiny_tokenizer(texts, _NAMED),
        video_processor=video(),
        chat_template=_TEMPLATE + prompt + "{%- endif -%}\n",
    )


def _text(tokenizer: Any, own: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    sizes = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    return _TEXT | own | sizes | {name: getattr(tokenizer, name) for name in names}


def _image_ids(processor: Any) -> dict[str, Any]:
    find = processor.tokenizer.convert_tokens_to_ids
    names = {"image_token_id": "image_token", "boi_token_id": "boi_token", "eoi_token_id": "eoi_token"}
    others = {"audio_token_id": find("<|audio|>"), "video_token_id": find("<|video|>")}
    return {key: find(_NAMED[name]) for key, name in names.items()} | others


def _save(directory: Path, kind: Any, config: Any, processor: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if "position_embedding_table" in name or "pos_embedding" in name:  # the same at every place, to begin with
                torch.nn.init.normal_(parameter, std=0.5)
            elif name.endswith("q_norm.weight"):  # published weights scale the products, which the model does not
                torch.nn.init.constant_(parameter, len(parameter) ** -0.5)
    tokenizer = processor.tokenizer
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(_END)]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
