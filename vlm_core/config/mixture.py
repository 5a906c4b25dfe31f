"""Several datasets in one run: the first is `dataset`, the others are in `more_datasets` by their names.

A recipe may write `dataset` as a list. `with_main_dataset` turns it into these two keys, so that a dotted key names
every setting: `dataset.weight`, `more_datasets.NAME.weight`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vlm_core.config.base import Section
from vlm_core.config.data import AUTO, DatasetConfig

DATA_SECTIONS = ("dataset", "validation_dataset", "more_datasets")  # a list of datasets replaces all of them
LONGEST_NAME = 60


class MoreDatasetConfig(DatasetConfig):
    """A dataset beside the main one. With `split` null it only validates (external validation)."""

    # pyrefly: ignore [bad-override]  # null is handled in `fetch_splits`, before anything reads rows
    split: str | None = Field("train", description="Split expression; null = only validate, train on no row.")
    validation_split: str | None = Field(
        AUTO, description="As `validation_dataset.split`; null with split_by=published = only train."
    )


class MixtureConfig(Section):
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="Draw datasets in proportion to rows ** (1 / temperature): 1 = by their sizes, high = evenly; "
        "null = by `weight`, or by their sizes.",
    )


def _by_name(value: Any) -> Any:
    """Returns the mapping of datasets without those that an override removed: `more_datasets.NAME: null`."""
    given = {} if value is None else value
    return {name: one for name, one in given.items() if one is not None} if isinstance(given, Mapping) else given


DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=LONGEST_NAME)]
MoreDatasets = Annotated[dict[DatasetName, MoreDatasetConfig], BeforeValidator(_by_name)]


def name_of(dataset: DatasetConfig) -> str:
    """Returns the name of a dataset: its own, or one made of its path."""
    return dataset.name or _name_of_path(dataset.path_or_dataset)


def _name_of_path(path: str) -> str:
    last = path.partition("?")[0].removeprefix("builtin:").rstrip("/").rpartition("/")[2]
    stem = re.sub(r"(\.(csv|tsv|jsonl?|parquet|arrow|feather|gz))+$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:LONGEST_NAME] or "data"


def with_main_dataset(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config tree whose `dataset` is a mapping: the first of a list, with the others in `more_datasets`.

    Raises ValueError if the list cannot be read, or if two datasets have one name.
    """
    listed = tree.get("dataset")
    if not isinstance(listed, list):
        return dict(tree)
    if tree.get("more_datasets"):
        raise ValueError("dataset is a list, and more_datasets is set as well: write every dataset in the list")
    _require_readable(listed)
    main, *others = (dict(one) for one in listed)
    changed = {key: value for key, value in tree.items() if key != "more_datasets"} | {"dataset": main}
    if "validation_split" in main:
        changed["validation_dataset"] = _validated_on(main.pop("validation_split"), tree.get("validation_dataset"))
    if others:
        name = main.get("name") or _name_of_path(str(main["path_or_dataset"]))
        changed["more_datasets"] = _named(others, taken={name: 0})
    return changed


def _require_readable(listed: list[Any]) -> None:
    if not listed:
        raise ValueError("dataset is an empty list; write at least one dataset with a path_or_dataset")
    for number, one in enumerate(listed):
        if not isinstance(one, Mapping) or one.get("path_or_dataset") is None:
            raise ValueError(f"dataset[{number}]={one!r} names no data; write a mapping with a path_or_dataset")
    if "split" in listed[0] and listed[0]["split"] is None:
        raise ValueError(
            f"dataset[0] ({listed[0]['path_or_dataset']}) has split=null, so it would only validate; the first dataset "
            "of a list is the main one and trains: put one with a split first"
        )


def _named(others: list[dict[str, Any]], taken: dict[str, int]) -> dict[str, Any]:
    """Returns datasets by their names; `taken` has the number of each dataset of the list that is named already."""
    found = {}
    for number, one in enumerate(others, start=1):
        name = str(one.pop("name", None) or _name_of_path(str(one["path_or_dataset"])))
        if name in taken:
            raise ValueError(
                f"dataset[{taken[name]}] and dataset[{number}] are both named {name!r}; give one of them another name"
            )
        taken[name], found[name] = number, one
    return found


def _validated_on(split: Any, section: Any) -> dict[str, Any]:
    own = dict(section or {})
    if own.get("split", split) != split:
        raise ValueError(
            f"dataset[0].validation_split={split} and validation_dataset.split={own['split']} are one setting; give "
            "one of them"
        )
    return own | {"split": split}


def require_mixable(datasets: Mapping[str, DatasetConfig], mixture: MixtureConfig) -> None:
    """Raises ValueError if datasets contradict each other; `datasets` has all of a run, the main one first."""
    for name, dataset in datasets.items():
        if isinstance(dataset, MoreDatasetConfig):
            _require_sound(name, dataset)
    weights = {name: dataset.weight for name, dataset in datasets.items() if dataset.split is not None}
    weighted = {name: weight for name, weight in weights.items() if weight is not None}
    if weighted and mixture.temperature is not None:
        listed = ", ".join(f"{name} has weight={weight:g}" for name, weight in weighted.items())
        raise ValueError(
            f"mixture.temperature={mixture.temperature:g} and weights both say how datasets are drawn ({listed}): "
            "remove one of the two"
        )
    if weighted and len(weighted) < len(weights):
        without = ", ".join(name for name in weights if name not in weighted)
        raise ValueError(
            f"{', '.join(weighted)} {_have(weighted)} a weight and {without} {_have(weights.keys() - weighted)} none: "
            "give every dataset that trains a weight, or none of them"
        )
    hidden = {name for name, dataset in datasets.items() if dataset.pseudonymise_case_ids}
    if hidden and len(hidden) < len(datasets):
        raise ValueError(
            f"pseudonymise_case_ids is true for {', '.join(sorted(hidden))} and false for "
            f"{', '.join(name for name in datasets if name not in hidden)}; set it to the same for all datasets, since "
            "a case may be in several"
        )


def _have(names: Collection[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _require_sound(name: str, dataset: MoreDatasetConfig) -> None:
    """Raises ValueError if the settings of a dataset beside the main one contradict each other."""
    key = f"more_datasets.{name}"
    if dataset.name not in (None, name):
        raise ValueError(f"{key}.name={dataset.name!r}: its key is its name; remove name, or rename the key")
    if dataset.split is not None:
        return
    if dataset.validation_split is None:
        raise ValueError(f"{key} has split=null and validation_split=null: it neither trains nor validates; remove it")
    if dataset.weight is not None:
        raise ValueError(f"{key}.weight={dataset.weight:g} has no effect: with split=null no row trains; remove it")
    if dataset.split_by not in (AUTO, "published"):
        raise ValueError(
            f"{key}.split_by={dataset.split_by} divides rows to train on, and split=null takes none; remove split_by"
        )
