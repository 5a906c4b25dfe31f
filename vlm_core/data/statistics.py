"""Statistics of a dataset, from its conversation cache: counts, lengths, duplicates, overlap of the splits.

They hold numbers only, no text and no image of the data. So they are safe to send to trackers.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlm_core.data.case_ids import without_zeros
from vlm_core.data.closed_questions import closed_kind
from vlm_core.data.closed_statistics import ClosedStatistics
from vlm_core.data.conversation import images_of, last_question, questions_and_answers
from vlm_core.data.medical_statistics import burnt_in_text, medical_findings, medical_statistics
from vlm_core.data.personal_texts import OWN_CASE, personal_patterns
from vlm_core.data.rejects import counted_rows

STATISTICS = "statistics.json"
BINS = 20
COMMON = 12  # most frequent sizes, modes and formats to list
FEW_CASES = 10  # an evaluation gives no intervals for fewer cases
ONE_SIDED = 0.8  # report a finding if the commonest answer is right for at least this share of closed questions


@dataclass
class _Tally:
    """The counts of a split, made in one pass over it."""

    rows: int = 0
    text_only: int = 0
    closed: int = 0
    duplicates: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    questions_of: Counter[int] = field(default_factory=Counter)  # image -> questions about it
    images_of: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # case -> its images
    personal: Counter[str] = field(default_factory=Counter)  # kind of possible personal data -> rows
    rows_of_case: Counter[str] = field(default_factory=Counter)
    question_words: list[int] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)
    answers_to: dict[bytes, set[bytes]] = field(default_factory=lambda: defaultdict(set))  # question -> answers

    def add(self, row: dict[str, Any], closed_questions: Mapping[str, list[str]]) -> None:
        """Counts a row of the cache."""
        shown = images_of(row["conversation"])
        questions, answers = zip(*questions_and_answers(row["conversation"]), strict=True)
        self.rows += 1
        self.text_only += not shown
        self.turns[len(answers)] += 1
        self.modes[row["mode"]] += 1
        self.questions_of.update(set(shown))
        self.images_of[row["case_id"]].update(shown)
        self.rows_of_case[row["case_id"]] += 1
        self.personal.update(personal_patterns("\n".join((*questions, *answers))))
        self.question_words.append(len(questions[-1].split()))
        self.answer_words.append(len(answers[-1].split()))
        self.closed += closed_kind(questions[-1], answers[-1], closed_questions) is not None
        asked, answered = _hash([shown, questions]), _hash(answers)
        self.duplicates += answered in self.answers_to[asked]
        self.answers_to[asked].add(answered)

    def summary(self) -> dict[str, Any]:
        """Returns the split's entry in `statistics.json`."""
        return {
            "rows": self.rows,
            "text_only": self.text_only,
            "images": len(self.questions_of),
            "cases": len(self.images_of),
            "questions_an_image": spread(self.questions_of.values()),
            "images_a_case": spread(len(images) for images in self.images_of.values()),
            "question_words": spread(self.question_words),
            "answer_words": spread(self.answer_words),
            "answers_a_conversation": {str(n): count for n, count in sorted(self.turns.items())},
            "closed_share": round(self.closed / max(1, self.rows), 4),
            "duplicates": self.duplicates,
            "contradictions": sum(len(answers) > 1 for answers in self.answers_to.values()),
            "modes": dict(self.modes.most_common(COMMON)),
        }


