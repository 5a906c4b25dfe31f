"""LoRA through peft, with the guide's shell-style wildcards over full names: which modules and experts it adapts.

Most models keep all experts of a layer as one parameter of three dimensions. No linear module holds it, so peft adapts
it by the parameter's name.
"""

import logging
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from vlm_core.config import PeftConfig
from vlm_core.families import Family, part_of
from vlm_core.models.fused_lora import has_fused_layer, use_fused_lora
from vlm_core.models.lora_patterns import by_full_name, matches, rank_of, select_saved, warn_of_unmatched
from vlm_core.models.lora_start import from_data, remember_initial_matrices

logger = logging.getLogger(__name__)


def apply_lora(
    model: PreTrainedModel, config: PeftConfig, family: Family, frozen: set[str], resumed: Path | None = None
) -> PeftModel:
    """Returns `model` with LoRA matrices on the selected linear modules and experts; everything else is frozen.

    Modules that `config` names to be saved train too, as copies. The directory that `save_weights` writes loads in
    plain peft. Ranks that depend on the data are those of the adapter in the directory `resumed`.
    """
    modules, experts = (select(model, config, family, frozen) for select in (select_modules, select_experts))
    saved = select_saved(model, config, family, frozen)
    warn_of_unmatched(config, [*modules, *experts])
    with warnings.catch_warnings():
        # The warning is about how peft saves such adapters; `lora_start` saves them instead.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern")
        lora = _peft_config(config, modules, experts, saved)
    if config.starts_from_data:
        lora = from_data(lora, resumed)
    if config.use_triton:
        use_fused_lora(lora)
    with warnings.catch_warnings():
        # peft looks for the patterns in modules only. They match experts, which are parameters.
        warnings.filterwarnings("ignore", message=r"The following \w+_pattern keys did not match")
        # The model is loaded already when the training data gives the matrices their start.
        warnings.filterwarnings("ignore", message="lora with eva initialization used with low_cpu_mem_usage=False")
        adapted = get_peft_model(model, lora)
    if config.use_triton and "use_triton" in config.model_fields_set:
        _warn_if_nothing_is_fused(adapted, config)
    if config.changes_base:
        remember_initial_matrices(adapted)
    return adapted


def _warn_if_nothing_is_fused(adapted: PeftModel, config: PeftConfig) -> None:
    """Warns if training computes all adapted modules with peft's layers, so that `use_triton` has no effect."""
    if config.dropout:
        reason = f"peft.dropout={config.dropout}"
    elif config.use_dora:
        reason = "peft.use_dora=true"
    elif not has_fused_layer(adapted):
        reason = "none of the adapted modules is a linear layer with weights that are not quantised"
    else:
        return
    logger.warning("peft.use_triton=true has no effect on training: peft's own, slower layers compute this adapter, "
                   "because %s; change that, or remove peft.use_triton", reason)  # fmt: skip


def _peft_config(config: PeftConfig, modules: list[str], experts: list[str], saved: list[str]) -> LoraConfig:
    adapted, start = [*modules, *experts], cast(Any, config.init_lora_weights)
    return LoraConfig(
        r=config.dim,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules,
        target_parameters=experts or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True if start in ("true", "eva") else start,
        rank_pattern=by_full_name(config.rank_pattern, adapted),
        alpha_pattern=by_full_name(config.alpha_pattern, adapted),
        modules_to_save=saved or None,
    )


def select_modules(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> list[str]:
    """Returns the full names of the linear modules to adapt: those that `config` selects outside the `frozen` parts.

    A pattern that matches neither a linear module nor experts is named in a warning. Raises ValueError if neither
    modules nor experts are left.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    saved = tuple(f"{name}." for name in select_saved(model, config, family, frozen))
    experts = expert_parameters(model, family)
    for pattern in (*config.target_modules, *config.exclude_modules):
        if not any(fnmatchcase(name, pattern) for name in (*linear, *experts)):
            logger.warning("the peft pattern %r matches no linear module of this model", pattern)
    # The head is tied to the embeddings, so only match_all_linear adapts it.
    candidates = {name for name in linear if config.match_all_linear or part_of(name, family) != "embeddings"}
    selected = [
        name
        for name in linear
        if (matches(name, config.target_modules) if config.target_modules else name in candidates)
        and not matches(name, config.exclude_modules)
        and not matches(name, family.not_adaptable)
        and part_of(name, family) not in frozen
        and not f"{name}.".startswith(saved)
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
        # A layer of torch is not a mixture: a convolution's weight has three dimensions too.
        if not type(module).__module__.startswith("torch.nn")
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and part_of(f"{owner}.{name}", family) == "language_model"
    }


def select_experts(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> list[str]:
    """Returns the full names of the parameters of experts to adapt: those that `config` selects.

    Raises ValueError if experts would stay without an adapter and no pattern says so, or if they cannot have one.
    """
    candidates = {} if "language_model" in frozen else expert_parameters(model, family)
    allowed = [name for name in candidates if not matches(name, config.exclude_modules)]
    selected = [name for name in allowed if not config.target_modules or matches(name, config.target_modules)]
    if allowed and not selected:
        left_out = sum(candidates[name].numel() for name in allowed)
        own = sum(p.numel() for name, p in model.named_parameters() if part_of(name, family) == "language_model")
        raise ValueError(
            f"peft.target_modules={config.target_modules} match no expert, such as {allowed[0]!r}: {left_out:,} of the "
            f"{own:,} parameters of the language model would have no adapter; add '*experts*' to peft.target_modules, "
            "or to peft.exclude_modules if that is what you want"
        )
    if selected:
        _require_plain_lora(config)
    return selected


def _require_plain_lora(config: PeftConfig) -> None:
    """Raises ValueError for settings of LoRA that peft does not have for experts."""
    out = "or add '*experts*' to peft.exclude_modules"
    if config.dropout:
        raise ValueError(f"peft.dropout={config.dropout}: peft has no dropout for experts; set it to 0, {out}")
    if config.use_dora:
        raise ValueError(f"peft.use_dora=true: peft has no DoRA for experts; set it to false, {out}")
    if config.init_lora_weights not in ("true", "gaussian"):
        raise ValueError(
            f"peft.init_lora_weights={config.init_lora_weights}: matrices of experts start as true or gaussian; use "
            f"one of these, {out}"
        )


def adapter_sizes(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> dict[str, int]:
    """Returns how many parameters `apply_lora` would add to each module and parameter that it adapts or copies."""
    experts = expert_parameters(model, family)
    sizes = {
        name: sum(experts[name].shape[1:]) * len(experts[name]) * rank_of(name, config)
        for name in select_experts(model, config, family, frozen)
    }
    for name in select_modules(model, config, family, frozen):
        module = cast(nn.Linear, model.get_submodule(name))
        sizes[name] = (module.in_features + module.out_features) * rank_of(name, config)
        sizes[name] += module.out_features if config.use_dora else 0  # the lengths
    for name in select_saved(model, config, family, frozen):
        sizes[name] = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
    return sizes
