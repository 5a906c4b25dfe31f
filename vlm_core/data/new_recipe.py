"""Writes a recipe for the user's data: what was found in the data, and a model that fits this machine."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vlm_core.config import Config
from vlm_core.data.case_ids import case_key
from vlm_core.data.splits import CASE, SPLITS, Splits
from vlm_core.data.statistics import read_batches
from vlm_core.data.tally import FEW_CASES
from vlm_core.recipe import RECIPES

CPU_RECIPE, GPU_RECIPE = "demo", "medgemma_4b_lora"
LARGEST_SHARE = 0.4  # of the cases that validate, so that an evaluation has intervals
TAKEN = (
    "model",
    "optimizer",
    "freeze_config",
    "peft",
    "dataloader",
)  # of the shipped recipe; the rest follows the data
CPU_REASON = """\
# No GPU was found here: the tiny model of the demo, made on this machine, trains in full. It shows the whole path in
# minutes, and knows no medicine. On a machine with a GPU, take google/medgemma-4b-it (accept its licence on the hub) or
# google/gemma-3-4b-it with torch_dtype: bfloat16, lr: 1e-4, no freeze_config, and the lines of peft at the end."""
GPU_REASON = """\
# A GPU was found here: MedGemma 4B, which has seen medical images, with LoRA (accept its licence on the hub and set
# HF_TOKEN). google/gemma-3-4b-it trains with the same settings."""
DIVIDED = {"case": "no case is in both splits", "image": "no image is in both splits"}
UNPUBLISHED = "no published split: dataset.split_by draws one from the rows above"
CPU_ENDING = """\
# peft:   # LoRA, on a GPU
#   dim: 8
#   alpha: 32
#   exclude_modules: ["*vision*", "*lm_head*"]
"""


def share_for_intervals(config: Config, splits: Splits, conversations: Path) -> float | None:
    """Returns the share that makes so many cases validate that an evaluation has intervals, if the usual one does not.

    Returns None if it does, if the config sets another share, if there are too few cases or several datasets, or if
    the cache does not have the ids that the division goes by.
    """
    usual = type(config.dataset).model_fields["validation_share"].default
    if splits.more:
        return None
    if splits.split_by != CASE or config.dataset.validation_share != usual or config.dataset.pseudonymise_case_ids:
        return None
    batches = (batch for split in SPLITS for batch in read_batches(conversations / f"{split}.arrow"))
    cases = {case_key(case) for batch in batches for case in batch["case_id"].to_pylist()}
    drawn = sorted(map(splits.drawn, cases))
    if len(drawn) < FEW_CASES or drawn[FEW_CASES - 1] < usual:
        return None
    share = (math.floor(drawn[FEW_CASES - 1] * 100) + 1) / 100
    return share if share <= LARGEST_SHARE else None


def recipe_text(config: Config, name: str, found: str, *, gpu: bool) -> str:
    """Returns a commented recipe `name` that trains on the data of `config`, whose columns and splits are resolved.

    `found` says in a line what the data holds. Batch, warm-up and epochs are left out: they follow from
    the size of the data.
    """
    shipped = yaml.safe_load((RECIPES / f"{GPU_RECIPE if gpu else CPU_RECIPE}.yaml").read_text(encoding="utf-8"))
    sections = {section: shipped[section] for section in TAKEN if section in shipped}
    model = sections.pop("model")
    lines = [
        f"# {found}",
        f"name: {name}",
        *_data_lines(config),
        GPU_REASON if gpu else CPU_REASON,
        *_section("model", model),
    ]
    for section, values in sections.items():
        lines += _section(section, values)
    lines += _section("registry", {"model_name": f"medpix-{name}"})
    return "\n".join(lines) + "\n" + ("" if gpu else CPU_ENDING)


def _data_lines(config: Config) -> Iterator[str]:
    data = config.dataset.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data |= {key: getattr(config.dataset, key) for key in ("image_column", "case_column", "mode_column")}
    notes = {
        "case_column": "a patient, whose images stay in one split",
        "mode_column": "scores are reported by it",
        "split_by": DIVIDED.get(config.dataset.split_by, ""),
        "validation_share": f"an evaluation needs {FEW_CASES} cases to give intervals",
    }
    yield from _section("dataset", _with_absolute_path(data), notes)
    held = config.validation_dataset
    other = held.model_dump(mode="json", exclude_none=True) | {"split": held.split}
    yield from _section("validation_dataset", _with_absolute_path(other), {} if held.split else {"split": UNPUBLISHED})
    if config.more_datasets:
        more = {
            name: _with_absolute_path(other.model_dump(mode="json", by_alias=True, exclude_defaults=True))
            for name, other in config.more_datasets.items()
        }
        yield from _section("more_datasets", more)
    if config.mixture.temperature is not None:
        yield from _section("mixture", config.mixture.model_dump())


def _with_absolute_path(section: dict[str, Any]) -> dict[str, Any]:
    path = section.get("path_or_dataset")
    return section | ({"path_or_dataset": str(Path(path).resolve())} if path and Path(path).exists() else {})


def _section(name: str, values: dict[str, Any], notes: dict[str, str] | None = None) -> Iterator[str]:
    yield f"{name}:"
    for key, value in values.items():
        note = (notes or {}).get(key)
        yield f"  {key}: {_written(value)}" + (f"   # {note}" if note else "")


def _written(value: Any) -> str:
    # YAML 1.1 takes 1e-4 for a text and would quote it; the typed config makes a number of it.
    if isinstance(value, str) and re.fullmatch(r"\d+e-\d+", value):
        return value
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
