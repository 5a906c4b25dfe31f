"""Estimates the memory of a run from the sizes of its model, and which settings fit on which card.

Memory follows from the weights and from the dimensions of the language model's layers. It leaves out the layers of a
vision tower that trains. docs/one-card.md shows by how much measured peaks differed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vlm_core.config import Config, OptimizerConfig
from vlm_core.models.forward import LOGITS_AT_ONCE
from vlm_core.models.freeze import Counts, PartCounts, total
from vlm_core.models.quantize import BYTES_PER_WEIGHT, COPIED_BYTES_PER_WEIGHT
from vlm_core.training.flops import used_experts
from vlm_core.training.optim import state_bytes

CARDS: Final = (8, 12, 16, 24, 48, 80)  # GB of memory
RESERVED: Final = 1e9  # bytes that CUDA, its libraries and fragmentation take
SMALLEST_ROW: Final = 512  # tokens: a forward pass below this wastes the card
EIGHT_BIT: Final = "bitsandbytes.optim.AdamW8bit"


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model on the device."""

    parts: PartCounts
    idle: Counts  # those of the experts that a token does not use
    quantizable: int  # frozen weights that model.quantization would hold in 4 or 8 bits
    largest: int  # those of them in the largest module
    text: Any  # the language model's config
    width: int  # bytes of a number of the computation, and of a frozen weight


def memory_of(config: Config, sizes: ModelSizes, tokens: int, shares: int) -> dict[str, float]:
    """Returns the bytes that a process needs, by kind, for forward passes of at most `tokens` tokens.

    `shares` is the number of processes that share weights and optimizer states.
    """
    trained, frozen = total(sizes.parts)
    width, quantization = sizes.width, config.model.quantization
    quantized, largest = (0, 0) if quantization == "none" else (sizes.quantizable, sizes.largest)
    weights = (frozen - quantized) * width + quantized * BYTES_PER_WEIGHT.get(quantization, 0.0)
    weights += trained * (4 + (2 if width == 2 and config.peft is None else 0))
    checkpointing = config.compute.gradient_checkpointing
    # One module computes at a time.
    copies = {"copies of weights": largest * COPIED_BYTES_PER_WEIGHT[quantization]} if largest else {}
    return {
        "weights": weights / shares,
        **copies,
        "gradients and optimizer": trained * (4 + bytes_of_states(config.optimizer)) / shares,
        "activations": tokens * _bytes_a_token(sizes.text, width, checkpointing=checkpointing),
        "logits": 3 * 4 * min(LOGITS_AT_ONCE, tokens * sizes.text.vocab_size),
    }


def bytes_of_states(config: OptimizerConfig) -> float:
    """Returns the bytes of the optimizer's states for each trained parameter."""
    return 2.0 if config.target == EIGHT_BIT else state_bytes(config)  # known: its library may not be installed


def fitting_settings(
    config: Config, sizes: ModelSizes, tokens: int, longest: int, shares: int
) -> Iterator[tuple[int, dict[str, Any], float]]:
    """Yields (GB of a card, settings to change, bytes that they need) for each card that some settings fit on.

    The settings are the first that fit of a list that begins with the fastest and most precise. `tokens` are those of
    the largest forward pass, `longest` those of the longest example.
    """
    needs = [(changes, sum(memory_of(changed, sizes, rows, shares).values()))
             for changes, changed, rows in _variants(config, tokens, longest)]  # fmt: skip
    for card in CARDS:
        for changes, need in needs:
            if need + RESERVED <= card * 1e9:
                yield card, changes, need
                break


