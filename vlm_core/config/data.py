"""The sections about data: its source, its splits, and how it is read."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from vlm_core.config.base import Names, Pairs, PositiveInt, Revision, Section, Share, Target

AUTO = "auto"  # the data determines this setting
_COMMON = "auto = MedPix-VQA's name or another common one (the log says which)"

TEMPLATE_FIELD = re.compile(r"\{([^{}\n]+)\}")  # {COLUMN}

WINDOW_PRESETS = ("brain", "subdural", "stroke", "lung", "mediastinum", "bone", "soft_tissue", "liver", "angio")
WINDOW_WORDS = ("auto", "header", "none", "percentiles", "ct_rgb", *WINDOW_PRESETS)


def _window(value: Any) -> Any:
    """Returns a window as text: LEVEL/WIDTH, also for a mapping {level, width}, or the name of a preset."""
    if value is None:
        return "none"
    if isinstance(value, dict) and value.keys() == {"level", "width"}:
        value = f"{value['level']}/{value['width']}"
    text = re.sub(r"[\s_-]+", "_", str(value).strip().lower()) if not isinstance(value, dict | list) else ""
    numbers = re.fullmatch(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", str(value).replace(" ", ""))
    if numbers and float(numbers[2]) >= 1:
        return f"{float(numbers[1]):g}/{float(numbers[2]):g}"
    if text not in WINDOW_WORDS:
        raise ValueError(
            f"{value!r} is not a window; write LEVEL/WIDTH (width 1 at least) or {', '.join(WINDOW_WORDS)}"
        )
    return text


def _slices(value: str) -> str:
    """Checks a rule for slices, and returns it with single spaces."""
    text = " ".join(value.split())
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    span = re.fullmatch(r"(\d+):(\d+)", text)
    known = text in ("auto", "all") or re.fullmatch(r"every \d+|\d+ evenly", text) or span
    if not known or (not span and 0 in numbers) or (span and numbers[0] >= numbers[1]):
        raise ValueError(f"{value!r} is not a rule for slices; write all, 'every 4', '16 evenly', 10:30 or auto")
    return text


def _weight(value: float) -> float:
    """Checks how often a dataset is drawn."""
    if not 0 < value < math.inf:
        raise ValueError("a weight must be above 0 and finite; to leave a dataset out, remove it")
    return value


def _template(value: str) -> str:
    """Checks a template of questions."""
    if not TEMPLATE_FIELD.search(value):
        raise ValueError(f"{value!r} names no column; write {{COLUMN}} in the place of each column's text")
    return value


class ImagesConfig(Section):
    """How images with more than 8 bits (DICOM, NIfTI, deep PNG and TIFF) become 8-bit pictures."""

    window: Annotated[str, BeforeValidator(_window)] = Field(
        "auto",
        description="auto (by modality), header, none, percentiles, ct_rgb, LEVEL/WIDTH such as 40/80, or brain, "
        "subdural, stroke, lung, mediastinum, bone, soft_tissue, liver, angio.",
    )
    modality_column: str | None = Field(
        None, description="Column of the modality (CT, MR, ...), for images without one in their header; null = none."
    )
    slices: Annotated[str, AfterValidator(_slices)] = Field(
        "auto",
        description="Slices of a volume to show: all, `every N`, `N evenly`, `FIRST:END` (from 0); auto = all, or 85 "
        "evenly.",
    )
    slice_column: str | None = Field(
        None, description="Column that names the slices to show: instance or frame numbers, NIfTI indices; null = none."
    )
    time_point: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Index (from 0) of the volume to use in a NIfTI file with several; null = reject such files."
    )
    overlays: Literal["ignore", "burn_in"] = Field(
        "ignore", description="Whether DICOM overlays are drawn into the picture."
    )
    secondary_captures: bool = Field(False, description="Also use DICOM secondary captures (screenshots).")


class DatasetConfig(Section):
    target: Target = Field(
        None,
        description="Function (path_or_dataset, split) that returns rows with `conversation`; null = read columns.",
    )
    path_or_dataset: str = Field(
        description="Hub id; local directory or file of parquet, Arrow, JSONL, CSV, TSV or images; or "
        "`builtin:phantom?images=N&seed=N&form=dicom&slices=N` (form: png, dicom, nifti)."
    )
    revision: Revision | None = Field(None, description="Branch, tag or commit on the hub; null = the default branch.")
    config_name: str | None = Field(
        None, description="Config (subset) of the dataset's card; null = the only one, or the card's default."
    )
    data_files: Pairs = Field(
        [],
        description="SPLIT=FILE for each split, such as `train=train_2.csv`; FILE may have wildcards; empty = found by "
        "name.",
    )
    archives: Names = Field([], description="Zip files of the dataset that hold its images, such as `imgs.zip`.")
    column_names: Names = Field([], description="Names of the columns of CSV files without a header.")
    where: Pairs = Field(
        [],
        description="COLUMN=VALUE: keep only these rows of the splits, such as `q_lang=en`; of several values of a "
        "column, any.",
    )
    split: str = Field("train", description="Split expression, for example `train` or `train[:1000]`.")
    image_column: str | None = Field(
        AUTO, description=f"Column of an image, its path, or a list of either; null = text only; {_COMMON}."
    )
    question_column: str = Field(AUTO, description=f"Column of the question; {_COMMON}.")
    answer_column: str = Field(AUTO, description=f"Column of the answer; {_COMMON}.")
    question_template: Annotated[str, AfterValidator(_template)] | None = Field(
        None,
        description="Text with {COLUMN} in it that makes the question of several columns, such as a question and its "
        "choices; null = the question column alone.",
    )
    case_column: str | None = Field(
        AUTO, description=f"Column of the case (patient); null = each image is a case; {_COMMON}, else null."
    )
    pseudonymise_case_ids: bool = Field(
        False, description="Replace case ids by keyed hashes wherever they are stored or shown."
    )
    mode_column: str | None = Field(
        AUTO, description=f"Column to group scores by, such as a modality; null = none; {_COMMON}, else null."
    )
    conversation_column: str | None = Field(
        None, description="Column of turns {role, content} or {from, value}, instead of question and answer."
    )
    split_by: Literal["auto", "published", "case", "image"] = Field(
        AUTO,
        description="Keep each case (or image) in one split; published = use the dataset's own splits; "
        "auto = published if it has a validation split, else case (image without a case column).",
    )
    split_seed: int = Field(0, ge=0, description="Seed of the random division by split_by.")
    validation_share: Share = Field(0.15, description="Share of cases or images held out for validation by split_by.")
    train_on: Literal["every_answer", "last_answer"] = Field(
        "every_answer", description="Which answers of a conversation with several turns are supervised."
    )
    max_length: PositiveInt | None = Field(
        None,
        description="Longest example in tokens; longer ones are rejected, not cut; null = no limit.",
    )
    max_personal_data: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Stop if more texts and images than this have signs of personal data; null = only report them.",
    )
    images: ImagesConfig = Field(
        ImagesConfig(), description="How images of more than 8 bits (DICOM, NIfTI, deep PNG and TIFF) become pictures."
    )
    max_reject_share: Share = Field(
        0.05, description="Stop if a larger share of rows is rejected; 0 = stop at the first one."
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=60)] | None = Field(
        None, description="What reports call the dataset, if the recipe has several; null = by its path."
    )
    weight: Annotated[float, AfterValidator(_weight)] | None = Field(
        None,
        description="How often it is drawn, if the recipe has several: 3 and 1 are three questions to one; null = each "
        "question once an epoch.",
    )

    @model_validator(mode="after")
    def _columns_differ(self) -> "DatasetConfig":
        columns = (self.image_column, self.question_column, self.answer_column)
        named = [column for column in columns if column != AUTO]
        if self.conversation_column is None and len(set(named)) < len(named):
            raise ValueError(f"image, question and answer must be three columns, not {named}")
        return self

    @model_validator(mode="after")
    def _one_question(self) -> "DatasetConfig":
        other = "conversation" if self.conversation_column else "question" if self.question_column != AUTO else ""
        if self.question_template is not None and other:
            raise ValueError(f"question_template and {other}_column both say what the question is; remove one of them")
        return self


class ValidationDatasetConfig(Section):
    path_or_dataset: str | None = Field(None, description="null = the same as `dataset.path_or_dataset`.")
    revision: Revision | None = Field(None, description="null = the same as `dataset.revision`.")
    config_name: str | None = Field(None, description="null = the same as `dataset.config_name`.")
    split: str | None = Field(
        AUTO,
        description="Split expression, for example `validation[:500]`; null = `dataset.split_by` holds out rows; "
        "auto = validation, val, valid, dev or test if there is one, else null.",
    )
    held_back: Share = Field(
        0.0,
        description="Share of the cases that validation losses leave out. Only they decide about champions: no "
        "checkpoint, early stop or sweep has chosen by them.",
    )


class CollateFnConfig(Section):
    target: Target = Field(
        None,
        description="Function (examples, processor) that returns a batch with shifted labels; null = the built-in one.",
    )


class DataloaderConfig(Section):
    collate_fn: CollateFnConfig = CollateFnConfig()
    num_workers: int | None = Field(
        None,
        ge=0,
        description="Worker processes per rank that decode images; 0 = decode in the rank itself; null = up to 4, by "
        "the cores, if there are images to decode.",
    )
