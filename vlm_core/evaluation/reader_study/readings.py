"""Scores what readers saved: which model they prefer, how often each is correct, and whether readers agree."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_core.evaluation.intervals import CaseBootstrap, Scored, difference, interval
from vlm_core.evaluation.kappa import kappa
from vlm_core.evaluation.metrics import rounded
from vlm_core.evaluation.result_names import MODEL
from vlm_core.files import read_json

PREFERENCES = {"first": 1, "equal": 0, "second": -1}  # as the page saves them
CORRECTNESS = ("wrong", "partly", "correct")


class Judgement(NamedTuple):
    """What one reader says about one question, unblinded."""

    reader: str
    item: int
    preference: int  # 1: the model is better, -1: the other one, 0: neither
    correctness: Mapping[str, int]  # by model: 0 wrong, 1 partly correct, 2 correct


def score_readings(key_file: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Returns preference, correctness and agreement, each with an interval over cases.

    Raises ValueError for a file of another study, and for a reader or a judgement that does not fit.
    """
    key = read_json(key_file)
    if "items" not in key:
        raise ValueError(f"{key_file} is not the key of a study: give the key.json that `review make` wrote")
    judgements = [judgement for file in files for judgement in _judgements(key, file)]
    if not judgements:
        raise ValueError("the files have no judgement")
    readers = sorted({judgement.reader for judgement in judgements})
    if len(readers) < len(files):
        raise ValueError(f"{len(files)} files are of {len(readers)} readers ({', '.join(readers)}): each needs a name")
    cases = [key["items"][judgement.item]["case_id"] for judgement in judgements]
    bootstrap = CaseBootstrap(cases, key["seed"])

    def mean(value: Callable[[Judgement], float]) -> Scored:
        return bootstrap.mean(np.array([value(judgement) for judgement in judgements], dtype=np.float64))

    nothing = Scored(0.0, mean(lambda judgement: 0.0).draws)
    return {
        "study": key["study"],
        "models": key["models"],
        "readers": readers,
        "judgements": len(judgements),
        "cases": bootstrap.cases,
        "preference": difference(mean(lambda judgement: judgement.preference), nothing),
        "preferred": {
            name: interval(mean(lambda judgement, sign=sign: float(judgement.preference == sign)))
            for name, sign in zip((*key["models"], "neither"), (1, -1, 0), strict=True)
        },
        "correctness": {
            model: {
                name: interval(mean(lambda j, model=model, level=level: float(j.correctness[model] == level)))
                for level, name in enumerate(CORRECTNESS)
            }
            for model in key["models"]
        },
        "agreement": _agreement(judgements, key),
    }


def _judgements(key: Mapping[str, Any], file: Path) -> list[Judgement]:
    """Returns the complete judgements of a reader's file."""
    saved = read_json(file)
    if not isinstance(saved, dict) or saved.get("study") != key["study"]:
        raise ValueError(f"{file} is not of the study {key['study']}")
    reader = str(saved.get("reader") or "").strip()
    if not reader:
        raise ValueError(f"{file} names no reader")
    return [_judgement(key, reader, entry, file) for entry in saved["judgements"]]


def _judgement(key: Mapping[str, Any], reader: str, entry: Mapping[str, Any], file: Path) -> Judgement:
    try:
        number, preference = int(entry["item"]), PREFERENCES[entry["preference"]]
        item, levels = key["items"][number], [CORRECTNESS.index(level) for level in entry["correctness"]]
        if number < 0 or len(levels) != 2:
            raise ValueError
    except (KeyError, ValueError, IndexError, TypeError):
        raise ValueError(f"{file}: the judgement {dict(entry)} is not one of this study") from None
    own, other = key["models"]
    in_order = (own, other) if item["first"] == MODEL else (other, own)
    sign = 1 if item["first"] == MODEL else -1
    return Judgement(reader, number, sign * preference, dict(zip(in_order, levels, strict=True)))


def _agreement(judgements: Sequence[Judgement], key: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns Cohen's kappa of each two readers. Correctness has quadratic weights, since its levels are ordered."""
    found = []
    for one, other in combinations(sorted({judgement.reader for judgement in judgements}), 2):
        of_one, of_other = ({j.item: j for j in judgements if j.reader == reader} for reader in (one, other))
        both = sorted(of_one.keys() & of_other.keys())
        if not both:
            continue
        pairs = [(of_one[item], of_other[item]) for item in both]
        cases = [key["items"][item]["case_id"] for item in both]
        levels = [(a.correctness[m], b.correctness[m]) for a, b in pairs for m in key["models"]]
        found.append(
            {
                "readers": [one, other],
                "items": len(both),
                "preference": kappa([(a.preference, b.preference) for a, b in pairs], cases, (-1, 0, 1)),
                "correctness": kappa(levels, [c for c in cases for _ in key["models"]], (0, 1, 2), "quadratic"),
            }
        )
    return found


def summary(result: Mapping[str, Any]) -> str:
    """Returns the scores of a study as lines for people."""
    own, other = result["models"]
    lines = [
        f"{len(result['readers'])} readers, {result['judgements']} judgements on {result['cases']} cases",
        *(f"prefers {name}: {_share(found)}" for name, found in result["preferred"].items()),
        f"preference for {own} over {other} (-1 to 1): {_number(result['preference'])}",
        *(f"{model} is correct: {_share(levels['correct'])}, wrong: {_share(levels['wrong'])}"
          for model, levels in result["correctness"].items()),
        *(f"{' and '.join(pair['readers'])} agree: kappa {_number(pair['preference'])} on preference, "
          f"{_number(pair['correctness'])} on correctness" for pair in result["agreement"]),
    ]  # fmt: skip
    return "\n".join(lines)


def _share(found: Mapping[str, float | None]) -> str:
    bounds = "" if found["low"] is None else f" [{found['low']:.0%}, {found['high']:.0%}]"
    return f"{found['value'] or 0:.0%}{bounds}"


def _number(found: Mapping[str, float | None]) -> str:
    if found["value"] is None:
        return "unknown, since both readers gave one answer only"
    bounds = "" if found["low"] is None else f" [{found['low']:+.2f}, {found['high']:+.2f}]"
    return f"{found['value']:+.2f}{bounds}"


def tags(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the tags that a registered version gets from a study."""
    own, other = result["models"]
    agreed = [pair["correctness"]["value"] for pair in result["agreement"] if pair["correctness"]["value"] is not None]
    return {
        "review_study": result["study"],
        "review_readers": str(len(result["readers"])),
        "review_preference": f"{_number(result['preference'])} against {other}",
        "review_correct": _share(result["correctness"][own]["correct"]),
    } | ({"review_agreement": f"{rounded(float(np.mean(agreed)))}"} if agreed else {})
