"""Finds the columns of a table: named in the config, or recognised by common names."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from vlm_core.config import AUTO, DatasetConfig
from vlm_core.data.examples import Columns
from vlm_core.data.image_cells import cells_of
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.row_readers import Rows
from vlm_core.data.row_rules import Where, template_columns

# MedPix-VQA's own name first. Then names that mean the same, in order of preference: of several in one group, none is
# preferred to another. Written without the signs and capital letters that people put into them.
MEDPIX_NAMES = {"image": "image_id", "question": "question", "answer": "answer", "case": "case_id", "mode": "mode"}
COMMON_NAMES = {
    "image": (
        "image images imageid imagepath imagefile imagename imagefilename img imgs imgid imgpath imgname imgfile",
        "filename filepath file path",
    ),
    "question": ("question questions questiontext", "prompt query instruction"),
    "answer": (
        "answer answers answertext",
        "response reply",
        "completion label target output caption groundtruth reference",
    ),
    "case": (
        "patient patientid patientnumber pid mrn subject subjectid person personid",
        "case caseid casenumber",
        "study studyid studyuid studyinstanceuid exam examid",
    ),
    "mode": ("mode", "modality imagemodality imagingmodality"),
}
CONVERSATIONS = ("messages", "conversations", "conversation")
# Columns that belong to the question of a row in the formats of alpaca and ms-swift, whatever holds the rest of it.
PARTS_OF_QUESTION = ("input", "history", "system")
FIRST_ROWS = 64
TRIED_ROWS = 8  # rows checked to decide which of several candidate columns holds images


def resolve_columns(config: DatasetConfig, rows: Rows, folder: ImageFolder) -> tuple[Columns, list[str]]:
    """Returns (the columns of `rows`, notes for the log about those that the config does not name).

    A name in the config must match exactly. Raises ValueError for a missing or duplicate column, and if no column or
    several columns fit; the error lists the columns and the settings to choose one.
    """
    name = config.path_or_dataset
    _refuse_twins(rows.columns, name)
    wanted = {key: getattr(config, f"{key}_column") for key in (*MEDPIX_NAMES, "conversation")}
    if config.conversation_column:
        wanted |= {"question": None, "answer": None}
    if config.question_template is not None:
        wanted["question"] = None
    _require_named(wanted, rows.columns, name)
    rules = _rules(config, rows.columns)
    found = {key: column for key, column in wanted.items() if column != AUTO}
    for key in (key for key, column in wanted.items() if column == AUTO):
        free = [column for column in rows.columns if column not in found.values()]
        optional = key in ("case", "mode") or (key == "image" and config.conversation_column is not None)
        found[key] = _common(key, free, name, rows, folder, optional=optional)
        if key == "question":
            _require_whole_question(found[key], free, rows, name)
    found |= _image_columns(config, rows.columns)
    guessed = {key: found[key] for key, column in wanted.items() if column == AUTO}
    columns = Columns(**found, **rules)
    unused = [column for column in rows.columns if column not in columns.used]
    if not unused and all(column == MEDPIX_NAMES[key] for key, column in guessed.items()):
        return columns, []
    listed = ", ".join(f"{key}={column or 'null'}" for key, column in guessed.items())
    others = f"; not used: {', '.join(unused)}" if unused else ""
    return columns, [f"columns of {name}: {listed}{others}"] if guessed else []


def _rules(config: DatasetConfig, columns: Sequence[str]) -> dict[str, Any]:
    """Returns the rules of the config that name columns; raises ValueError if one is missing."""
    where = Where.of(config.where)
    named = {"where": where.columns, "question_template": template_columns(config.question_template)}
    for key, used in named.items():
        if missing := [column for column in used if column not in columns]:
            raise ValueError(
                f"dataset {config.path_or_dataset!r} lacks the column {', '.join(missing)} of dataset.{key}: it has "
                f"{', '.join(columns)}"
            )
    return {"where": where, "template": config.question_template}


def _image_columns(config: DatasetConfig, columns: Sequence[str]) -> dict[str, str | None]:
    """Returns the columns that `dataset.images` names; raises ValueError if one is missing."""
    named = {"modality": config.images.modality_column, "slice": config.images.slice_column}
    for key, column in named.items():
        if column is not None and column not in columns:
            raise ValueError(
                f"dataset {config.path_or_dataset!r} lacks the column {column} of dataset.images.{key}_column: it has "
                f"{', '.join(columns)}"
            )
    return named


def _common(
    key: str, columns: Sequence[str], name: str, rows: Rows, folder: ImageFolder, *, optional: bool
) -> str | None:
    """Returns the one column that fits `key`; None if none fits and it is optional. Raises ValueError otherwise."""
    if MEDPIX_NAMES[key] in columns and (key != "image" or _shows_image(MEDPIX_NAMES[key], rows, folder)):
        return MEDPIX_NAMES[key]
    groups = [group.split() for group in COMMON_NAMES[key]]
    found = [[column for column in columns if _plain(column) in group] for group in groups]
    if key == "image":
        found = _with_images(found, rows, folder)
    for candidates in (group for group in found if group):
        if len(candidates) > 1:
            raise ValueError(
                f"dataset {name!r}: the {key} may be in the column {' or '.join(candidates)}; set "
                f"dataset.{key}_column to one of them{' or to null' if optional or key == 'image' else ''}"
            )
        return candidates[0]
    if optional:
        return None
    raise ValueError(_missing(key, name, rows.columns, groups))


def _require_whole_question(column: str | None, columns: Sequence[str], rows: Rows, name: str) -> None:
    """Raises ValueError if an automatically chosen question may continue in another column that is not empty."""
    others = [c for c in columns if c != column and _plain(c) in PARTS_OF_QUESTION]
    batch = next((batch for _, batch in rows.batches(others, 0, FIRST_ROWS)), []) if others else []
    for other in others:
        if any(row[other] for row in batch):
            raise ValueError(
                f"dataset {name!r}: the question may be in the column {column} and continue in {other}, which would "
                f"not be read; join them with dataset.question_template='{{{column}}} {{{other}}}', or set "
                f"dataset.question_column={column} to leave {other} out"
            )


def _with_images(found: list[list[str]], rows: Rows, folder: ImageFolder) -> list[list[str]]:
    """Returns only the columns whose first rows lead to an image, or MedPix-VQA's own column."""
    if sum(map(len, found)) < 2:
        return found
    shown = [[column for column in group if _shows_image(column, rows, folder)] for group in found]
    own = [[column for column in group if column == MEDPIX_NAMES["image"]] for group in found]
    return shown if any(shown) else own if any(own) else found


