"""Makes a tiny checkpoint of the real Gemma 3 classes, in seconds and without a download.

It loads through the Auto classes and differs from the published checkpoints only in size and weights.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

_IMAGE_SIZE: Final = 56
_VOCABULARY: Final = 1024  # upper limit; includes all 256 bytes, so any text can be encoded
_SPECIAL: Final = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
IMAGE_TOKENS: Final = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
CHAT_TEMPLATE: Final = """\
{{ bos_token }}
{%- set prefix = '' -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set content = messages[0]['content'] -%}
    {%- set prefix = (content if content is string else content[0]['text']) + '\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ 'IMAGE' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def write_tiny_gemma3(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Gemma 3 of about 0.5 M parameters, its processor and its generation settings into `directory`.

    An image is 56 x 56 pixels, 16 patches and 16 soft tokens. The tokenizer is trained on `texts`, so that
    their frequent words are one token each. Equal arguments write byte-identical files. torch's random state
    is not changed.
    """
    tokenizer = tiny_tokenizer(texts, IMAGE_TOKENS)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", IMAGE_TOKENS["boi_token"]),
        image_seq_length=16,
    )
    config = Gemma3Config(
        text_config=tiny_text_config(tokenizer) | {"query_pre_attn_scalar": 24},
        vision_config=_siglip_config(),
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma3ForConditionalGeneration(config)
        # transformers initialises this weight to zero: no gradient would reach the tower, and no image the text.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
        # At the default of 0.1, the content of a patch outweighs its position, and position is learnt last.
        torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.5)
    save_tiny(directory, model, processor)


def tiny_tokenizer(texts: Iterable[str], named: dict[str, str]) -> GemmaTokenizer:
    """Return a GemmaTokenizer with merges trained on `texts`; the `named` tokens become its attributes.

    As in the published tokenizers, `<start_of_...>` is inside the trained vocabulary; other named tokens follow it.
    """
    special = [*_SPECIAL, *(token for token in named.values() if token.startswith("<start"))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    # GemmaTokenizer does not pre-split text. So train the merges on split text: then no token spans two words.
    splits = [("\n", "removed"), ("▁", "merged_with_next"), (Regex(r"[^\w▁]"), "isolated")]
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(*split) for split in splits])
    reserved = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "\n\n"]
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, special_tokens=reserved, show_progress=False)
    trained.train_from_iterator(itertools.chain(["user", "model"] * 1000, texts), trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [("\n", "\n"), *(tuple(merge) for merge in model["merges"])]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=merges, model_specific_special_tokens=named)
    # Special in the vocabulary but without an attribute, as in the published tokenizers.
    tokenizer.add_tokens([AddedToken(turn, special=True, normalized=False) for turn in _SPECIAL[-2:]])
    return tokenizer


def _siglip_config() -> dict[str, Any]:
    """Return the vision settings: 4 x 4 patches of 14 pixels, 2 layers."""
    return {
        "model_type": "siglip_vision_model",
        "image_size": _IMAGE_SIZE,
        "patch_size": 14,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vision_use_head": False,
    }


def tiny_text_config(tokenizer: GemmaTokenizer) -> dict[str, Any]:
    """Return the text settings that both Gemmas share: 3 layers, 2 of them with full attention."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,  # 1 / sqrt(hidden_size); the default of 0.02 suits far wider models
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def save_tiny(directory: Path, model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Write weights (safetensors), settings and processor; generation also stops at the end of a turn."""
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
