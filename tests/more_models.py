"""Writes more tiny checkpoints of real transformers classes, for the table of model types in docs/models.md.

Chat templates have the form of the published ones. Published templates also write tools, system prompts and thoughts.
"""

from collections.abc import Iterable
from pathlib import Path

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.other_models import IDEFICS3, TEXT, VISION, byte_level, save_tiny, token_ids, written_once
from vlm_core.models.tiny import tiny_tokenizer
from vlm_core.models.tiny_qwen import ADDED, CHAT_TEMPLATE, qwen_text_config, qwen_tokenizer, vision_token_ids
from vlm_core.models.tiny_qwen3 import THOUGHT
from vlm_core.models.tiny_qwen3 import VISION as QWEN3_TOWER

IMAGE_MARKS = "<|begin_of_image|><|image|><|end_of_image|>"
GLM4V = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n"
    "{% for content in message.content %}{% if content.type == 'image' %}{{ 'IMAGE' }}{% else %}{{ content.text }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
).replace("IMAGE", IMAGE_MARKS)
INTERNVL = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST]' }}"
    "{% for block in message.content %}{{ '[IMG]' if block.type == 'image' else block.text }}{% endfor %}"
    "{{ '[/INST]' }}{% else %}{{ message.content[0].text + eos_token }}{% endif %}{% endfor %}"
)
QWEN3_5 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% for content in message.content %}{% if content.type == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ content.text | trim }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
ENDS = (("start", "begin"), ("end", "end"))  # in the configuration, and in the tokens
MROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 5, 5]}
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112 + 1}


def write_tiny_qwen2_vl(directory: Path, texts: Iterable[str]) -> None:
    """Writes a Qwen2-VL: a tower without windows, and otherwise like Qwen2.5-VL."""
    tokenizer = qwen_tokenizer(texts, ADDED)
    images, videos = Qwen2VLImageProcessor(size=PIXELS), Qwen2VLVideoProcessor(size=PIXELS)
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 96, "mlp_ratio": 2, "num_heads": 4}
    config = Qwen2VLConfig(
        text_config=qwen_text_config(tokenizer),
        vision_config=vision | {"initializer_range": 0.1},
        tie_word_embeddings=True,
        **vision_token_ids(tokenizer),
    )
    processor = Qwen2VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)
    save_tiny(directory, Qwen2VLForConditionalGeneration, config, processor, None)


def write_tiny_qwen3_5(directory: Path, texts: Iterable[str]) -> None:
    """Writes a Qwen3.5: two layers with linear attention, one with full attention, and closed thoughts."""
    tokenizer = qwen_tokenizer(texts, (*ADDED, *THOUGHT))
    images, videos = Qwen2VLImageProcessor(size=PIXELS, patch_size=16), Qwen3VLVideoProcessor(size=PIXELS)
    own = {
        "head_dim": 24,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": MROPE | {"partial_rotary_factor": 1.0},
    }
    config = Qwen3_5Config(
        text_config=qwen_text_config(tokenizer) | own,
        vision_config={name: value for name, value in QWEN3_TOWER.items() if "deepstack" not in name},
        tie_word_embeddings=True,
        **vision_token_ids(tokenizer),
    )
    processor = Qwen3VLProcessor(images, tokenizer, videos, chat_template=QWEN3_5)
    save_tiny(directory, Qwen3_5ForConditionalGeneration, config, processor, None)


def write_tiny_internvl(directory: Path, texts: Iterable[str]) -> None:
    """Writes an InternVL: an image of other sides than 56 x 56 pixels becomes tiles and a thumbnail."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    tokenizer = byte_level(texts, special, bos=None, eos="<|im_end|>", pad="<|endoftext|>", named=named)
    size = {"height": 56, "width": 56}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=INTERNVL,
    )
    config = InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer)} | token_ids(tokenizer),
        vision_config=VISION | {"image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=processor.image_token_id,
        image_seq_length=4,
    )
    save_tiny(directory, InternVLForConditionalGeneration, config, processor, "<|im_end|>")


def write_tiny_smolvlm(directory: Path, texts: Iterable[str]) -> None:
    """Writes a SmolVLM: Idefics3's tiles and template."""
    parts = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<video>", "<end_of_utterance>"]
    tokenizer = byte_level(
        texts, [*special, "<global-img>", *parts], bos="<|im_start|>", eos="<end_of_utterance>", pad="<|im_end|>"
    )
    images = SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    videos = SmolVLMVideoProcessor(size={"longest_edge": 56})
    processor = SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, chat_template=IDEFICS3)
    config = SmolVLMConfig(
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)} | token_ids(tokenizer),
        vision_config=VISION,
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )
    save_tiny(directory, SmolVLMForConditionalGeneration, config, processor, "<end_of_utterance>")


