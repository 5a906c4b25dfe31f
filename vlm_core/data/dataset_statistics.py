"""Statistics of each of several datasets, and what the training of one shares with the validation of another."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlm_core.data.medical_statistics import burnt_in_text
from vlm_core.data.personal_texts import OWN_CASE
from vlm_core.data.tally import FEW_CASES, Tally, overlap

Tallies = Mapping[tuple[str, str], Tally]  # by dataset and split


def statistics_of_datasets(
    counts: Mapping[str, Mapping[str, Any]],
    tallies: Tallies,
    cases: Mapping[str, str],
    images: Sequence[tuple[str | None, bool]],
) -> dict[str, Any]:
    """Returns the entries `datasets` and `leaks` of `statistics.json`.

    `counts` is the entry `datasets` of a cache's manifest. `images` has for each image the facts of its header and
    whether it seems to show text.
    """
    return {
        "datasets": {name: _of_dataset(name, counts[name], tallies, images) for name in counts},
        "leaks": list(_leaks(tallies, list(counts), cases)),
    }


def _of_dataset(
    name: str, counts: Mapping[str, Any], tallies: Tallies, images: Sequence[tuple[str | None, bool]]
) -> dict[str, Any]:
    own = {split: tally for (dataset, split), tally in tallies.items() if dataset == name}
    shown = {image for tally in own.values() for image in tally.questions_of}
    personal = sum((tally.personal for tally in own.values()), Tally().personal)
    personal[OWN_CASE] += counts["named"]
    kept = sum(counts["rows"].values())
    return {
        "trains": counts["trains"],
        "splits": {split: tally.summary() for split, tally in own.items()},
        "images": len(shown),
        "personal_texts": {kind: count for kind, count in personal.items() if count},
        "burnt_in_text": burnt_in_text(images[image] for image in sorted(shown)),
        "reject_share": counts["rejected"] / (counts["rejected"] + kept),
        "left_out": counts["left_out"],
    }


def _leaks(tallies: Tallies, names: Sequence[str], cases: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    """Yields what a training split and a validation split have in common, for each pair that has something."""
    for validation in names:
        for train in names:
            if (train, "train") in tallies and (validation, "validation") in tallies:
                common = overlap(tallies[train, "train"], tallies[validation, "validation"], cases)
                if any(kind["shared"] for kind in common.values()) or common["cases"]["but_for_zeros"]:
                    yield {"train": train, "validation": validation, **common}


def dataset_findings(found: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Returns (whether it applies, the warning) for each possible warning about leaks and about few cases."""
    possible: list[tuple[Any, str]] = []
    for leak in found["leaks"]:
        possible += _of_leak(leak, external=not found["datasets"][leak["validation"]]["trains"])
    for name, dataset in found["datasets"].items():
        held = dataset["splits"].get("validation")
        possible.append(
            (
                held and held["cases"] < FEW_CASES,
                f"Validation of {name} has {held and held['cases']} cases: too few for intervals of its own (they need "
                f"{FEW_CASES}).",
            )
        )
    return possible


def _of_leak(leak: Mapping[str, Any], *, external: bool) -> list[tuple[Any, str]]:
    images, cases, questions = leak["images"], leak["cases"], leak["questions"]
    train, validation = leak["train"], leak["validation"]
    if external:
        together = f"Look at the scores of unseen cases, or leave these rows out of {train}."
    elif train == validation:
        together = "Set its split_by={} to keep each on one side."
    else:
        together = "Set split_by={} of both: what they share is then drawn for one side."
    return [
        (
            images["shared"],
            f"{images['share_of_validation_images']:.0%} of the validation images of {validation} "
            f"({images['shared']}) are also in the training of {train}: scores on them mean little. "
            + together.format("image, or case,"),
        ),
        (
            cases["shared"],
            f"{cases['share_of_validation_cases']:.0%} of the validation cases of {validation}, with "
            f"{cases['share_of_validation_rows']:.0%} of its validation questions, also have rows in the training of "
            f"{train}, by their ids. " + together.format("case"),
        ),
        (
            cases["but_for_zeros"],
            f"{cases['but_for_zeros']} validation cases of {validation} have the id of a training case of {train} with "
            "other leading zeros: if they are the same patients, write their ids the same way.",
        ),
        (
            questions["shared"],
            f"{questions['shared']} validation questions of {validation} are also in the training of {train}, word for "
            "word and about the same image.",
        ),
    ]
