"""LoRA through peft, with the guide's shell-style wildcards over full module names."""

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from vlm_core.config import PeftConfig
from vlm_core.families import Family, part_of
from vlm_core.models.fused_lora import use_fused_lora

logger = logging.getLogger(__name__)


def apply_lora(model: PreTrainedModel, config: PeftConfig, family: Family, frozen: set[str]) -> PeftModel:
    """Returns `model` with LoRA matrices on the selected linear modules; everything else is frozen.

    The directory that its `save_pretrained` writes loads in plain peft.
    """
    lora = LoraConfig(
        r=config.dim,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=select_modules(model, config, family, frozen),
    )
    if config.use_triton and config.dropout and "use_triton" in config.model_fields_set:
        logger.warning("peft.use_triton=true has no effect on training: peft.dropout=%s needs peft's own layers; set "
                       "peft.dropout=0 for the faster ones", config.dropout)  # fmt: skip
    if config.use_triton:
        use_fused_lora(lora)
    return get_peft_model(model, lora)


def select_modules(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> list[str]:
    """Returns the full names of the linear modules to adapt: those that `config` selects outside the `frozen` parts.

    A pattern that matches no linear module is named in a warning. Raises ValueError if nothing is left.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in (*config.target_modules, *config.exclude_modules):
        if not any(fnmatchcase(name, pattern) for name in linear):
            logger.warning("the peft pattern %r matches no linear module of this model", pattern)
    # The head is tied to the embeddings, so only match_all_linear adapts it.
    candidates = {name for name in linear if config.match_all_linear or part_of(name, family) != "embeddings"}
    selected = [
        name
        for name in linear
        if (_matches(name, config.target_modules) if config.target_modules else name in candidates)
        and not _matches(name, config.exclude_modules)
        and not _matches(name, family.not_adaptable)
        and part_of(name, family) not in frozen
    ]
    if not selected:
        raise ValueError(
            f"peft adapts no module: target_modules={config.target_modules}, exclude_modules={config.exclude_modules} "
            f"and the frozen parts {sorted(frozen)} leave none of {len(linear)} linear modules; patterns match full "
            f"names such as {linear[0]!r}, so write '*q_proj' and not 'q_proj'"
        )
    return selected


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
