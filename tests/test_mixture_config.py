"""A recipe with several datasets: a list in YAML, dotted keys for every setting, and errors that name the dataset."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_core.cli import parse_overrides
from vlm_core.config import Config
from vlm_core.form import form_of, form_overrides
from vlm_core.recipe import load_config
from vlm_core.resume import FIXED_SECTIONS, require_compatible

SLAKE: dict[str, Any] = {"path_or_dataset": "owner/slake"}
RAD: dict[str, Any] = {"path_or_dataset": "owner/rad"}
FAR: dict[str, Any] = {"path_or_dataset": "/data/site far.csv", "split": None}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose dataset is a list of three, on top of one with settings for its own dataset."""
    path = tmp_path / "mine.yaml"
    datasets = [SLAKE | {"weight": 3, "validation_split": "val"}, RAD | {"weight": 1, "split_by": "image"}, FAR]
    path.write_text(yaml.safe_dump({"base_recipe": "slake", "dataset": datasets}))
    return path


def loaded(*datasets: Any, **others: Any) -> Config:
    return load_config("demo", {"dataset": list(datasets), **others})


def test_a_list_becomes_the_main_dataset_and_others_by_name(recipe: Path) -> None:
    config = load_config(recipe)
    assert list(config.datasets) == ["slake", "rad", "site-far"]
    assert (config.trained, config.validated) == (["slake", "rad"], ["slake", "rad", "site-far"])
    assert (config.dataset.weight, config.more_datasets["rad"].split_by) == (3, "image")
    assert config.validation_dataset.split == "val"
    assert config.dataset.archives == []  # the list replaces the data of the base recipe
    assert config.validates_on[0] == "slake, rad, site-far"
    assert "rad: " in config.validates_on[1]
    assert "divided by image" in config.validates_on[1]
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_a_list_of_one_is_a_mapping() -> None:
    assert loaded(SLAKE) == load_config("demo", {"dataset": SLAKE})
    assert loaded(SLAKE).more_datasets == {}


def test_every_setting_has_a_key(recipe: Path) -> None:
    words = "--dataset.weight 5 --more_datasets.rad.weight 2 --more_datasets.rad.split train[:10] "
    words += (
        "--more_datasets.rad.path_or_dataset on --more_datasets.rad.images.window brain --more_datasets.site-far null"
    )
    config = load_config(recipe, parse_overrides(words.split()))
    rad = config.more_datasets["rad"]
    assert (config.dataset.weight, rad.weight, rad.split, rad.path_or_dataset) == (5, 2, "train[:10]", "on")
    assert (rad.images.window, rad.split_by) == ("brain", "image")
    assert list(config.datasets) == ["slake", "rad"]
    assert load_config(recipe, {"more_datasets": None}).more_datasets == {}
    added = load_config("slake", {"more_datasets.rad.path_or_dataset": "owner/rad"})
    assert list(added.datasets) == ["SLAKE", "rad"]
    replaced = load_config(recipe, {"dataset": [RAD], "dataset.weight": 2})
    assert (list(replaced.datasets), replaced.dataset.weight) == (["rad"], 2)


def test_the_form_takes_the_main_dataset(recipe: Path) -> None:
    form = form_of(type(load_config(recipe).dataset))
    config = load_config(
        recipe, form_overrides(str(recipe), "as in the recipe", {"dataset": form(weight=7, split="x")})
    )
    assert (config.dataset.weight, config.dataset.split, config.more_datasets["rad"].weight) == (7, "x", 1)


def test_the_guides_functions_are_translated_in_every_dataset() -> None:
    guide = {"_target_": "nemo_automodel.components.datasets.vlm.datasets.make_medpix_dataset"}
    assert [d.target for d in loaded(SLAKE | guide, RAD | guide).datasets.values()] == [None, None]


