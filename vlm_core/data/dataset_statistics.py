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
    train: Tally,
    cases: Mapping[str, str],
    images: Sequence[tuple[str | None, bool]],
) -> dict[str, Any]:
    """Returns the entries `datasets` and `leaks` of `statistics.json`.

    `counts` is the entry `datasets` of a cache's manifest, `train` has the training rows of all datasets. `images` has
    for each image the facts of its header and whether it seems to show text.
    """
    datasets = {name: _of_dataset(name, counts[name], tallies, images) for name in counts}
    for name, dataset in datasets.items():
        if (name, "validation") in tallies:
            dataset["overlap"] = overlap(train, tallies[name, "validation"], cases)
    return {"datasets": datasets, "leaks": list(_leaks(tallies, list(counts), cases))}


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
    for name, dataset in found["datasets"].items():
        if "overlap" in dataset:
            possible += _of_leaks(name, dataset, [leak for leak in found["leaks"] if leak["validation"] == name])
            held = dataset["splits"]["validation"]["cases"]
            few = f"Validation of {name} has {held} cases: too few for intervals of its own (they need {FEW_CASES})."
            possible.append((held < FEW_CASES, few))
    return possible


def _of_leaks(name: str, dataset: Mapping[str, Any], leaks: Sequence[Mapping[str, Any]]) -> list[tuple[Any, str]]:
    """Returns the possible warnings about what the validation of a dataset shares with training."""
    images, cases, questions = (dataset["overlap"][kind] for kind in ("images", "cases", "questions"))
    of = {kind: [leak["train"] for leak in leaks if leak[kind]["shared"]] for kind in ("images", "cases", "questions")}
    by_chance = "" if of["cases"] in ([], [name]) else " Patients of two places may have one id by chance."
    return [
        (
            images["shared"],
            f"{images['share_of_validation_images']:.0%} of the validation images of {name} ({images['shared']}) are "
            f"also in the training of {', '.join(of['images'])}: scores on them mean little. "
            f"{_remedy(name, dataset, of['images'], 'image, or case,')}",
        ),
        (
            cases["shared"],
            f"{cases['share_of_validation_cases']:.0%} of the validation cases of {name}, with "
            f"{cases['share_of_validation_rows']:.0%} of its validation questions, have the ids of cases in the "
            f"training of {', '.join(of['cases'])}.{by_chance} {_remedy(name, dataset, of['cases'], 'case')}",
        ),
        (
            cases["but_for_zeros"],
            f"{cases['but_for_zeros']} validation cases of {name} have the id of a training case with other leading "
            "zeros: if they are the same patients, write their ids the same way.",
        ),
        (
            questions["shared"],
            f"{questions['shared']} validation questions of {name} are also in the training of "
            f"{', '.join(of['questions'])}, word for word and about the same image.",
        ),
    ]


def _remedy(name: str, dataset: Mapping[str, Any], trained: Sequence[str], rule: str) -> str:
    """Returns what to do about images or cases of the validation of a dataset that are also in the training of some."""
    if not dataset["trains"]:
        return f"Look at the scores of unseen cases, or leave these rows out of {', '.join(trained)}."
    if list(trained) == [name]:
        return f"Set its split_by={rule} to keep each on one side."
    return f"Set split_by={rule} of all these datasets: what they share is then drawn for one side."