def describe(directory: Path, manifest: Mapping[str, Any], cases: Mapping[str, str], named: int = 0) -> dict[str, Any]:
    """Returns the content of `statistics.json`; the cache's `manifest` has its rejects and closed questions.

    `cases` maps the normal form of each case id to the id in the cache; `named` rows have their case's id in a text.
    """
    tallies, closed = {}, ClosedStatistics(manifest["closed_questions"])
    for split, add_closed in (("train", closed.add_train), ("validation", closed.add_validation)):
        tallies[split] = _Tally()
        for batch in read_batches(directory / f"{split}.arrow"):
            for row in batch.to_pylist():
                tallies[split].add(row, manifest["closed_questions"])
                add_closed(*last_question(row["conversation"]))
    rejected, kept = sum(r["rows"] for r in manifest["rejects"].values()), sum(manifest["rows"].values())
    found = {
        "splits": {split: tally.summary() for split, tally in tallies.items()},
        "overlap": _overlap(tallies["train"], tallies["validation"], cases),
        "images": _images(directory / "images.arrow"),
        "medical": medical_statistics(
            fact for batch in read_batches(directory / "images.arrow") for fact in batch["medical"].to_pylist()
        ),
        "burnt_in_text": burnt_in_text(
            image
            for batch in read_batches(directory / "images.arrow")
            for image in zip(batch["medical"].to_pylist(), batch["shows_text"].to_pylist(), strict=True)
        ),
        "personal_texts": dict(sum((tally.personal for tally in tallies.values()), Counter({OWN_CASE: named}))),
        "closed_questions": len(manifest["closed_questions"]),
        "closed_answers": closed.summary(),
        "rejects": manifest["rejects"],
        "reject_share": rejected / (rejected + kept),
    }
    return found | {"findings": findings(found)}


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the batches of an Arrow stream, memory-mapped."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def spread(values: Iterable[int]) -> dict[str, Any]:
    """Returns mean, median, 95th percentile, minimum, maximum and a histogram of integers, of at most 20 bins.

    Bin i is `[edges[i], edges[i + 1])`. Returns {} if there are no values.
    """
    numbers = np.fromiter(values, dtype=np.int64)
    if not len(numbers):
        return {}
    width = max(1, -(-int(numbers.max() - numbers.min() + 1) // BINS))
    edges = np.arange(numbers.min(), numbers.max() + width + 1, width)
    counts, _ = np.histogram(numbers, edges)
    return {
        "mean": round(float(numbers.mean()), 2),
        "median": float(np.median(numbers)),
        "p95": float(np.percentile(numbers, 95)),
        "min": int(numbers.min()),
        "max": int(numbers.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _overlap(train: _Tally, validation: _Tally, case_ids: Mapping[str, str]) -> dict[str, Any]:
    cases = train.images_of.keys() & validation.images_of.keys()
    images = train.questions_of.keys() & validation.questions_of.keys()
    asked = train.answers_to.keys() & validation.answers_to.keys()
    return {
        "cases": {
            "shared": len(cases),
            "share_of_validation_cases": _share(len(cases), len(validation.images_of)),
            "share_of_validation_rows": _share(sum(validation.rows_of_case[c] for c in cases), validation.rows),
            "but_for_zeros": _alike_but_for_zeros(train.images_of, validation.images_of, case_ids),
        },
        "images": {
            "shared": len(images),
            "share_of_validation_images": _share(len(images), len(validation.questions_of)),
        },
        "questions": {"shared": len(asked)},  # about the same image, in the same words
    }


def _alike_but_for_zeros(train: Iterable[str], validation: Iterable[str], case_ids: Mapping[str, str]) -> int:
    """Returns how many validation case ids equal a training id except for leading zeros."""
    plain = {shown: without_zeros(key) for key, shown in case_ids.items()}
    known, trained = set(train), {plain[case] for case in train}
    return sum(plain[case] in trained for case in validation if case not in known)


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
    cases, images, questions = (found["overlap"][kind] for kind in ("cases", "images", "questions"))
    train, validation = found["splits"]["train"], found["splits"]["validation"]
    repeated, contradicted = (train[kind] + validation[kind] for kind in ("duplicates", "contradictions"))
    commonest = found["closed_answers"]["commonest"]
    possible = [
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


def _reasons(rejects: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the reasons and their row counts, the most frequent first."""
    ordered = sorted(rejects.items(), key=lambda item: -item[1]["rows"])
    return "; ".join(f"{reason} ({counted_rows(reject)})" for reason, reject in ordered)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _hash(value: Sequence[Any]) -> bytes:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
