"""Which parameters train: the parts that `freeze_config` names, by the family's real module names."""

from collections import defaultdict

from torch import nn

from vlm_core.config import FreezeConfig
from vlm_core.families import Family, part_of


def frozen_parts(config: FreezeConfig, family: Family) -> set[str]:
    """Returns the names of the parts that `config` freezes.

    Raises ValueError for an audio tower that would train: no data has audio, so it would get no gradient.
    """
    if not config.freeze_audio_tower and "audio_tower" in family.parts:
        raise ValueError("freeze_config.freeze_audio_tower=false: no example has audio; set it to true")
    return {name.removeprefix("freeze_") for name, frozen in config if frozen}


def freeze(model: nn.Module, frozen: set[str], family: Family) -> None:
    """Switches off the gradients of the parts named in `frozen`.

    A head that is tied to the embeddings is the same parameter, so it is frozen with them.
    """
    for name, parameter in model.named_parameters():
        if part_of(name, family) in frozen:
            parameter.requires_grad_(False)


def require_trainable(model: nn.Module) -> None:
    """Raises ValueError for a model of which nothing would train."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter is trainable: freeze_config freezes every part of this model, or peft's patterns adapt "
            "nothing outside the frozen ones; set one freeze_config entry to false or widen the patterns"
        )


def parameter_table(model: nn.Module, family: Family) -> str:
    """Returns a table of trainable and frozen parameters by part of the model, for people to read."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in model.named_parameters():
        part = part_of(name.removeprefix("base_model.model."), family) or "other"
        counts[part][0 if parameter.requires_grad else 1] += parameter.numel()
    rows = [*counts.items(), ("total", [sum(pair) for pair in zip(*counts.values(), strict=True)])]
    lines = [f"{'part':<16}{'trainable':>16}{'frozen':>16}"]
    return "\n".join(lines + [f"{part:<16}{trained:>16,}{frozen:>16,}" for part, (trained, frozen) in rows])