def write_tiny_mistral3(directory: Path, texts: Iterable[str]) -> None:
    """Writes a Mistral 3: an image has tokens by its size, with a token after each of their rows."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = byte_level(texts, special, bos="<s>", eos="</s>")
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size=14)
    processor = PixtralProcessor(images, tokenizer, patch_size=14, spatial_merge_size=2, chat_template=MISTRAL)
    config = Mistral3Config(
        text_config=TEXT
        | {"model_type": "mistral", "head_dim": 16, "sliding_window": None, "vocab_size": len(tokenizer)}
        | token_ids(tokenizer),
        vision_config=VISION | {"model_type": "pixtral", "image_size": 112, "head_dim": 12},
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
    )
    save_tiny(directory, Mistral3ForConditionalGeneration, config, processor, None)


def write_tiny_glm4v(directory: Path, texts: Iterable[str]) -> None:
    """Writes a GLM-4.1V: M-RoPE, a merger in the tower, and a template that ends no turn."""
    roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    marks = [f"<|{mark}_of_{kind}|>" for kind in ("image", "video") for mark in ("begin", "end")]
    special = ["<|endoftext|>", "[gMASK]", "<sop>", *roles, *marks, "<|image|>", "<|video|>"]
    tokenizer = byte_level(texts, special, bos=None, eos="<|endoftext|>", pad="<|endoftext|>")
    find = tokenizer.convert_tokens_to_ids
    images, videos = Glm4vImageProcessor(size=PIXELS), Glm4vVideoProcessor(size=PIXELS)
    processor = Glm4vProcessor(images, tokenizer, videos, chat_template=GLM4V)
    tower = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64}
    config = Glm4vConfig(
        text_config=TEXT
        | {"vocab_size": len(tokenizer)}
        | {"rope_parameters": MROPE | {"mrope_section": [2, 3, 3]}}
        | token_ids(tokenizer),
        vision_config=tower | {"image_size": 56, "initializer_range": 0.1},
        image_token_id=find("<|image|>"),
        video_token_id=find("<|video|>"),
        **{f"{kind}_{at}_token_id": find(f"<|{mark}_of_{kind}|>") for kind in ("image", "video") for at, mark in ENDS},
    )
    save_tiny(directory, Glm4vForConditionalGeneration, config, processor, "<|user|>")


def write_tiny_paligemma(directory: Path, texts: Iterable[str]) -> None:
    """Writes a PaliGemma. As published, it has no chat template."""
    tokenizer = tiny_tokenizer(texts, {"image_token": "<image>"})
    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        text_config=TEXT | {"model_type": "gemma", "head_dim": 16, "vocab_size": len(tokenizer)} | token_ids(tokenizer),
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 64},
        image_token_index=processor.image_token_id,
        projection_dim=64,
        hidden_size=64,
    )
    save_tiny(directory, PaliGemmaForConditionalGeneration, config, processor, None)


MORE = {
    "qwen2_vl": write_tiny_qwen2_vl,
    "qwen3_5": write_tiny_qwen3_5,
    "internvl": write_tiny_internvl,
    "smolvlm": write_tiny_smolvlm,
    "mistral3": write_tiny_mistral3,
    "glm4v": write_tiny_glm4v,
    "paligemma": write_tiny_paligemma,
}


def more_directory(name: str) -> Path:
    """Returns the directory of a tiny model of `MORE`."""
    return written_once(name, MORE[name])
