"""What the README says to type exists: modules, targets, deployments, recipes and keys of the config."""

import importlib.util
import re
from pathlib import Path

import yaml

from tests.readme import blocks
from vlm_core.recipe import config_keys, recipe_names

ROOT = Path(__file__).parents[1]
COMMANDS = "\n".join(line.partition(" #")[0] for block in blocks("bash") for line in block.splitlines())


def typed(pattern: str) -> set[str]:
    """Returns what the README's commands have in a place; that is something, or the pattern is wrong."""
    found = set(re.findall(pattern, COMMANDS))
    assert found, pattern
    return found


def test_its_modules_exist() -> None:
    for module in typed(r"-m ((?:pipelines|tasks|vlm_core)\.\w+)"):
        assert importlib.util.find_spec(module) is not None, module


def test_its_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert typed(r"\bmake ([a-z][\w-]*)") <= set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def test_its_deployments_exist() -> None:
    described = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    assert typed(r"deployment run (\S+)") <= {deployment["name"] for deployment in described["deployments"]}


def test_its_recipes_exist() -> None:
    names = {name for name in typed(r"--(?:recipe|config) (\S+)") if not name.endswith(".yaml")}
    assert names <= set(recipe_names())


def test_its_keys_are_those_of_the_config() -> None:
    assert typed(r"--([a-z_]+\.[a-z_.]+)") <= {key for key, _ in config_keys()}
