"""Everything that the README and docs/ name exists: modules, targets, deployments, recipes, settings, files."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from medpix import commands
from tests.readme import PAGES, ROOT, blocks
from vlm_core.recipe import config_keys, recipe_names

COMMANDS = "\n".join(
    line.partition(" #")[0] for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()
)


def typed(pattern: str) -> set[str]:
    """Returns all matches of a pattern in the commands of all pages; a pattern without matches is an error."""
    found = set(re.findall(pattern, COMMANDS))
    assert found, pattern
    return found


def test_the_modules_exist() -> None:
    for module in typed(r"-m ((?:pipelines|tasks|vlm_core)\.[\w.]+)"):
        assert importlib.util.find_spec(module) is not None, module


def test_the_subcommands_exist() -> None:
    assert typed(r"\bmedpix ([a-z][\w-]*)") <= {command.name for command in commands.COMMANDS}


def test_the_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert typed(r"(?<!review )\bmake ([a-z][\w-]*)") <= set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def test_the_deployments_exist() -> None:
    described = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    assert typed(r"deployment run (\S+)") <= {deployment["name"] for deployment in described["deployments"]}


def test_the_recipes_exist() -> None:
    names = {name for name in typed(r"--(?:recipe|config) (\S+)") if not name.endswith(".yaml")}
    assert names <= set(recipe_names())


def test_the_settings_are_those_of_the_config() -> None:
    assert typed(r"--([a-z_]+\.[a-z_.]+)") <= {key for key, _ in config_keys()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
    paths = re.findall(r"`((?:vlm_core|tasks|pipelines|deployments|benchmarks|tests|docs)/[\w/.]+)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
