"""The report of a dataset: what is in it, what is wrong with it, and what its splits share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_core.cache import read_manifest
from vlm_core.config import Config
from vlm_core.data.closed_questions import YES_NO
from vlm_core.data.closed_statistics import closed_answers, closed_kinds
from vlm_core.data.conversation import numbered_text, turn_text
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.explained_row import ExplainedRow, cell_text
from vlm_core.data.medical_statistics import COUNTED
from vlm_core.data.mixture import shares_of
from vlm_core.data.rejects import named_rows
from vlm_core.data.row_rules import template_columns
from vlm_core.data.splits import SPLITS
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json, write_text
from vlm_core.pages.medical_pictures import medical_pictures
from vlm_core.pages.plots import histogram
from vlm_core.pages.render import render
from vlm_core.pages.thumbnails import data_uri, thumbnails

CLOSED_QUESTIONS = 30  # rows of the table, the most frequent first
OTHER_YES_NO = "other questions answered yes or no"
STORED_SIDE = 256  # pixels of an image beside an explained row
SAMPLES = 12  # examples that are shown, spread over a split
ROWS = {
    "rows": "Questions",
    "images": "Images",
    "cases": "Cases",
    "text_only": "Questions without an image",
    "duplicates": "Repeated rows",
    "contradictions": "Questions answered in two ways",
}
SPREADS = {
    "questions_an_image": "Questions per image",
    "images_a_case": "Images per case",
    "question_words": "Words per question",
    "answer_words": "Words per answer",
}


def write_data_report(config: Config, conversations: Path, path: Path, explained: Sequence[ExplainedRow] = ()) -> None:
    """Writes the page about a conversation cache; with `report.images` false it shows no image and no text.

    `explained` are rows that the page shows from their file to the model's input.
    """
    found = read_json(conversations / STATISTICS)
    plots = {title: _plot(found["splits"], name) for name, title in SPREADS.items()}
    page = render(
        Path(__file__).parent / "data_report.html",
        {"number": _number, "percent": lambda share: f"{share:.1%}", "named_rows": named_rows},
        config=config,
        found=found,
        fingerprint=conversations.name,
        rows=ROWS,
        spreads=SPREADS,
        medical_rows=COUNTED,
        closed_shown=CLOSED_QUESTIONS,
        closed=closed_table(conversations, with_texts=config.report.images),
        plots={title: plot for title, plot in plots.items() if plot},
        samples=samples(conversations) if config.report.images else [],
        **(medical_pictures(conversations) if config.report.images else {"windowed": [], "with_text": []}),
        columns=named_columns(config),
        datasets=of_datasets(config, found) if "datasets" in found else [],
        explained=[_explained(row) for row in explained] if config.report.images else [],
        rejects=_rejects(config, conversations),
    )
    write_text(path, page)


def of_datasets(config: Config, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each of several datasets: what it is, how large, and its share of the training questions."""
    sizes = [found["datasets"][name]["splits"]["train"]["rows"] for name in config.trained]
    shares = dict(zip(config.trained, shares_of(config, sizes), strict=True))
    return [
        {
            "name": name,
            "config": config.only(name),
            "columns": named_columns(config.only(name)),
            "share": shares.get(name),
            **found["datasets"][name],
        }
        for name in config.datasets
    ]


def named_columns(config: Config) -> dict[str, str]:
    """Returns `{content: column}` of the columns that are used, such as `{"image": "file"}`."""
    named = {
        key.removesuffix("_column"): v for key, v in config.dataset.model_dump().items() if key.endswith("_column")
    }
    if config.dataset.conversation_column:
        named |= {"question": None, "answer": None}
    if config.dataset.question_template is not None:
        named["question"] = " + ".join(template_columns(config.dataset.question_template))
    return {what: column for what, column in named.items() if column}


