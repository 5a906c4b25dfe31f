"""Writes a recipe for the user's data: what was found in the data, and a model that fits this machine."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import yaml

from vlm_core.config import Config
from vlm_core.data.arrow_cache import read_batches
from vlm_core.data.case_ids import case_key
from vlm_core.data.medical_statistics import signs_of_personal_data
from vlm_core.data.splits import CASE, SPLITS, Splits
from vlm_core.data.tally import FEW_CASES
from vlm_core.recipe import RECIPES

CPU_RECIPE, GPU_RECIPE = "demo", "medgemma_4b_lora"
# The smallest card, in GB, on which GPU_RECIPE fits with these settings (docs/one-card.md), the fastest first.
SETTINGS: Final[Mapping[int, Mapping[str, Mapping[str, Any]]]] = {
    27: {},
    11: {"compute": {"gradient_checkpointing": True}},
    0: {"model": {"quantization": "nf4"}, "compute": {"gradient_checkpointing": True}},
}
SMALLEST_CARD = 8  # GB
FEW_SIZES = 3  # to list them
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
GPU_REASON = (
    "A GPU of {card:.0f} GB was found here: MedGemma 4B, which has seen medical images, with LoRA{how}. Accept its "
    "licence on the hub and set HF_TOKEN. google/gemma-3-4b-it trains with the same settings, and --plan shows what "
    "else fits."
)
HOW = {
    "quantization": " over weights in 4 bits (the extra `quantization`)",
    "gradient_checkpointing": " and gradient checkpointing",
}
TOO_SMALL = " No 4B model is known to fit below 8 GB: look at the plan, or take a smaller model."
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


def settings_for(card: float) -> Mapping[str, Mapping[str, Any]]:
    """Returns the settings, by section, with which GPU_RECIPE fits on a card of so many GB."""
    return next(settings for smallest, settings in SETTINGS.items() if card >= smallest)


def recipe_text(config: Config, name: str, found: Sequence[str], *, card: float | None) -> str:
    """Returns a commented recipe `name` that trains on the data of `config`, whose columns and splits are resolved.

    `found` has lines that say what the data holds; `card` is the GB of the smallest GPU, None without a GPU. Batch,
    warm-up and epochs are left out: they follow from the size of the data.
    """
    shipped = yaml.safe_load(
        (RECIPES / f"{CPU_RECIPE if card is None else GPU_RECIPE}.yaml").read_text(encoding="utf-8")
    )
    sections = {section: shipped[section] for section in TAKEN if section in shipped}
    for section, values in ({} if card is None else settings_for(card)).items():
        sections[section] = {**sections.get(section, {}), **values}
    model = sections.pop("model")
    lines = [
        *map(_comment, found),
        f"name: {name}",
        *_data_lines(config),
        CPU_REASON if card is None else _gpu_reason(card),
        *_section("model", model),
    ]
    for section, values in sections.items():
        lines += _section(section, values)
    lines += _section("registry", {"model_name": f"medpix-{name}"})
    return "\n".join(lines) + "\n" + (CPU_ENDING if card is None else "")


def _gpu_reason(card: float) -> str:
    settings = {key for values in settings_for(card).values() for key in values}
    how = "".join(words for key, words in HOW.items() if key in settings)
    return _comment(GPU_REASON.format(card=card, how=how) + (TOO_SMALL if card < SMALLEST_CARD - 0.5 else ""))


def _comment(text: str) -> str:
    return fill(text, 118, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def data_found(found: Mapping[str, Any]) -> list[str]:
    """Returns lines about the data, from its statistics: sizes, kinds of images, and signs of personal data."""
    train, validation = (found["splits"][split] for split in ("train", "validation"))
    images, medical = found["images"], found["medical"]
    lines = [
        f"{train['rows']:,} questions train and {validation['rows']:,} validate, on {images['count']:,} images of "
        f"{train['cases']:,} + {validation['cases']:,} cases."
    ]
    kinds = medical["counts"]["modality"] or images["formats"]
    sizes = ", ".join(images["sizes"]) if images["distinct_sizes"] <= FEW_SIZES else f"{images['distinct_sizes']} sizes"
    if images["count"]:
        lines.append(f"Images: {', '.join(f'{count:,} {kind}' for kind, count in kinds.items())}; {sizes} pixels.")
    if windows := medical["counts"]["window"]:
        shown = ", ".join(f"{words} ({count:,})" for words, count in windows.items())
        lines.append(f"Windows: {shown}. dataset.images.window sets another one; look at the report first.")
    if signs := signs_of_personal_data(found):
        lines.append(f"{signs:,} texts or images have signs of personal data: the report lists the kinds.")
    return lines


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
    other = held.model_dump(mode="json", exclude_defaults=True) | {"split": held.split}
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
