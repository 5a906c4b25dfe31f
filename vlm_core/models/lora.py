"""LoRA through peft, with the guide's shell-style wildcards over full module names.

Most models keep all experts of a layer as one parameter of three dimensions. No linear module holds it, so peft adapts
it by the parameter's name.
"""

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from vlm_core.config import PeftConfig
from vlm_core.families import Family, part_of
from vlm_core.models.fused_lora import use_fused_lora

logger = logging.getLogger(__name__)


def apply_lora(model: PreTrainedModel, config: PeftConfig, family: Family, frozen: set[str]) -> PeftModel:
    """Returns `model` with LoRA matrices on the selected linear modules and experts; everything else is frozen.

    The directory that its `save_pretrained` writes loads in plain peft.
    """
    lora = LoraConfig(
        r=config.dim,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=select_modules(model, config, family, frozen),
        target_parameters=select_experts(model, config, family, frozen) or None,
    )
    if config.use_triton and config.dropout and "use_triton" in config.model_fields_set:
        logger.warning("peft.use_triton=true has no effect on training: peft.dropout=%s needs peft's own layers; set "
                       "peft.dropout=0 for the faster ones", config.dropout)  # fmt: skip
    if config.use_triton:
        use_fused_lora(lora)
    return get_peft_model(model, lora)


def select_modules(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> list[str]:
    """Returns the full names of the linear modules to adapt: those that `config` selects outside the `frozen` parts.

    A pattern that matches neither a linear module nor experts is named in a warning. Raises ValueError if neither
    modules nor experts are left.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    experts = expert_parameters(model, family)
    for pattern in (*config.target_modules, *config.exclude_modules):
        if not any(fnmatchcase(name, pattern) for name in (*linear, *experts)):
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
    if not selected and not select_experts(model, config, family, frozen):
        raise ValueError(
            f"peft adapts no module: target_modules={config.target_modules}, exclude_modules={config.exclude_modules} "
            f"and the frozen parts {sorted(frozen)} leave none of {len(linear)} linear modules; patterns match full "
            f"names such as {linear[0]!r}, so write '*q_proj' and not 'q_proj'"
        )
    return selected


def expert_parameters(model: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    """Returns the parameters of the language model that hold all experts of a layer, by their full names."""
    return {
        f"{owner}.{name}": parameter
        for owner, module in model.named_modules()
        if not type(module).__module__.startswith(
            "torch.nn"
        )  # such as a convolution, whose weight has three dimensions
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and part_of(f"{owner}.{name}", family) == "language_model"
    }


def select_experts(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> list[str]:
    """Returns the full names of the parameters of experts to adapt: those that `config` selects.

    Raises ValueError if experts would stay without an adapter and no pattern says so, or if they cannot have one.
    """
    candidates = {} if "language_model" in frozen else expert_parameters(model, family)
    allowed = [name for name in candidates if not _matches(name, config.exclude_modules)]
    selected = [name for name in allowed if not config.target_modules or _matches(name, config.target_modules)]
    if allowed and not selected:
        left_out = sum(candidates[name].numel() for name in allowed)
        own = sum(p.numel() for name, p in model.named_parameters() if part_of(name, family) == "language_model")
        raise ValueError(
            f"peft.target_modules={config.target_modules} match no expert, such as {allowed[0]!r}: {left_out:,} of the "
            f"{own:,} parameters of the language model would have no adapter; add '*experts*' to peft.target_modules, "
            "or to peft.exclude_modules if that is what you want"
        )
    if selected and config.dropout:
        raise ValueError(
            f"peft.dropout={config.dropout}: peft has no dropout for experts; set it to 0, or add '*experts*' to "
            "peft.exclude_modules"
        )
    return selected


def adapter_sizes(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> dict[str, int]:
    """Returns how many parameters `apply_lora` would add to each module and parameter that it adapts."""
    experts = expert_parameters(model, family)
    sizes = {
        name: sum(experts[name].shape[1:]) * len(experts[name])
        for name in select_experts(model, config, family, frozen)
    }
    for name in select_modules(model, config, family, frozen):
        module = cast(nn.Linear, model.get_submodule(name))
        sizes[name] = module.in_features + module.out_features
    return {name: config.dim * size for name, size in sizes.items()}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
