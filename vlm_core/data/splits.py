"""Divides a dataset into training and validation: as published, or drawn so that no case or image is in both."""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vlm_core.config import AUTO, Config, DatasetConfig
from vlm_core.data.source import TRAIN, SplitSource, fetch_split, open_dataset

logger = logging.getLogger(__name__)

VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)
PUBLISHED, CASE, IMAGE = "published", "case", "image"
VALIDATION_NAMES = ("validation", "val", "valid", "dev")  # in order of preference
TEST_NAMES = ("test", "testing", "eval", "evaluation")  # used if there is no validation split
_KEYS = "|".join(field.alias or key for key, field in DatasetConfig.model_fields.items())


@dataclass(frozen=True)
class Splits:
    """Checked sources, and the rule that assigns their rows to training or validation.

    Those of several datasets are those of the main one, which has the others in `more`.
    """

    sources: dict[str, SplitSource]  # by published split; a dataset that only validates has no `train`
    split_by: str = PUBLISHED
    seed: int = 0
    validation_share: float = 0.0
    notes: tuple[str, ...] = ()  # for the log: choices that the data decided, not the config
    name: str = ""  # of the dataset; "" if the run has one
    more: tuple["Splits", ...] = ()

    @property
    def datasets(self) -> tuple["Splits", ...]:
        """The splits of all datasets, the main one first."""
        return (self, *self.more)

    @property
    def named_sources(self) -> dict[str, SplitSource]:
        """All sources by the names of their rows: `train` for train-12, `slake/train` of several datasets."""
        return {part.row_name(split): source for part in self.datasets for split, source in part.sources.items()}

    def row_name(self, split: str) -> str:
        """Returns what the names of the dataset's rows of a published split begin with."""
        return f"{self.name}/{split}" if self.name else split

    def key_of(self, part: "Splits") -> str:
        """Returns the config key of one of `datasets`."""
        return "dataset" if part is self else f"more_datasets.{part.name}"

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides which rows are in which split."""
        if not self.more:
            return self._own_fingerprint
        parts = [[part.name, part._own_fingerprint] for part in self.datasets]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def _own_fingerprint(self) -> str:
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


def fetch_splits(config: Config) -> Splits:
    """Returns the checked sources of both splits. Resolves each `auto` of the config from the data and logs it.

    Raises ValueError as `fetch_split` does; of several datasets, it names the one.
    """
    _warn_of_one_dataset(config)
    if not config.more_datasets:
        splits = _fetch_one(config)
        _log(splits.notes)
        return splits
    parts = []
    for name in config.datasets:
        with _errors_named(name, config):
            part = _fetch_one(config.only(name))
        _log([f"{name}: {_with_own_keys(note, name, config)}" for note in part.notes])
        parts.append(replace(part, name=name))
    _note_image_settings(config)
    return replace(parts[0], more=tuple(parts[1:]))


def _log(notes: Iterable[str]) -> None:
    for note in notes:
        logger.info("%s", note)


def _warn_of_one_dataset(config: Config) -> None:
    """Warns of settings that say how several datasets are drawn, if only one trains."""
    if len(config.trained) > 1:
        return
    unused = {"dataset.weight": config.dataset.weight, "mixture.temperature": config.mixture.temperature}
    for key, value in unused.items():
        if value is not None:
            logger.warning("%s=%g has no effect: only one dataset trains", key, value)


def _note_image_settings(config: Config) -> None:
    """Logs the datasets whose images are shown in another way than the trained model will show images."""
    main, *others = config.datasets.items()
    if differ := [name for name, dataset in others if dataset.images != main[1].images]:
        logger.info("the image settings of %s differ from those of %s, the main dataset, which the trained model keeps",
                    ", ".join(differ), main[0])  # fmt: skip


@contextmanager
def _errors_named(name: str, config: Config) -> Iterator[None]:
    """Lets errors of the block begin with the name of the dataset, and name its own config keys."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"dataset {name}: {_with_own_keys(str(error), name, config)}") from error


