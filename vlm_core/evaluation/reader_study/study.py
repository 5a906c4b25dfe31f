"""Writes a reader study: one offline page for readers, and the key that says which answer is whose."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.evaluation.reader_study.draw import Record, draw
from vlm_core.evaluation.result_names import MODEL
from vlm_core.files import read_json, write_json, write_text
from vlm_core.home import medpix_home
from vlm_core.pages.render import render
from vlm_core.pages.thumbnails import thumbnails
from vlm_core.run_directory import PREDICTIONS, RESULT

REFERENCE = "reference"
PAGE, KEY = "study.html", "key.json"
SIDE = 768  # pixels of the longer side of an image, if all fit


def write_study(evaluation: Path, against: str, count: int, seed: int, output: Path) -> dict[str, Any]:
    """Writes `study.html` and `key.json` to `output` and returns the key.

    The page shows each question with its images and two answers in random order: the evaluated model's and that of
    `against`: another model of the evaluation, or "reference". The page does not say whose answer is whose.

    Raises ValueError if the evaluation has no answers of `against`, or if the cache no longer has its images.
    """
    if count < 1:
        raise ValueError(f"--questions {count}: a study needs at least one question")
    result, records = read_json(evaluation / RESULT), pq.read_table(evaluation / PREDICTIONS).to_pylist()
    known = [REFERENCE, *sorted(result["compared"])]
    if against not in known:
        raise ValueError(f"--against {against}: {evaluation} has only {', '.join(known)}; evaluate with "
                         f"--evaluation.compare_with to add a model")  # fmt: skip
    chosen = draw(records, count, seed)
    generator = np.random.default_rng([seed, 1])
    firsts = [(MODEL, against)[int(generator.integers(2))] for _ in chosen]
    key = {
        "models": {MODEL: result["checkpoint"], against: result["compared"].get(against, REFERENCE)},
        "seed": seed,
        "items": [
            {"example_id": record["example_id"], "case_id": record["case_id"], "first": first}
            for record, first in zip(chosen, firsts, strict=True)
        ],
    }
    study = _study(chosen, firsts, against, _dataset(result))
    named = {"study": _name(key, study["items"])}
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / PAGE, render(Path(__file__).parent / "study.html", {}, study=named | study))
    write_json(output / KEY, named | key)
    return named | key


def _name(*content: Any) -> str:
    """Returns a name that no other study has: browsers keep choices by it, and readings are scored by it."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _dataset(result: Mapping[str, Any]) -> ConversationDataset:
    cache = medpix_home() / "cache" / "conversations" / result["dataset_fingerprint"]
    if not cache.is_dir():
        raise ValueError(f"the cache no longer has the data of this evaluation ({cache}): evaluate again with the same "
                         f"config")  # fmt: skip
    return ConversationDataset(cache, "validation")


def _study(
    chosen: Sequence[Record], firsts: Sequence[str], against: str, dataset: ConversationDataset
) -> dict[str, Any]:
    """Returns what the page shows: `images` as data URIs, and `items` with question, answers and image numbers."""
    digests = list(dict.fromkeys(digest for record in chosen for digest in record["image_sha256"]))
    images = thumbnails(digests, dataset.encoded_image, largest=SIDE)
    if missing := len(digests) - len(images):
        raise ValueError(f"{missing} images do not fit into one page; ask fewer questions with --questions")
    number = {digest: index for index, digest in enumerate(images)}
    items = [
        {
            "images": [number[digest] for digest in record["image_sha256"]],
            "question": record["question"],
            "reference": None if against == REFERENCE else record["reference"],
            "answers": _answers(record, first, against),
        }
        for record, first in zip(chosen, firsts, strict=True)
    ]
    return {"images": list(images.values()), "items": items}


def _answers(record: Record, first: str, against: str) -> list[str]:
    own = record["prediction"]
    other = record["reference"] if against == REFERENCE else record[f"prediction_{against}"]
    return [own, other] if first == MODEL else [other, own]
