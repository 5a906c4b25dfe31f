"""Writes tiny checkpoints of real transformers classes that have no row in `vlm_core.families`.

Tokenizers and chat templates have the form of the published ones. Idefics3 writes `Assistant: ` before an answer, but
its generation prompt is `Assistant:`. LLaVA-OneVision puts images first, and its generation prompt differs from its
rendering of an answer. LLaVA 1.5 has a tokenizer like SentencePiece's that adds <s> by itself, and a template that ends
no turn.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlm_core.config import DatasetConfig
from vlm_core.data.source import fetch_split
from vlm_core.home import medpix_home

IDEFICS3 = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
}
VISION = {
    "image_size": 56,
    "patch_size": 14,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def write_tiny_idefics3(directory: Path, texts: Iterable[str]) -> None:
    """Writes an Idefics3: an image of 56 x 56 pixels becomes four tiles and a thumbnail, of 4 tokens each."""
    parts = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<|im_start|>", "<|end_of_text|>", "<pad>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokenizer = byte_level(texts, [*special, "<global-img>", *parts], bos="<|im_start|>", eos="<|end_of_text|>")
    images = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=IDEFICS3)
    config = Idefics3Config(
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)} | token_ids(tokenizer),
        vision_config=VISION,
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_tiny(directory, Idefics3ForConditionalGeneration, config, processor, "<end_of_utterance>")


def write_tiny_llava_onevision(directory: Path, texts: Iterable[str]) -> None:
    """Writes a LLaVA-OneVision: a single image has tokens by its size; each of several images has 17."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = byte_level(texts, special, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    size, pinpoints = {"height": 56, "width": 56}, [[56, 112], [112, 56], [112, 112]]
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION,
    )
    config = LlavaOnevisionConfig(
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer)} | token_ids(tokenizer),
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=pinpoints,
    )
    save_tiny(directory, LlavaOnevisionForConditionalGeneration, config, processor, "<|im_end|>")


def write_tiny_llava(directory: Path, texts: Iterable[str]) -> None:
    """Writes a LLaVA 1.5: an image is 16 tokens."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    reserved = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary, merges = _train(trained, texts, reserved)
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, pad_token="<pad>", add_bos_token=True)
    tokenizer.update_post_processor()
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    size = {"height": 56, "width": 56}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    config = LlavaConfig(
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)} | token_ids(tokenizer),
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=processor.image_token_id,
        image_seq_length=16,
    )
    save_tiny(directory, LlavaForConditionalGeneration, config, processor, None)


WRITERS = {
    "idefics3": write_tiny_idefics3,
    "llava_onevision": write_tiny_llava_onevision,
    "llava": write_tiny_llava,
}


def directory_of(name: str) -> Path:
    """Returns the directory of a tiny model of `WRITERS`."""
    return written_once(name, WRITERS[name])


@lru_cache
def written_once(name: str, write: Callable[[Path, Iterable[str]], None]) -> Path:
    """Returns the directory of the tiny model `name`, which `write` writes once per test process."""
    directory = medpix_home() / "other-models" / f"{name}-{os.getpid()}"
    write(directory, phantom_texts())
    return directory


def phantom_texts() -> list[str]:
    """Returns the questions and answers that tokenizers are trained on."""
    source = fetch_split(DatasetConfig(path_or_dataset="builtin:phantom?images=40", split="train"))
    batches = source.rows.batches(["question", "answer"], source.start, source.stop)
    return [text for _, rows in batches for row in rows for text in row.values()]


def byte_level(
    texts: Iterable[str],
    special: list[str],
    bos: str | None,
    eos: str,
    pad: str = "<pad>",
    named: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Returns a tokenizer trained on `texts` with the `special` tokens; the `named` tokens become its attributes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    _train(trained, texts, special, pre_tokenizers.ByteLevel.alphabet())
    tokens: dict[str, Any] = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    tokens |= {"extra_special_tokens": named} if named else {}
    return PreTrainedTokenizerFast(tokenizer_object=trained, **tokens)


def _train(
    tokenizer: Tokenizer, texts: Iterable[str], special: list[str], alphabet: Iterable[str] = ()
) -> tuple[dict[str, int], Any]:
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False
    )
    words = ["User", "Assistant: ", "USER: ", "ASSISTANT: ", "user\n", "assistant\n"] * 1000
    tokenizer.train_from_iterator(itertools.chain(words, texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def token_ids(tokenizer: Any) -> dict[str, int | None]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def save_tiny(directory: Path, kind: Any, config: Any, processor: Any, end_of_turn: str | None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    tokenizer = processor.tokenizer
    stops = [tokenizer.eos_token_id] + ([tokenizer.convert_tokens_to_ids(end_of_turn)] if end_of_turn else [])
    model.generation_config = GenerationConfig(**token_ids(tokenizer) | {"eos_token_id": stops})
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