@pytest.mark.parametrize(
    ("datasets", "others", "message"),
    [
        ([SLAKE, {"path_or_dataset": "b/slake"}], {}, "dataset[0] and dataset[1] are both named 'slake'; give one"),
        ([SLAKE, RAD, FAR | {"name": "rad"}], {}, "dataset[1] and dataset[2] are both named 'rad'"),
        ([SLAKE, RAD | {"weight": 0}], {}, "more_datasets.rad.weight=0: a weight must be above 0"),
        ([SLAKE | {"weight": -1}, RAD], {}, "dataset.weight=-1: a weight must be above 0"),
        ([SLAKE, RAD | {"weight": float("inf")}], {}, "more_datasets.rad.weight=inf: a weight must be above 0"),
        ([SLAKE | {"weight": 1}, RAD], {}, "slake has a weight and rad has none: give every dataset"),
        ([SLAKE | {"weight": 1}, RAD | {"weight": 2}], {"mixture.temperature": 2}, "temperature=2 and weights both"),
        ([SLAKE, RAD], {"mixture.temperature": 0}, "mixture.temperature=0: Input should be greater than 0"),
        ([], {}, "dataset is an empty list"),
        (["owner/slake"], {}, "dataset[0]='owner/slake' names no data; write a mapping"),
        ([SLAKE, {"split": "train"}], {}, "dataset[1]={'split': 'train'} names no data"),
        ([FAR, SLAKE], {}, "dataset[0] (/data/site far.csv) has split=null, so it would only validate"),
        ([SLAKE, FAR | {"weight": 1}], {}, "more_datasets.site-far.weight=1 has no effect"),
        ([SLAKE, FAR | {"validation_split": None}], {}, "it neither trains nor validates; remove it"),
        ([SLAKE, FAR | {"split_by": "case"}], {}, "more_datasets.site-far.split_by=case divides rows to train on"),
        ([SLAKE, RAD | {"imge_column": "x"}], {}, "nearest: 'more_datasets.rad.image_column'"),
        ([SLAKE, RAD | {"vaildation_split": "x"}], {}, "nearest: 'more_datasets.rad.validation_split'"),
        ([SLAKE, RAD | {"name": "a.b"}], {}, "more_datasets.a.b"),
        ([SLAKE | {"pseudonymise_case_ids": True}, RAD], {}, "pseudonymise_case_ids is true for slake and false"),
        ([SLAKE | {"split_by": "published", "validation_split": None}, FAR], {}, "leaves nothing to validate on"),
        ([SLAKE, RAD], {"more_datasets.owner.name": "x"}, "more_datasets.owner.path_or_dataset"),
    ],
)  # fmt: skip
def test_wrong_mixtures_are_named_with_a_remedy(datasets: list[Any], others: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="demo.yaml: ") as error:
        loaded(*datasets, **others)
    assert message in str(error.value)


def test_two_ways_to_write_one_thing_are_an_error(tmp_path: Path) -> None:
    path, tree = tmp_path / "mine.yaml", {"base_recipe": "demo", "dataset": [SLAKE | {"validation_split": "val"}]}
    for other in ({"more_datasets": {"rad": RAD}}, {"validation_dataset": {"split": "test"}}):
        path.write_text(yaml.safe_dump(tree | other))
        with pytest.raises(ValueError, match="write every dataset in the list|are one setting; give one of them"):
            load_config(path)


def test_a_checkpoint_of_one_dataset_stays_valid_and_one_of_another_mixture_does_not(tmp_path: Path) -> None:
    config = load_config("demo")
    tree = yaml.safe_load(config.to_yaml())
    for key in ("more_datasets", "mixture"):  # as earlier versions wrote it
        assert key in FIXED_SECTIONS
        del tree[key]
    del tree["dataset"]["name"], tree["dataset"]["weight"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    require_compatible(tmp_path, config)
    with pytest.raises(ValueError, match="more_datasets was {}, is {'rad'"):
        require_compatible(tmp_path, load_config("demo", {"more_datasets.rad": RAD}))
