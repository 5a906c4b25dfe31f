"""Makes a tiny checkpoint of the real Qwen2.5-VL classes, in seconds and without a download.

It loads through the Auto classes and differs from the published checkpoints only in size and weights.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

_VOCABULARY: Final = 1024  # upper limit, without the tokens below; includes all 256 bytes
_SPECIAL: Final = (  # in the published order
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED: Final = (  # single tokens, but not special, as published
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_SYSTEM_PROMPT: Final = "You are a helpful assistant."
CHAT_TEMPLATE: Final = """\
{%- set image_count = namespace(value=0) -%}
{%- set video_count = namespace(value=0) -%}
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{ '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}
    {%- endif -%}
    {{ '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] }}
    {%- else -%}
        {%- for content in message['content'] -%}
            {%- if content['type'] == 'image' or 'image' in content or 'image_url' in content -%}
                {%- set image_count.value = image_count.value + 1 -%}
                {{ 'Picture ' ~ image_count.value ~ ': ' if add_vision_id else '' }}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif content['type'] == 'video' or 'video' in content -%}
                {%- set video_count.value = video_count.value + 1 -%}
                {{ 'Video ' ~ video_count.value ~ ': ' if add_vision_id else '' }}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in content -%}
                {{ content['text'] }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif -%}
""".replace("SYSTEM", _SYSTEM_PROMPT)


def write_tiny_qwen2_5_vl(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Qwen2.5-VL of about 0.6 M parameters, its processor and generation settings into `directory`.

    An image keeps its shape, in steps of 28 pixels, and has 4 to 16 tokens of 28 x 28 pixels: 56 x 56 pixels are 4
    tokens. The tokenizer is trained on `texts`, so that their frequent words are one token each. Equal arguments write
    byte-identical files. torch's random state is not changed.
    """
    tokenizer = qwen_tokenizer(texts, ADDED)
    # Pixels of a full image. A limit of exactly 16 tokens would round some square images down to 3 x 3 tokens.
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112 + 1}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer))
    save_qwen(directory, model, processor)


def save_qwen(directory: Path, model: Any, processor: Any) -> None:
    """Write weights, settings and processor; generation stops at the end of a turn and at the end of the text."""
    tokenizer = processor.tokenizer
    end_of_text = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=end_of_text, eos_token_id=[tokenizer.eos_token_id, end_of_text], pad_token_id=end_of_text
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def qwen_tokenizer(texts: Iterable[str], others: Iterable[str]) -> Qwen2Tokenizer:
    """Return a Qwen2Tokenizer with merges trained on `texts`.

    The published special tokens follow its vocabulary, and then the single tokens `others`, which are not special.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(itertools.chain(["system", "user", "assistant", _SYSTEM_PROMPT] * 1000, texts), trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    unknown: Any = None  # bytes encode every text
    added = [*(AddedToken(token, special=True) for token in _SPECIAL), *(AddedToken(token) for token in others)]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        unk_token=unknown,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL[1:]),
        added_tokens_decoder=dict(enumerate(added, start=len(model["vocab"]))),
    )


def _config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """Return the full configuration; head and embeddings are tied, as in the published 3B model."""
    return Qwen2_5_VLConfig(
        text_config=qwen_text_config(tokenizer),
        vision_config=_vision_config(),
        tie_word_embeddings=True,
        **vision_token_ids(tokenizer),
    )


def vision_token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """Return the ids that a configuration names."""
    ids = tokenizer.get_vocab()
    return {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }


def _vision_config() -> dict[str, Any]:
    """Return the vision settings: one block with windows of 4 x 4 patches, and one with full attention."""
    return {
        "depth": 2,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 96,
        "tokens_per_second": 2,
        "initializer_range": 0.1,
    }


def qwen_text_config(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """Return the text settings that all versions share: 3 layers, all of them with full attention, as published."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        # With the published base of 1e6, the five frequencies of image columns would vary too little to be learnt.
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 5, 5]},
        "initializer_range": 0.1,  # 1 / sqrt(hidden_size); the default of 0.02 suits far wider models
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
