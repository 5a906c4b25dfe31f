"""Statistics of a dataset, from its conversation cache: counts, lengths, duplicates, overlap of the splits.

They hold numbers only, no text and no image of the data. So they are safe to send to trackers.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core.data.arrow_cache import read_batches
from vlm_core.data.closed_statistics import ClosedStatistics
from vlm_core.data.conversation import last_question
from vlm_core.data.dataset_statistics import dataset_findings, statistics_of_datasets
from vlm_core.data.medical_statistics import burnt_in_text, medical_findings, medical_statistics
from vlm_core.data.personal_texts import OWN_CASE
from vlm_core.data.rejects import counted_rows
from vlm_core.data.tally import COMMON, FEW_CASES, Tally, overlap

STATISTICS = "statistics.json"
ONE_SIDED = 0.8  # report a finding if the commonest answer is right for at least this share of closed questions


def describe(directory: Path, manifest: Mapping[str, Any], cases: Mapping[str, str], named: int = 0) -> dict[str, Any]:
    """Returns the content of `statistics.json`; the cache's `manifest` has its rejects and closed questions.

    `cases` maps the normal form of each case id to the id in the cache; `named` rows have their case's id in a text.
    """
    tallies, closed = {}, ClosedStatistics(manifest["closed_questions"])
    apart: dict[tuple[str, str], Tally] = defaultdict(Tally)  # of several datasets: by dataset and split
    for split, add_closed in (("train", closed.add_train), ("validation", closed.add_validation)):
        tallies[split] = Tally()
        for batch in read_batches(directory / f"{split}.arrow"):
            for row in batch.to_pylist():
                tallies[split].add(row, manifest["closed_questions"])
                if "dataset" in row:
                    apart[row["dataset"], split].add(row, manifest["closed_questions"])
                add_closed(*last_question(row["conversation"]))
    images = [
        image
        for batch in read_batches(directory / "images.arrow")
        for image in zip(batch["medical"].to_pylist(), batch["shows_text"].to_pylist(), strict=True)
    ]
    rejected, kept = sum(r["rows"] for r in manifest["rejects"].values()), sum(manifest["rows"].values())
    found = {
        "splits": {split: tally.summary() for split, tally in tallies.items()},
        "overlap": overlap(tallies["train"], tallies["validation"], cases),
        "images": _images(directory / "images.arrow"),
        "medical": medical_statistics(facts for facts, _ in images),
        "burnt_in_text": burnt_in_text(images),
        "personal_texts": dict(sum((tally.personal for tally in tallies.values()), Counter({OWN_CASE: named}))),
        "closed_questions": len(manifest["closed_questions"]),
        "closed_answers": closed.summary(),
        "rejects": manifest["rejects"],
        "reject_share": rejected / (rejected + kept),
    }
    if "datasets" in manifest:
        found |= statistics_of_datasets(manifest["datasets"], apart, tallies["train"], cases, images)
    return found | {"findings": findings(found)}


def _images(path: Path) -> dict[str, Any]:
    sizes, modes, formats, count, size, several = Counter(), Counter(), Counter(), 0, 0, 0
    for batch in read_batches(path):
        facts = zip(*(batch[name].to_pylist() for name in ("width", "height", "mode", "format")), strict=True)
        for width, height, mode, kind in facts:
            sizes[f"{width} x {height}"] += 1
            modes[mode] += 1
            formats[kind] += 1
        count += len(batch)
        size += batch["encoded"].nbytes
        several += sum(batch["several_frames"].to_pylist())
    counted = {"sizes": sizes, "modes": modes, "formats": formats}
    common = {name: dict(counter.most_common(COMMON)) for name, counter in counted.items()}
    return {"count": count, "bytes": size, "distinct_sizes": len(sizes), "several_frames": several, **common}


def findings(found: Mapping[str, Any]) -> list[str]:
    """Returns warnings about this data that affect its scores, the most serious first."""
    train, validation = found["splits"]["train"], found["splits"]["validation"]
    repeated, contradicted = (train[kind] + validation[kind] for kind in ("duplicates", "contradictions"))
    commonest = found["closed_answers"]["commonest"]
    possible = [
        *(dataset_findings(found) if "datasets" in found else _leaks_and_few_cases(found)),
        (
            (commonest or 0) >= ONE_SIDED,
            f"Always giving the commonest answer is right for {commonest or 0:.0%} of the closed validation "
            "questions: compare every accuracy with that.",
        ),
        (
            found["images"]["several_frames"],
            f"{found['images']['several_frames']} images have several frames: only the first is shown to the model.",
        ),
        (found["rejects"], f"{found['reject_share']:.2%} of the rows were rejected: {_reasons(found['rejects'])}."),
        (repeated, f"{repeated} rows repeat another row of their split: image, question and answer."),
        (contradicted, f"{contradicted} questions about an image have several different answers."),
    ]
    return [text for applies, text in [*possible, *medical_findings(found)] if applies]


def _leaks_and_few_cases(found: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Returns (whether it applies, the warning) for each possible warning about what both splits have in common."""
    cases, images, questions = (found["overlap"][kind] for kind in ("cases", "images", "questions"))
    validation = found["splits"]["validation"]
    return [
        (
            images["shared"],
            f"{images['share_of_validation_images']:.0%} of the validation images are also in training, with other "
            "questions: scores on them mean little. Set dataset.split_by=image, or case, to keep each in one split.",
        ),
        (
            cases["shared"],
            f"{cases['share_of_validation_cases']:.0%} of the validation cases, with "
            f"{cases['share_of_validation_rows']:.0%} of the validation questions, also have rows in training: look at "
            "the scores of unseen cases, or set dataset.split_by=case.",
        ),
        (
            cases["but_for_zeros"],
            f"{cases['but_for_zeros']} validation cases have the id of a training case with other leading zeros: if "
            "they are the same patients, write their ids the same way.",
        ),
        (
            validation["cases"] < FEW_CASES,
            f"Validation has {validation['cases']} cases: too few for intervals (an evaluation needs {FEW_CASES}).",
        ),
        (
            questions["shared"],
            f"{questions['shared']} validation questions are also in training, word for word and about the same image.",
        ),
    ]


def _reasons(rejects: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the reasons and their row counts, the most frequent first."""
    ordered = sorted(rejects.items(), key=lambda item: -item[1]["rows"])
    return "; ".join(f"{reason} ({counted_rows(reject)})" for reason, reject in ordered)
