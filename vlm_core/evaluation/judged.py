"""Shows a judge's verdicts in the report of the evaluation that they are about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core.evaluation.judge import VERDICTS, percent, trust_in
from vlm_core.evaluation.result_names import NAMES, with_interval
from vlm_core.files import read_json, write_text
from vlm_core.pages.render import render
from vlm_core.run_directory import REPORT

JUDGED = "judge.json"
BEGIN, END = "<!-- verdicts of a judge -->", "<!-- end of the verdicts -->"


def answers_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what identifies the answers of an evaluation."""
    return {
        key: result.get(key) for key in ("model_fingerprint", "dataset_fingerprint", "generation", "seed", "compared")
    }


def judged_section(result: Mapping[str, Any], evaluation: Path) -> str:
    """Returns the part of the report with the verdicts in `evaluation`; empty without verdicts on these answers.

    It stands between two marks, so that verdicts can come later.
    """
    path = evaluation / JUDGED
    judged = read_json(path) if path.is_file() else {}
    if not judged or judged.get("answers") != answers_of(result):
        return f"{BEGIN}{END}"
    page = render(
        Path(__file__).parent / "page" / "judge.html",
        {"percent": percent, "change": lambda value: with_interval(value, sign="+")},
        judged=judged,
        verdicts=VERDICTS,
        trust=trust_in(judged),
        names={name: NAMES.get(name, name) for name in judged["scores"]},
    )
    return f"{BEGIN}{page}{END}"


def show_verdicts(result: Mapping[str, Any], evaluation: Path) -> bool:
    """Puts the verdicts into the report of an evaluation; returns whether it has a place for them."""
    path = evaluation / REPORT
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    write_text(path, before + judged_section(result, evaluation) + after)
    return True
