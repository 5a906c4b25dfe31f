"""Writes a reader study: one offline page for readers, and the key that says which answer is whose."""

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
    `against`, which is another model of the evaluation or "reference". The page does not hold whose answer is whose.

    Raises ValueError if the evaluation lacks `against` or if its data is no longer in the cache.
    """
    result, records = read_json(evaluation / RESULT), pq.read_table(evaluation / PREDICTIONS).to_pylist()
    known = [REFERENCE, *sorted(result["compared"])]
    if against not in known:
        raise ValueError(f"--against {against}: {evaluation} has only {', '.join(known)}; evaluate with "
                         f"--evaluation.compare_with to add a model")  # fmt: skip
    chosen = draw(records, count, seed)
    generator = np.random.default_rng([seed, 1])
    firsts = [(MODEL, against)[int(generator.integers(2))] for _ in chosen]
    name = f"{result['dataset_fingerprint'][:8]}-{seed}-{len(chosen)}"
    key = {
        "study": name,
        "models": {MODEL: result["checkpoint"], against: result["compared"].get(against, REFERENCE)},
        "seed": seed,
        "items": [
            {"example_id": record["example_id"], "case_id": record["case_id"], "first": first}
            for record, first in zip(chosen, firsts, strict=True)
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    _write_page(name, chosen, firsts, against, _dataset(result), output / PAGE)
    write_json(output / KEY, key)
    return key


def _dataset(result: Mapping[str, Any]) -> ConversationDataset:
    cache = medpix_home() / "cache" / "conversations" / result["dataset_fingerprint"]
    if not cache.is_dir():
        raise ValueError(f"{cache}, the data of this evaluation, is gone: evaluate again with the same config")
    return ConversationDataset(cache, "validation")


def _write_page(
    name: str, chosen: Sequence[Record], firsts: Sequence[str], against: str, dataset: ConversationDataset, path: Path
) -> None:
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
    study = {"study": name, "images": list(images.values()), "items": items}
    write_text(path, render(Path(__file__).parent / "study.html", {}, study=study))


def _answers(record: Record, first: str, against: str) -> list[str]:
    own = record["prediction"]
    other = record["reference"] if against == REFERENCE else record[f"prediction_{against}"]
    return [own, other] if first == MODEL else [other, own]
