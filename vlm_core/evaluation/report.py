"""The report of an evaluation: one HTML file that needs no network, for physicians and engineers."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlm_core.config import Config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.evaluation.judged import judged_section
from vlm_core.evaluation.metrics import METRICS, PRIMARY, Use, metrics_for, names
from vlm_core.evaluation.result_names import (
    COMMONEST,
    DATASET,
    MODEL,
    NAMES,
    SHUFFLED,
    UNSEEN,
    p_value,
    with_interval,
)
from vlm_core.files import write_text
from vlm_core.pages.plots import bars, dots, losses, reliability, risk_coverage
from vlm_core.pages.render import render
from vlm_core.pages.thumbnails import thumbnails

CLOSED = "closed_accuracy"
HEADLINE_ROWS = 100  # closed questions from which their accuracy is a headline


def write_report(
    config: Config,
    result: dict[str, Any],
    records: Sequence[dict[str, Any]],
    dataset: ConversationDataset,
    history: Mapping[str, Sequence[dict[str, Any]]],
    path: Path,
) -> None:
    """Writes the page that shows `result` and the `predictions` records; `history` has the losses of the training.

    If `report.images` is false, the page has numbers only: no image, question, reference or answer.
    """
    page = render(
        Path(__file__).parent / "page" / "report.html",
        {"interval": with_interval, "change": partial(with_interval, sign="+"), "p_value": p_value},
        config=config,
        external=[name for name in config.validated if name not in config.trained],
        result=result,
        names={name: NAMES.get(name, name) for name in result["scores"]},
        all_names=NAMES,
        metrics=METRICS,
        primary=METRICS[PRIMARY],
        summary=_summary(result),
        overview=dots({NAMES.get(n, n): s[PRIMARY] for n, s in result["scores"].items()}, METRICS[PRIMARY].words),
        headlines=_headlines(result),
        changes=_changes(result),
        compared=names(Use.COMPARED | Use.DECIDES),
        in_groups=names(Use.GROUPS),
        plots=_plots(result, history),
        confidence=_confidence(result.get("calibration")),
        judged=judged_section(result, path.parent),
        browse=_browse(records, list(result["scores"]), dataset) if config.report.images else None,
    )
    write_text(path, page)


def _summary(result: Mapping[str, Any]) -> str:
    """Returns the result in one sentence: of closed questions if there are any, and about unseen cases if possible."""
    unseen = result["groups"]["case"].get(UNSEEN)
    basis = unseen or result
    metric = PRIMARY if basis["scores"][MODEL][CLOSED]["value"] is None else CLOSED

    def amount(variant: str) -> str:
        value = basis["scores"][variant][metric]["value"]
        return f"{100 * value:.0f} %" if metric == CLOSED else f"{value:.2f}"

    cases = f"{basis['cases']:,} case{'s' if basis['cases'] > 1 else ''}{' that it has never seen' if unseen else ''}"
    own = f"answers {amount(MODEL)} of the closed questions right"
    if metric != CLOSED:
        own = f"has a {METRICS[metric].words} of {amount(MODEL)}"
    shuffled = f"; shown another case's image, {amount(SHUFFLED)}" if SHUFFLED in basis["scores"] else ""
    return f"On {cases}, this model {own}{shuffled}; the commonest answer gets {amount(COMMONEST)}."


def _headlines(result: dict[str, Any]) -> dict[str, str]:
    """Returns `{metric: explanation}` of the cards at the top; closed accuracy only with enough closed questions."""
    headlines = {metric.name: metric.about for metric in metrics_for(Use.HEADLINE)}
    closed = (result["visual_reliance"] or {}).get("closed_examples", 0)
    if closed < HEADLINE_ROWS:
        return {name: about for name, about in headlines.items() if name != CLOSED}
    return headlines | {CLOSED: f"{closed} questions with few possible answers"}


def _changes(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the differences between the model and the others, and between the model and itself under the controls."""
    return result["differences"] | result["control_differences"]


def _plots(result: dict[str, Any], history: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, str]:
    """Returns `{title: SVG}`."""
    by_dataset = result["groups"].get(DATASET)
    plots = {} if by_dataset is None else {f"{METRICS[PRIMARY].title} by dataset": _by_group(by_dataset)}
    plots |= {
        f"{METRICS[PRIMARY].title} by mode": _by_group(result["groups"]["mode"]),
        f"{METRICS[PRIMARY].title} by length of the reference": _by_group(result["groups"]["length"]),
    }
    if history["training"]:
        plots["Loss"] = losses(history["training"], history["validation"])
    return plots


def _confidence(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns `{title: SVG}` of the plots about confidence, none if it is unknown."""
    if not found:
        return {}
    return {
        "Share of right answers by confidence": reliability(found["bins"]),
        "Errors if doubtful questions are left out": risk_coverage(found["curve"]),
    }


def _by_group(groups: Mapping[str, Any]) -> str:
    shown = next(iter(groups.values()))["scores"]
    series = {NAMES.get(n, n): [group["scores"][n][PRIMARY] for group in groups.values()] for n in shown}
    labels = [f"{name}\n(n = {group['examples']:,})" for name, group in groups.items()]
    return bars(labels, series, METRICS[PRIMARY].words)


def _browse(records: Sequence[dict[str, Any]], variants: Sequence[str], dataset: ConversationDataset) -> dict[str, Any]:
    """Returns what the table of questions shows, in the short form that the page's script reads."""
    digests = list(dict.fromkeys(digest for record in records for digest in record["image_sha256"]))
    images = thumbnails(digests, dataset.encoded_image)
    number = {digest: index for index, digest in enumerate(images)}
    questions = [
        {
            "id": record["example_id"],
            "case": record["case_id"],
            "mode": record["mode"],
            "dataset": record.get(DATASET, ""),
            "images": [number.get(digest, -1) for digest in record["image_sha256"]],
            "question": record["question"],
            "reference": record["reference"],
            "answers": [_answer(record, "" if name == MODEL else f"_{name}") for name in variants],
        }
        for record in records
    ]
    return {
        "images": list(images.values()),
        "left_out": len(digests) - len(images),
        "variants": [{"key": name, "name": NAMES.get(name, name)} for name in variants],
        "metrics": [metric.words for metric in metrics_for(Use.ANSWERS)],
        "modes": sorted({record["mode"] for record in records}),
        "datasets": sorted({record[DATASET] for record in records if DATASET in record}),
        "questions": questions,
    }


def _answer(record: dict[str, Any], suffix: str) -> list[Any]:
    """Returns `[text, right or None, log-probability per token or None, contradicted categories, scores...]`.

    The scores are those of the metrics with Use.ANSWERS.
    """
    total = record[f"logprob{suffix}"]
    logprob = None if total is None else round(total / max(1, record[f"reference_tokens{suffix}"]), 3)
    scores = [record[f"{name}{suffix}"] for name in names(Use.ANSWERS)]
    contradicts = ", ".join(record[f"contradicts{suffix}"])
    return [record[f"prediction{suffix}"], record[f"right{suffix}"], logprob, contradicts, *scores]
