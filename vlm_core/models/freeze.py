"""Which parameters train: the parts that `freeze_config` names, by the family's real module names."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from vlm_core.config import FreezeConfig
from vlm_core.families import Family, part_of
from vlm_core.models.quantize import number_of


class Counts(NamedTuple):
    """Numbers of parameters."""

    trainable: int
    frozen: int


PartCounts = Mapping[str, Counts]  # by part of the model


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


def count_parameters(model: nn.Module, family: Family) -> PartCounts:
    """Returns how many parameters train and how many are frozen, by part of the model."""
    counts: dict[str, Counts] = dict.fromkeys([*family.parts, "other"], Counts(0, 0))
    for name, parameter in model.named_parameters():
        part = part_of(name.removeprefix("base_model.model."), family) or "other"
        trained, frozen = counts[part]
        more = number_of(parameter)
        counts[part] = Counts(trained + more, frozen) if parameter.requires_grad else Counts(trained, frozen + more)
    return {part: pair for part, pair in counts.items() if any(pair)}


def total(parts: PartCounts) -> Counts:
    """Returns the sum over all parts."""
    return Counts(sum(part.trainable for part in parts.values()), sum(part.frozen for part in parts.values()))


def parameter_tree(parts: PartCounts) -> dict[str, dict[str, int]]:
    """Returns `{part: {trainable, frozen}}` with the total as one more part: what `parameters.json` holds."""
    return {part: counts._asdict() for part, counts in {**parts, "total": total(parts)}.items()}


def parameter_table(parts: PartCounts) -> str:
    """Returns a table of trainable and frozen parameters by part of the model, for people to read."""
    lines = [f"{'part':<16}{'trainable':>16}{'frozen':>16}"]
    rows = {**parts, "total": total(parts)}
    return "\n".join(lines + [f"{part:<16}{trained:>16,}{frozen:>16,}" for part, (trained, frozen) in rows.items()])