def _with_own_keys(message: str, name: str, config: Config) -> str:
    """Returns a message about a dataset, which names the keys of the main one, with the dataset's own keys."""
    if name not in config.more_datasets:
        return message
    key = config.key_of(name)
    message = message.replace("validation_dataset.split", f"{key}.validation_split")
    return re.sub(rf"(?<![\w.])dataset\.(?=(?:{_KEYS})\b)", f"{key}.", message)


def _fetch_one(config: Config) -> Splits:
    """Returns the sources of one dataset, with the notes about its choices."""
    rule = config.dataset
    if rule.split is None:
        return _external(config)
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
    elif held is None and split_by == PUBLISHED and config.validation_dataset.split is not None:
        raise ValueError(
            f"dataset {rule.path_or_dataset!r} has no validation split; it has {', '.join(opened.tables.by_split)}. "
            "Leave dataset.split_by out, or set it to case or image, to divide the rows of dataset.split"
        )
    every_note = dict.fromkeys([*(note for source in sources.values() for note in source.notes), *notes])
    return Splits(sources, split_by, rule.split_seed, rule.validation_share, tuple(every_note))


def _external(config: Config) -> Splits:
    """Returns the source of a dataset that only validates."""
    rule, held = config.dataset, config.validation_dataset.split or AUTO
    if rule.target is not None:
        named = rule.model_copy(update={"split": VALIDATION if held == AUTO else held})
        return Splits({VALIDATION: fetch_split(named)})
    opened = open_dataset(rule)
    names = opened.tables.by_split
    found, notes = _validation_split(config, names, None)
    assert found is not None  # the function raises if it finds none
    if found.partition("[")[0] not in names:
        raise ValueError(
            f"dataset {rule.path_or_dataset!r} has no split {found!r}; it has {', '.join(names)}: set "
            "validation_dataset.split to one of them"
        )
    source = opened.take(found)
    return Splits({VALIDATION: source}, notes=tuple(dict.fromkeys([*source.notes, *notes])))


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
    own = config.validation_dataset
    if own.split != AUTO:
        return own.split, []
    # The rows of a dataset that only validates choose no checkpoint.
    dependent = "" if config.dataset.split is None else "; it is then no independent test set"
    free = {name.lower(): name for name in names if train is None or name != train.split}
    for name in VALIDATION_NAMES:
        if name in free:
            return free[name], [] if name == VALIDATION else [f"using the split {free[name]} for validation"]
    if train is None and len(names) == 1:
        return next(iter(names)), []
    for name in TEST_NAMES if config.dataset.split_by in (AUTO, PUBLISHED) else ():
        if name in free:
            return free[name], [f"no validation split: using the split {free[name]} for validation{dependent}"]
    if train is None:
        raise ValueError(
            f"validation_dataset {(own.path_or_dataset or config.dataset.path_or_dataset)!r} has the splits "
            f"{', '.join(names)}: name one with validation_dataset.split"
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
    for name, part in zip(config.datasets, splits.datasets, strict=True):
        found, held = _resolved(config.only(name), part)
        if name in config.more_datasets:
            tree["more_datasets"][name] |= found | {"validation_split": held}
        else:
            tree["dataset"] |= found
            tree["validation_dataset"]["split"] = held
    return Config.model_validate(tree)


def _resolved(config: Config, splits: Splits) -> tuple[dict[str, Any], str | None]:
    """Returns (the resolved settings of one dataset, its validation split)."""
    rule, held = config.dataset, config.validation_dataset.split
    found: dict[str, Any] = {"split_by": splits.split_by}
    if held == AUTO:
        held = splits.sources[VALIDATION].split if VALIDATION in splits.sources else None
    if rule.target is None:
        if TRAIN in splits.sources:
            _, bracket, part = rule.split.partition("[")
            found["split"] = splits.sources[TRAIN].split + bracket + part
        found |= _found_columns(rule.model_dump(), splits)
    return found, held


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
    """Returns `{split: commit}` of the main dataset; None for sources that are not on the hub."""
    return {name: source.revision for name, source in splits.sources.items()}


def more_revisions(splits: Splits) -> dict[str, str | None]:
    """Returns `{name: commit}` of the other datasets; None for those that are not on the hub."""
    return {part.name: next(iter(part.sources.values())).revision for part in splits.more}
