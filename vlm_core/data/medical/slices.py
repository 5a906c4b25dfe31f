"""Chooses the slices of a volume that a model sees."""

import re
from collections.abc import Sequence

from vlm_core.data.medical.errors import MedicalImageError

MOST_SLICES = 85  # as in the training of MedGemma 1.5
EVERY, EVENLY, RANGE = (re.compile(p) for p in (r"every (\d+)", r"(\d+) evenly", r"(\d+):(\d+)"))


def choose(count: int, rule: str) -> list[int]:
    """Returns the indices, in order, of the slices that `rule` (`dataset.images.slices`) chooses from `count` slices.

    `auto` chooses all, or 85 evenly spaced. Raises MedicalImageError if another rule chooses more than 85, or none.
    """
    if rule == "auto":
        return _evenly(count, min(count, MOST_SLICES))
    if match := EVENLY.fullmatch(rule):
        chosen = _evenly(count, min(count, int(match[1])))
    elif match := EVERY.fullmatch(rule):
        chosen = list(range(0, count, int(match[1])))
    elif match := RANGE.fullmatch(rule):
        chosen = list(range(min(int(match[1]), count), min(int(match[2]), count)))
    else:
        chosen = list(range(count))
    return _bounded(chosen, f"dataset.images.slices={rule} takes {len(chosen)} of {count}")


def named(names: Sequence[Sequence[str]], wanted: Sequence[str]) -> list[int]:
    """Returns the indices of the slices with the `wanted` names; `names` has the names of each slice.

    Raises MedicalImageError if no slice has a name, or if several have it.
    """
    by_name: dict[str, list[int]] = {}
    for index, own in enumerate(names):
        for name in dict.fromkeys(own):
            by_name.setdefault(name, []).append(index)
    for name in wanted:
        found = by_name.get(name, [])
        if len(found) != 1:
            reason = "no slice has the name in the slice column" if not found else "several slices have one name"
            raise MedicalImageError(reason, f"slice {name!r} of {len(names)} slices")
    return _bounded([by_name[name][0] for name in wanted], f"the column names {len(wanted)} slices")


def _evenly(count: int, wanted: int) -> list[int]:
    """Returns indices spaced evenly, each in the middle of its part of the volume."""
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]


def _bounded(chosen: list[int], detail: str) -> list[int]:
    if not chosen:
        raise MedicalImageError("no slice of the volume is chosen", detail)
    if len(chosen) > MOST_SLICES:
        raise MedicalImageError(
            f"volume that would show more than {MOST_SLICES} slices",
            f"{detail}; set dataset.images.slices='{MOST_SLICES} evenly', or a range",
        )
    return chosen