def savings(config: Config, sizes: ModelSizes, tokens: int, longest: int, processes: int) -> dict[str, float]:
    """Returns settings that need less memory with the bytes that each saves alone, the largest saving first."""
    shares = processes if config.compute.strategy == "fsdp2" else 1
    saved: dict[str, float] = {}
    now = sum(memory_of(config, sizes, tokens, shares).values())

    def consider(key: str, value: Any, rows: int = tokens, over: int = shares) -> None:
        changes, changed = _with({key: value}, config)
        if changes:
            saved[in_settings(changes)] = now - sum(memory_of(changed, sizes, rows, over).values())

    if config.peft is not None:
        consider("model.quantization", "nf4")
    consider("compute.gradient_checkpointing", True)
    if config.packing.enabled and tokens // 2 >= longest:
        consider("packing.max_tokens", tokens // 2, rows=tokens // 2)
    elif not config.packing.enabled and config.step_scheduler.local_batch_size > 1:
        half = config.step_scheduler.local_batch_size // 2
        consider("step_scheduler.local_batch_size", half, rows=tokens // 2)
    if bytes_of_states(config.optimizer) > 2:
        consider("optimizer._target_", EIGHT_BIT)
    if processes > 1:
        consider("compute.strategy", "fsdp2", over=processes)
    worthwhile = [(setting, less) for setting, less in saved.items() if less > 0.01 * now]
    return dict(sorted(worthwhile, key=lambda pair: -pair[1]))


def _variants(config: Config, tokens: int, longest: int) -> Iterator[tuple[dict[str, Any], Config, int]]:
    """Yields (settings to change, config with them, tokens of a forward pass), each needing less memory."""
    kinds = ("none", "nf4") if config.peft is not None else ("none",)
    for kind in kinds[kinds.index("nf4") if config.model.quantization == "nf4" else 0 :]:
        for checkpointing in sorted({config.compute.gradient_checkpointing, True}):
            yield _changed(config, kind, checkpointing, tokens)
    last = kinds[-1]
    if config.peft is None:
        yield _changed(config, last, True, tokens, optimizer=EIGHT_BIT)
    while config.packing.enabled and tokens // 2 >= max(longest, SMALLEST_ROW):
        tokens //= 2
        yield _changed(config, last, True, tokens, optimizer=None if config.peft else EIGHT_BIT, packed=True)


def _changed(
    config: Config, kind: str, checkpointing: bool, tokens: int, *, optimizer: str | None = None, packed: bool = False
) -> tuple[dict[str, Any], Config, int]:
    wanted: dict[str, Any] = {"model.quantization": kind, "compute.gradient_checkpointing": checkpointing}
    wanted |= {"optimizer._target_": optimizer} if optimizer else {}
    wanted |= {"packing.max_tokens": tokens} if packed else {}
    return *_with(wanted, config), tokens


def _with(wanted: Mapping[str, Any], config: Config) -> tuple[dict[str, Any], Config]:
    """Returns (those of the `wanted` settings that `config` does not have, the config with them)."""
    changes, changed = {}, config
    for key, value in wanted.items():
        section, _, name = key.partition(".")
        field = name.strip("_")
        if getattr(getattr(config, section), field) != value:
            changes[key] = value
            own = getattr(changed, section).model_copy(update={field: value})
            changed = changed.model_copy(update={section: own})
    return changes, changed


def in_settings(changes: Mapping[str, Any]) -> str:
    """Returns settings as they are written on the command line."""
    words = {True: "true", False: "false"}
    return ", ".join(f"{key}={words.get(value, value) if isinstance(value, bool) else value}"
                     for key, value in changes.items()) or "as configured"  # fmt: skip


def _bytes_a_token(text: Any, width: int, *, checkpointing: bool) -> float:
    """Returns how many bytes the backward pass keeps of a token in all layers of a language model.

    `text` is the language model's config, `width` the bytes of a number. With gradient checkpointing, each layer keeps
    its input, and one layer at a time keeps the rest.
    """
    layers = [_layer_bytes(layer, width) for layer in text.per_layer_config]
    hidden = text.hidden_size * getattr(text, "altup_num_inputs", 1)
    return len(layers) * width * hidden + max(layers) if checkpointing else sum(layers)


def _layer_bytes(layer: Any, width: int) -> float:
    """Returns the bytes of a layer: norms (in float32 too), attention, gated MLP, residuals.

    `layer` is the config of this layer alone, since the sizes of some models' layers differ.
    """
    hidden = layer.hidden_size * getattr(layer, "altup_num_inputs", 1)
    inner = _inner_size(layer, hidden)
    heads = layer.num_attention_heads
    keys = getattr(layer, "num_key_value_heads", None) or heads
    head = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    norms = 4 * hidden * (4 + 4 + width)
    attention = width * head * (2 * (heads + 2 * keys) + 3 * heads)
    return norms + attention + width * (4 * inner + 3 * hidden)


def _inner_size(layer: Any, hidden: int) -> float:
    """Returns the inner width of a layer's MLP for a token: of those experts that it uses, if the layer has experts."""
    inner = getattr(layer, "intermediate_size", 4 * hidden)
    inner = max(inner) if isinstance(inner, list) else inner
    if getattr(layer, "use_double_wide_mlp", False):  # in the layers that share keys and values; here their average
        inner *= 1 + layer.num_kv_shared_layers / layer.num_hidden_layers
    used = used_experts(layer)
    if not used:
        return inner
    of_experts = used * layer.moe_intermediate_size if getattr(layer, "moe_intermediate_size", None) else used * inner
    return inner + of_experts if getattr(layer, "enable_moe_block", False) else of_experts  # Gemma 4 has both
