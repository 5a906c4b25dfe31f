"""Makes a tiny checkpoint of the real Gemma 3n classes, in seconds and without a download.

It loads through the Auto classes and differs from the published checkpoints only in size and weights. It is a separate
module because importing these classes imports timm, which takes seconds.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch
from transformers import (
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    GemmaTokenizer,
    SiglipImageProcessor,
)

from vlm_core.models.tiny import CHAT_TEMPLATE, IMAGE_TOKENS, save_tiny, tiny_text_config, tiny_tokenizer

_AUDIO_TOKENS: Final = {
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
    "audio_token": "<audio_soft_token>",
}


def write_tiny_gemma3n(directory: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Gemma 3n of about 0.4 M parameters, its processor and generation settings into `directory`.

    An image is 64 x 64 pixels and 4 soft tokens. The vision tower is a small EfficientNet from timm; there is an
    audio tower too. Tokenizer and determinism are as for `write_tiny_gemma3`.
    """
    tokenizer = tiny_tokenizer(texts, IMAGE_TOKENS | _AUDIO_TOKENS)
    processor = Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(feature_size=32),
        image_processor=SiglipImageProcessor(
            size={"height": 64, "width": 64}, image_mean=[0.0] * 3, image_std=[1.0] * 3, do_normalize=False
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", IMAGE_TOKENS["image_token"]),
        audio_seq_length=8,
        image_seq_length=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma3nForConditionalGeneration(_gemma3n_config(tokenizer))
        for layer in model.model.language_model.layers:
            # The initial zero would cut the per-layer embeddings off from the output, and so from any gradient.
            torch.nn.init.ones_(layer.altup.correct_output_scale)
    save_tiny(directory, model, processor)


def _gemma3n_config(tokenizer: GemmaTokenizer) -> Gemma3nConfig:
    """Return the full Gemma 3n configuration; image and audio tokens follow the text vocabulary."""
    vision_offset = tokenizer.eoi_token_id
    audio_offset = tokenizer.eoa_token_id
    return Gemma3nConfig(
        text_config=tiny_text_config(tokenizer)
        | {
            "hidden_size": 64,
            "vocab_size_per_layer_input": vision_offset,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 1,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
        },
        # MobileNetV5 does not work here: timm puts classes into its `block_args`, which cannot be saved.
        vision_config={
            "architecture": "test_efficientnet_ln",
            "hidden_size": 256,
            "vocab_size": 2,
            "vocab_offset": vision_offset,
        },
        audio_config={
            "input_feat_size": 32,
            "hidden_size": 32,
            "vocab_size": 2,
            "vocab_offset": audio_offset,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": [8, 4],
        },
        audio_soft_tokens_per_image=8,
        vision_soft_tokens_per_image=4,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_id=tokenizer.eoa_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
