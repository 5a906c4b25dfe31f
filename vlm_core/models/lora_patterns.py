"""The options of LoRA that name modules by shell-style wildcards: ranks, alphas, and modules that train fully."""

import logging
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vlm_core.config import PeftConfig
from vlm_core.families import Family, part_of

logger = logging.getLogger(__name__)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Returns whether one of the shell-style wildcards matches the full name of a module."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def by_full_name(pattern: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Returns the value of each of the modules `names` that a wildcard matches; the last one that matches counts."""
    return {name: value for name in names for wildcard, value in pattern.items() if fnmatchcase(name, wildcard)}


def rank_of(name: str, config: PeftConfig) -> int:
    """Returns the rank of the matrices of the module `name`."""
    return by_full_name(config.rank_pattern, [name]).get(name, config.dim)


def warn_of_unmatched(config: PeftConfig, adapted: Iterable[str]) -> None:
    """Warns of each wildcard for ranks or alphas that matches none of the `adapted` modules."""
    for setting in ("rank_pattern", "alpha_pattern"):
        for wildcard in getattr(config, setting):
            if not any(fnmatchcase(name, wildcard) for name in adapted):
                logger.warning("peft.%s has no effect for %r: it matches no adapted module", setting, wildcard)


def select_saved(model: nn.Module, config: PeftConfig, family: Family, frozen: set[str]) -> list[str]:
    """Returns the full names of the modules to train fully: the outermost ones that `config.modules_to_save` names.

    Raises ValueError for a wildcard without a match, and for a module that cannot be copied and trained.
    """
    named = {name: module for name, module in model.named_modules() if matches(name, config.modules_to_save)}
    for wildcard in config.modules_to_save:
        if not any(fnmatchcase(name, wildcard) for name in named):
            raise ValueError(
                f"peft.modules_to_save={wildcard!r} matches no module; patterns match full names such as "
                f"{family.parts['language_model'][0]!r}"
            )
    outermost = [name for name in named if not any(name.startswith(f"{other}.") for other in named)]
    for name in outermost:
        _require_trainable_copy(name, named[name], model, family, frozen)
    return outermost


def _require_trainable_copy(name: str, module: Any, model: Any, family: Family, frozen: set[str]) -> None:
    part = part_of(name, family)
    weights = {f"{name}.{own}" for own, _ in module.named_parameters()}
    tied = {tied for pair in getattr(model, "all_tied_weights_keys", {}).items() for tied in pair}
    problem = ""
    if not weights:
        problem = "has no weights; name another module"
    elif isinstance(module, nn.ModuleList | nn.ModuleDict):
        problem = "is a list of modules, which peft cannot copy; name its entries"
    elif weights & tied:
        problem = f"shares {min(weights & tied)} with another module, so that a copy could not be saved; leave it out"
    elif part in frozen:
        problem = f"is frozen by freeze_config.freeze_{part}=true; set that to false, or leave the module out"
    elif any("4bit" in type(inner).__name__ or "8bit" in type(inner).__name__ for inner in module.modules()):
        problem = "is quantised, so it cannot train; set model.quantization=none, or leave the module out"
    if problem:
        raise ValueError(f"peft.modules_to_save: {name} {problem}")