def _explained(row: ExplainedRow) -> dict[str, Any]:
    """Returns what the page shows of a row: texts, and images as data URIs."""
    return {
        "row": row,
        "cells": [(column, row.uses.get(column, ""), cell_text(cell)) for column, cell in row.cells.items()],
        "turns": [(turn["role"], numbered_text(turn)) for turn in row.conversation],
        "stored": [data_uri(image, STORED_SIDE) for image in row.images],
        "seen": [(data_uri(image, max(image.size)), image.size) for image in (row.view.images if row.view else [])],
    }


def _rejects(config: Config, conversations: Path) -> dict[str, Any]:
    """Returns the rejects by reason; without places and details, which have paths, if images may not be shown."""
    found = read_manifest(conversations)["rejects"]
    hidden = {} if config.report.images else {"about": "", "places": []}
    return {reason: {"about": "", **reject, **hidden} for reason, reject in found.items()}


def _plot(splits: Mapping[str, Any], name: str) -> str:
    series = {split: described[name]["histogram"] for split, described in splits.items() if described[name]}
    return histogram(series, SPREADS[name].lower()) if series else ""


def closed_table(conversations: Path, *, with_texts: bool) -> list[dict[str, Any]]:
    """Returns a row for each closed question that occurs, the most frequent first; numbered without texts.

    A row is `{question, train, validation (each rows, and a list of answers with their shares), commonest}`.
    """
    closed_questions = read_manifest(conversations)["closed_questions"]
    counted = read_json(conversations / STATISTICS)["closed_answers"]["questions"]
    rows: list[dict[str, Any]] = []
    for number, (kind, entry) in enumerate(zip(closed_kinds(closed_questions), counted, strict=True), start=1):
        answers = closed_answers(kind, closed_questions)
        named = [*answers, "another"] if with_texts else [*(f"answer {n + 1}" for n in range(len(answers))), "another"]
        rows.append(
            {
                "question": OTHER_YES_NO if kind == YES_NO else kind if with_texts else f"closed question {number}",
                **{split: _answer_shares(entry[split], named) for split in SPLITS},
                "commonest": entry["commonest"],
            }
        )
    asked = [row for row in rows if row["train"]["rows"] or row["validation"]["rows"]]
    return sorted(asked, key=lambda row: -row["train"]["rows"] - row["validation"]["rows"])


def _answer_shares(counts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns the number of rows of a split, and the share of each answer that occurs there."""
    given = zip(names, [*counts["answers"], counts["other"]], strict=True)
    return {"rows": counts["rows"], "answers": [(name, count / counts["rows"]) for name, count in given if count]}


def samples(conversations: Path) -> list[dict[str, Any]]:
    """Returns examples spread over both splits: `{split, case, images (data URIs), turns [(role, text)]}`."""
    found = []
    for split in SPLITS:
        dataset = ConversationDataset(conversations, split)
        step = max(1, len(dataset) // (SAMPLES // 2))
        rows = [dataset.conversations[i] for i in range(0, len(dataset), step)[: SAMPLES // 2]]
        small = thumbnails([d for row in rows for d in dataset.image_hashes(row)], dataset.encoded_image)
        found += [
            {
                "split": split,
                "case": row["case_id"],
                "dataset": row.get("dataset"),
                "images": [small[digest] for digest in dataset.image_hashes(row) if digest in small],
                "turns": [(turn["role"], turn_text(turn)) for turn in row["conversation"]],
            }
            for row in rows
        ]
    return found


def overview(conversations: Path) -> list[dict[str, Any]]:
    """Returns a table of the main counts, one row per split, of all datasets together and of each of several."""
    found = read_json(conversations / STATISTICS)
    apart = {
        f"{name}: {split}": described
        for name, dataset in found.get("datasets", {}).items()
        for split, described in dataset["splits"].items()
    }
    return [
        {
            "split": split,
            **{title: described[name] for name, title in ROWS.items()},
            **{f"{title} (mean)": described[name].get("mean", "") for name, title in SPREADS.items()},
            "Closed questions": f"{described['closed_share']:.1%}",
        }
        for split, described in (found["splits"] | apart).items()
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