def _shows_image(column: str, rows: Rows, folder: ImageFolder) -> bool:
    """Returns whether one of the first rows leads to an image."""
    batch = next((batch for _, batch in rows.batches([column], 0, TRIED_ROWS)), [])
    return not batch or any(map(_leads_to_image(folder), (row[column] for row in islice(batch, TRIED_ROWS))))


def _leads_to_image(folder: ImageFolder) -> Callable[[object], bool]:
    def leads(cell: object) -> bool:
        cells = cells_of(cell)
        try:
            return bool(cells) and all(folder.leads_to_image(one) for one in cells)
        except ValueError:
            return False

    return leads


def _refuse_twins(columns: Sequence[str], name: str) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise ValueError(f"dataset {name!r} has two columns named {twice[0]!r}; rename or delete one of them")


def _require_named(wanted: dict[str, str | None], columns: Sequence[str], name: str) -> None:
    missing = {key: column for key, column in wanted.items() if column not in (None, AUTO, *columns)}
    if not missing:
        return
    near = {column: difflib.get_close_matches(column or "", columns, n=1, cutoff=0.7) for column in missing.values()}
    meant = "".join(f"; did you mean {close[0]!r}?" for close in near.values() if close)
    keys = ", ".join(f"dataset.{key}_column" for key in missing)
    raise ValueError(
        f"dataset {name!r} lacks the column {', '.join(map(str, missing.values()))}: it has {', '.join(columns)}{meant}"
        f"; set {keys} to the name that it has there (image, case and mode may be null)"
    )


def _missing(key: str, name: str, columns: Sequence[str], groups: list[list[str]]) -> str:
    whole = [column for column in columns if _plain(column) in CONVERSATIONS]
    if key in ("question", "answer") and whole:
        remedy = f"set dataset.conversation_column={whole[0]} if it holds whole conversations"
    else:
        remedy = f"set dataset.{key}_column to the name that it has there" + (
            ", or to null to train on text alone" if key == "image" else ""
        )
    names = ", ".join(name for group in groups for name in group[:3])
    return f"dataset {name!r} lacks the column of the {key} (such as {names}): it has {', '.join(columns)}; {remedy}"


def _plain(column: str) -> str:
    return re.sub(r"[\W_]+", "", column).casefold()
