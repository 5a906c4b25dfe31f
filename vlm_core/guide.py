"""Translates the YAML of NeMo Automodel's Gemma 3 guide to this project's config, before validation.

The config has the guide's sections and most of its keys. This module translates the rest: keys and `_target_` paths
that have another meaning here, or none. It warns about keys that have no effect.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from vlm_core.config.training import FUSED_LOSS

LORA = "nemo_automodel._peft.lora.apply_lora_to_linear_modules"
LOSSES = ("MaskedCrossEntropy", "masked_cross_entropy")
DATASETS = ("make_medpix_vqa_dataset", "make_medpix_dataset")
COLLATES = ("default_collate_fn", "qwen2_5_collate_fn")
LOADER = "StatefulDataLoader"
SCHEDULES: Final = {  # decay after the warm-up, to zero at the last step; None: use `lr_decay_style`
    "torch.optim.lr_scheduler.CosineAnnealingLR": "cosine",
    "torch.optim.lr_scheduler.LinearLR": "linear",
    "torch.optim.lr_scheduler.ConstantLR": "constant",
    "nemo_automodel.components.optim.scheduler.OptimizerParamScheduler": None,
}
GENERATE_FLAGS: Final = {  # flags of the guide's generate.py, with the reason why they have no effect here
    "--is-peft": "the checkpoint's own files say whether it is an adapter",
    "--peft-exclude-modules": "an adapter's own file says which modules it changes",
}


def translate(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a config tree from the guide's keys and names to this project's. Other keys stay unchanged.

    Raises ValueError for an unsupported `_target_`, or if two keys give the same setting different values.
    """
    translated = copy.deepcopy(dict(tree))
    for key, rule in _RULES.items():
        section, name = _section(translated, key)
        if name not in section:
            continue
        given = section.pop(name)
        for new_key, value in rule(given).items():
            _set(translated, new_key, value, f"{key}={given}")
    for dataset in _more_datasets(translated):
        if "_target_" in dataset:
            dataset |= _function("_target_", DATASETS)(dataset["_target_"])
    return translated


def _more_datasets(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the datasets beside the main one; what is no mapping is an error that validation reports."""
    found = tree.get("more_datasets")
    return [one for one in found.values() if isinstance(one, dict)] if isinstance(found, dict) else []


def _section(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Returns the mapping that holds a dotted key ({} if it is missing), and the last part of the key."""
    *sections, name = key.split(".")
    found: Any = tree
    for section in sections:
        found = found.get(section)
        if not isinstance(found, dict):  # null, or an error that validation reports
            return {}, name
    return found, name


def _set(tree: dict[str, Any], key: str, value: Any, given: str) -> None:
    """Sets a dotted key to a translated value; raises ValueError if the tree already has another value for it.

    `given` is the original setting, for the error message.
    """
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
            f"lr_scheduler._target_={value!r} is not a supported schedule; use one of {', '.join(SCHEDULES)}, or "
            "remove it and set lr_scheduler.lr_decay_style"
        )
    style = SCHEDULES[value]
    return {} if style is None else {"lr_scheduler.lr_decay_style": style}


def _loss(value: Any) -> dict[str, Any]:
    if value is None or str(value).rpartition(".")[2] in LOSSES:
        return {"loss_fn._target_": None}
    if value != FUSED_LOSS:
        raise ValueError(
            f"loss_fn._target_={value!r}: there is one loss, the token-normalised cross entropy (MaskedCrossEntropy); "
            f"remove it, or use {FUSED_LOSS} on a GPU"
        )
    return {"loss_fn._target_": value}


def _loader(value: Any) -> dict[str, Any]:
    if value is not None and str(value).rpartition(".")[2] != LOADER:
        raise ValueError(f"dataloader._target_={value!r}: only {LOADER} is supported; remove it, or use that")
    return {}


def _lora(value: Any) -> dict[str, Any]:
    if value not in (None, LORA):
        raise ValueError(f"peft.peft_fn={value!r}: only {LORA} is supported; remove it, or use that")
    return {}


def _function(key: str, built_in: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """Returns the rule of a key that names a function. A built-in function of the guide becomes None, the default."""

    def rule(value: Any) -> dict[str, Any]:
        package, _, name = str(value).rpartition(".")
        own = package.partition(".")[0] in ("nemo_automodel", "vlm_core") and name in built_in
        return {key: None if own or value is None else value}

    return rule


# For each key of the guide: a function from its value to the keys and values that replace it.
_RULES: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "model.torch_dtype": _dtype,
    "dataset._target_": _function("dataset._target_", DATASETS),
    "dataloader._target_": _loader,
    "dataloader.batch_size": _batch_size,
    "dataloader.collate_fn._target_": _function("dataloader.collate_fn._target_", COLLATES),
    "loss_fn._target_": _loss,
    "lr_scheduler._target_": _schedule,
    "peft.peft_fn": _lora,
    "checkpoint.save_consolidated": _consolidated,
}
