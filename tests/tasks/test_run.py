"""The names of flow runs show what differs between runs."""

from typing import Any

import pytest

from pipelines.finetune import medpix_finetune
from tasks import run


def name(monkeypatch: pytest.MonkeyPatch, attempts: int = 0, **parameters: Any) -> str:
    """Returns the name of a run with these parameters, before it begins its next attempt."""
    defaults = {"recipe": "demo", "tuning": "as in the recipe", "overrides": None}
    at_hand = type("FlowRun", (), {"parameters": medpix_finetune.validate_parameters(defaults | parameters)})
    monkeypatch.setattr(at_hand, "run_count", attempts, raising=False)
    monkeypatch.setattr(run, "flow_run", at_hand)
    return run.flow_run_name()


def test_a_name_has_recipe_tuning_rate_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name(monkeypatch, recipe="gemma3_4b_lora") == "gemma3_4b_lora lora-r8 lr=0.0001 MedPix-VQA"
    filled = {
        "optimizer": {"lr": 2e-5},
        "peft": {"dim": 4},
        "dataset": {"split": "train[:1000]"},
        "recipe": "gemma3_4b_lora",
    }
    assert name(monkeypatch, **filled) == "gemma3_4b_lora lora-r4 lr=2e-05 MedPix-VQA train[:1000]"
    for data, shown in (("/data/our scans", "our scans"), ("builtin:phantom?images=40", "phantom?images=40")):
        changed = {"dataset.path_or_dataset": data, "optimizer.lr": 0.5}
        assert name(monkeypatch, overrides=changed) == f"demo full lr=0.5 {shown}"


def test_a_retry_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name(monkeypatch, attempts=2).endswith(" phantom retry 2")


def test_with_wrong_parameters_the_name_is_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name(monkeypatch, overrides={"optimizer.lrr": 1}) == "demo"
    assert name(monkeypatch, recipe="/nowhere/my.yaml") == "/nowhere/my.yaml"
