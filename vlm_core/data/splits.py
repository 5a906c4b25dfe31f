"""Divides a dataset into training and validation: as published, or drawn so that no case or image is in both."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_core.config import AUTO, Config
from vlm_core.data.source import TRAIN, SplitSource, fetch_split, open_dataset

logger = logging.getLogger(__name__)

VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)
PUBLISHED, CASE, IMAGE = "published", "case", "image"
VALIDATION_NAMES = ("validation", "val", "valid", "dev")  # in order of preference
TEST_NAMES = ("test", "testing", "eval", "evaluation")  # used if there is no validation split


@dataclass(frozen=True)
class Splits:
    """Checked sources, and the rule that assigns their rows to training or validation."""

    sources: dict[str, SplitSource]  # by published split
    split_by: str = PUBLISHED
    seed: int = 0
    validation_share: float = 0.0
    notes: tuple[str, ...] = ()  # for the log: choices that the data decided, not the config

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides which rows are in which split."""
        rule = [self.split_by, self.seed, self.validation_share] if self.split_by != PUBLISHED else [PUBLISHED]
        if self.split_by == IMAGE:
            rule.append("connected")  # Changes the key: older caches split by first image only.
        identity = {name: source.fingerprint for name, source in self.sources.items()}
        return hashlib.sha256(json.dumps([identity, rule], sort_keys=True).encode()).hexdigest()

    def side_of(self, name: str) -> str:
        """Returns the split of a unit that must stay together: a case, or a set of images that examples show together.

        The draw depends on the unit's own name only. So new rows never move an existing case or image.
        """
        return VALIDATION if self.drawn(name) < self.validation_share else TRAIN

    def drawn(self, name: str) -> float:
        """Returns a number in [0, 1) that depends only on the name and the seed."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}|{name}".encode()).digest()[:8]) / 2**64


class ConnectedImages:
    """Sets of images that examples show together, directly or through other images (union-find)."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}  # union-find parent links

    def join(self, images: Sequence[str]) -> None:
        """Merges the sets of an example's images; `images` are hashes."""
        names = {self.name(image) for image in images}
        for other in names - {least := min(names)}:
            self._parents[other] = least

    def name(self, image: str) -> str:
        """Returns the name of an image's set: its smallest hash. It does not depend on the order of the examples."""
        while image in self._parents:
            parent = self._parents[image]
            self._parents[image] = image = self._parents.get(parent, parent)
        return image


def fetch_splits(config: Config) -> Splits:
    """Returns the checked sources of both splits. Resolves each `auto` of the config from the data and logs it.

    Raises ValueError as `fetch_split` does.
    """
    rule = config.dataset
    if rule.target is not None:
        return _of_function(config)
    opened = open_dataset(rule)
    sources = {TRAIN: opened.take(rule.split)}
    held, notes = None, []
    if config.validation_source is not None:
        own = config.validation_dataset
        same = own.path_or_dataset is None and own.revision is None and own.config_name is None
        other = opened if same else open_dataset(config.validation_source)
        held, notes = _validation_split(config, other.tables.by_split, sources[TRAIN] if same else None)
        if held is not None:
            sources[VALIDATION] = other.take(held)
    split_by = rule.split_by
    if split_by == AUTO:
        split_by = PUBLISHED if held else CASE if sources[TRAIN].columns.case else IMAGE
        notes += [] if held else [_divided(config, sources[TRAIN], split_by)]
    elif held is None and split_by == PUBLISHED:
        raise ValueError(
            f"dataset {rule.path_or_dataset!r} has no validation split; it has {', '.join(opened.tables.by_split)}. "
            "Leave dataset.split_by out, or set it to case or image, to divide the rows of dataset.split"
        )
    every_note = dict.fromkeys([*(note for source in sources.values() for note in source.notes), *notes])
    for note in every_note:
        logger.info("%s", note)
    return Splits(sources, split_by, rule.split_seed, rule.validation_share, tuple(every_note))


def _of_function(config: Config) -> Splits:
    """Returns the sources of a user's function; the config names its splits, or they are train and validation."""
    rule, other = config.dataset, config.validation_source
    sources = {TRAIN: fetch_split(rule)}
    if other is not None:
        split = VALIDATION if other.split == AUTO else other.split
        sources[VALIDATION] = fetch_split(other.model_copy(update={"split": split}))
    split_by = (PUBLISHED if other else CASE) if rule.split_by == AUTO else rule.split_by
    return Splits(sources, split_by, rule.split_seed, rule.validation_share)


def _validation_split(
    config: Config, names: Collection[str], train: SplitSource | None
) -> tuple[str | None, list[str]]:
    """Returns (the name of the validation split or None, notes for the log) from the split names of a dataset.

    `train` is the training source if both come from one dataset, else None. If `dataset.split_by` is a case or image,
    a test split is never used: the validation rows are drawn from the training split.
    """
    wanted = config.validation_dataset.split
    if wanted != AUTO:
        return wanted, []
    free = {name.lower(): name for name in names if train is None or name != train.split}
    for name in VALIDATION_NAMES:
        if name in free:
            return free[name], [] if name == VALIDATION else [f"using the split {free[name]} for validation"]
    if train is None and len(names) == 1:
        return next(iter(names)), []
    for name in TEST_NAMES if config.dataset.split_by in (AUTO, PUBLISHED) else ():
        if name in free:
            return free[name], [
                f"no validation split: using the split {free[name]} for validation; it is then no independent test set"
            ]
    if train is None:
        raise ValueError(
            f"validation_dataset {config.validation_dataset.path_or_dataset!r} has the splits {', '.join(names)}: name "
            "one with validation_dataset.split"
        )
    return None, []


def _divided(config: Config, train: SplitSource, split_by: str) -> str:
    of = f"cases (column {train.columns.case})" if split_by == CASE else "images (no case column found)"
    return (
        f"no validation split: {config.dataset.validation_share:.0%} of the {of} are held out for validation "
        f"(dataset.split_by={split_by})"
    )


def resolved_config(config: Config, splits: Splits) -> Config:
    """Returns `config` with each `auto` replaced by its resolved value, so that it alone reads the same rows."""
    tree = config.model_dump(mode="json")
    rule, other = tree["dataset"], tree["validation_dataset"]
    rule["split_by"] = splits.split_by
    if other["split"] == AUTO:
        other["split"] = splits.sources[VALIDATION].split if VALIDATION in splits.sources else None
    if config.dataset.target is None:
        _, bracket, part = rule["split"].partition("[")
        rule["split"] = splits.sources[TRAIN].split + bracket + part
        rule |= _found_columns(rule, splits)
    return Config.model_validate(tree)


def _found_columns(rule: Mapping[str, Any], splits: Splits) -> dict[str, str | None]:
    """Returns `{config key: column}` of the columns resolved from `auto`, if all sources have the same one."""
    found = {}
    for key in ("image", "question", "answer", "case", "mode"):
        columns = {getattr(source.columns, key) for source in splits.sources.values()}
        if (
            rule[f"{key}_column"] == AUTO
            and len(columns) == 1
            and not (key in ("question", "answer") and None in columns)
        ):
            found[f"{key}_column"] = columns.pop()
    return found


def revisions(splits: Splits) -> dict[str, Any]:
    """Returns `{split: commit}`; None for sources that are not on the hub."""
    return {name: source.revision for name, source in splits.sources.items()}
