"""Translates the YAML of NeMo Automodel's Gemma 3 guide to this project's config, before anything is validated.

The config has the guide's sections and most of its keys. This module knows the rest: keys and `_target_` paths that
mean something else here, or nothing. A key that has no effect is named in a warning.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from vlm_core.config.training import FUSED_LOSS

logger = logging.getLogger(__name__)

LORA = "nemo_automodel._peft.lora.apply_lora_to_linear_modules"
LOSSES = ("MaskedCrossEntropy", "masked_cross_entropy")
DATASETS = ("make_medpix_vqa_dataset", "make_medpix_dataset")
COLLATES = ("default_collate_fn", "qwen2_5_collate_fn")
LOADER = "StatefulDataLoader"
SCHEDULES: Final = {  # after the warm-up, to zero at the last step; None: as `lr_decay_style` says
    "torch.optim.lr_scheduler.CosineAnnealingLR": "cosine",
    "torch.optim.lr_scheduler.LinearLR": "linear",
    "torch.optim.lr_scheduler.ConstantLR": "constant",
    "nemo_automodel.components.optim.scheduler.OptimizerParamScheduler": None,
}
GENERATE_FLAGS: Final = {  # of the guide's generate.py: without effect here, because
    "--is-peft": "the checkpoint's own files say whether it is an adapter",
    "--peft-exclude-modules": "an adapter's own file says which modules it changes",
}


def translate(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config tree in this project's keys and names; what the guide does not define stays as it is.

    Raises ValueError for a `_target_` that has no meaning here, or if two keys give one setting different values.
    """
    translated = copy.deepcopy(dict(tree))
    for key, rule in _RULES.items():
        section, name = _section(translated, key)
        if name not in section:
            continue
        given = section.pop(name)
        for new_key, value in rule(given).items():
            _set(translated, new_key, value, f"{key}={given}")
    return translated


def _section(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Returns the mapping that holds the last part of a dotted key (empty if it is missing), and that part."""
    *sections, name = key.split(".")
    found: Any = tree
    for section in sections:
        found = found.get(section)
        if not isinstance(found, dict):  # null, or a mistake that validation will name
            return {}, name
    return found, name


def _set(tree: dict[str, Any], key: str, value: Any, given: str) -> None:
    """Sets a dotted key to what was `given` in another form; raises ValueError if the tree gives it another value."""
    *sections, name = key.split(".")
    section = tree
    for part in sections:
        section[part] = section.get(part) or {}  # a section without keys is null in YAML
        section = section[part]
    if section.setdefault(name, value) != value:
        raise ValueError(f"{given} and {key}={section[name]} are one setting; give one of them")


def _dtype(value: Any) -> dict[str, Any]:
    return {"model.torch_dtype": value.removeprefix("torch.") if isinstance(value, str) else value}


def _consolidated(value: Any) -> dict[str, Any]:
    return {
        "checkpoint.save_consolidated": {False: "never", True: "every"}[value] if isinstance(value, bool) else value
    }


def _batch_size(value: Any) -> dict[str, Any]:
    return {} if value is None else {"step_scheduler.local_batch_size": value}


def _schedule(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if value not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler._target_={value!r} is no schedule here; take {', '.join(SCHEDULES)}, or leave it out and "
            "set lr_scheduler.lr_decay_style"
        )
    style = SCHEDULES[value]
    return {} if style is None else {"lr_scheduler.lr_decay_style": style}


def _loss(value: Any) -> dict[str, Any]:
    if value is None or str(value).rpartition(".")[2] in LOSSES:
        return {"loss_fn._target_": None}
    if value != FUSED_LOSS:
        raise ValueError(
            f"loss_fn._target_={value!r}: there is one loss, the token-normalised cross entropy (MaskedCrossEntropy); "
            f"leave it out, or take {FUSED_LOSS} on a GPU"
        )
    return {"loss_fn._target_": value}


def _loader(value: Any) -> dict[str, Any]:
    if value is not None and str(value).rpartition(".")[2] != LOADER:
        raise ValueError(f"dataloader._target_={value!r}: there is one loader here; leave it out, or name {LOADER}")
    return {}


def _lora(value: Any) -> dict[str, Any]:
    if value not in (None, LORA):
        raise ValueError(f"peft.peft_fn={value!r}: there is one LoRA here; leave it out, or name {LORA}")
    return {}


def _triton(value: Any) -> dict[str, Any]:
    if value:
        logger.warning("peft.use_triton has no effect: peft has no such kernels")
    return {}


def _function(key: str, built_in: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """Returns the rule of a key that may name a function: the guide's own does what happens here without one."""

    def rule(value: Any) -> dict[str, Any]:
        package, _, name = str(value).rpartition(".")
        own = package.partition(".")[0] in ("nemo_automodel", "vlm_core") and name in built_in
        return {key: None if own or value is None else value}

    return rule


# What a key of the guide becomes: the keys to set in its place, with their values.
_RULES: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "model.torch_dtype": _dtype,
    "dataset._target_": _function("dataset._target_", DATASETS),
    "dataloader._target_": _loader,
    "dataloader.batch_size": _batch_size,
    "dataloader.collate_fn._target_": _function("dataloader.collate_fn._target_", COLLATES),
    "loss_fn._target_": _loss,
    "lr_scheduler._target_": _schedule,
    "peft.peft_fn": _lora,
    "peft.use_triton": _triton,
    "checkpoint.save_consolidated": _consolidated,
}
