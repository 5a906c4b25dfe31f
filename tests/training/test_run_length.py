"""Open settings follow from the number of questions, once; a run that is too short says what to change."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import small_config
from vlm_core.config import Config
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.recipe import load_config, recipe_names
from vlm_core.run_directory import CONFIG, METRICS
from vlm_core.training.distributed import Ranks
from vlm_core.training.run_length import decide_length, length_warnings, total_steps, with_run_length

OPEN = {
    "step_scheduler": {"global_batch_size": None, "num_epochs": None, "max_steps": None},
    "lr_scheduler": {"lr_warmup_steps": None},
}


def decided(questions: int, processes: int = 1, **overrides: Any) -> Config:
    return with_run_length(small_config(**OPEN | overrides), questions, processes)


@pytest.mark.parametrize(
    ("questions", "batch", "epochs", "steps", "warmup"),
    [
        (5, 8, 30, 30, 2),
        (100, 8, 24, 312, 16),
        (750, 8, 4, 376, 19),
        (2_000, 32, 5, 315, 16),
        (17_420, 64, 2, 546, 28),
        (1_000_000, 64, 1, 15_625, 782),
    ],
)
def test_the_length_follows_from_the_questions(
    questions: int, batch: int, epochs: int, steps: int, warmup: int
) -> None:
    config = decided(questions)
    assert (config.step_scheduler.global_batch_size, config.step_scheduler.num_epochs) == (batch, epochs)
    assert (total_steps(config, questions), config.lr_scheduler.lr_warmup_steps) == (steps, warmup)
    assert length_warnings(config, questions) == []
    assert with_run_length(config, 10 * questions, 1) == config  # a second call changes nothing
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_explicit_settings_stay() -> None:
    config = decided(100, **{"step_scheduler.global_batch_size": 50, "step_scheduler.num_epochs": 2})
    assert (config.step_scheduler.global_batch_size, config.step_scheduler.num_epochs) == (50, 2)
    assert decided(100, **{"step_scheduler.global_batch_size": 50}).step_scheduler.num_epochs == 30
    assert decided(100, **{"lr_scheduler.lr_warmup_steps": 0}).lr_scheduler.lr_warmup_steps == 0
    assert decided(100, **{"lr_scheduler.lr_warmup_share": 0.5}).lr_scheduler.lr_warmup_steps == 156


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_can_share_the_batch(processes: int) -> None:
    plain = {"packing.enabled": False, "step_scheduler.local_batch_size": 5}
    config = decided(100, processes, **plain)
    assert config.step_scheduler.global_batch_size == {1: 10, 3: 15}[processes]
    config.require_divisible_batch(processes)


def test_the_shipped_recipes_warm_up_as_before() -> None:
    """The warm-up on MedPix-VQA (17,420 questions) is 50 steps."""
    for name in set(recipe_names()) - {"demo"}:
        config = with_run_length(load_config(name), 17_420, 1)
        assert (total_steps(config, 17_420), config.lr_scheduler.lr_warmup_steps) == (819, 50), name


def test_one_warmup_replaces_the_other(tmp_path: Path) -> None:
    assert small_config(**{"lr_scheduler.lr_warmup_share": 0.1}).lr_scheduler.lr_warmup_steps is None
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(load_config("demo").model_dump(mode="json")))
    steps = load_config(tmp_path / "mine.yaml", {"lr_scheduler": {"lr_warmup_steps": 3}}).lr_scheduler
    assert (steps.lr_warmup_steps, steps.lr_warmup_share) == (3, None)
    with pytest.raises(ValueError, match=r"lr_warmup_steps=3 and lr_warmup_share=0.1 are one setting"):
        small_config(lr_scheduler={"lr_warmup_steps": 3, "lr_warmup_share": 0.1})


@pytest.mark.parametrize(
    ("overrides", "warning", "remedy"),
    [
        ({"max_steps": 8}, "in a run of 8 steps a model hardly learns anything", {"max_steps": None}),
        ({"num_epochs": 1}, "in a run of 13 steps", {"num_epochs": 24}),
        ({"num_epochs": 3, "global_batch_size": 64}, "in a run of 6 steps", {"global_batch_size": 8, "num_epochs": 24}),
        ({"num_epochs": 1, "max_steps": 8}, "in a run of 8 steps", {"num_epochs": 24, "max_steps": None}),
    ],
)
def test_a_short_run_names_the_setting_that_would_work(
    overrides: dict[str, Any], warning: str, remedy: dict[str, Any]
) -> None:
    schedule = {f"step_scheduler.{key}": value for key, value in overrides.items()}
    (text,) = length_warnings(decided(100, **schedule), 100)
    assert text.startswith(warning)
    named = text.partition("set ")[2].replace(" and ", " ").replace("null", "None")
    assert named == " ".join(f"step_scheduler.{key}={value}" for key, value in remedy.items())
    remedied = {f"step_scheduler.{key}": value for key, value in remedy.items()}
    assert length_warnings(decided(100, **schedule | remedied), 100) == []


@pytest.mark.parametrize("warmup", [40, 50])
def test_a_warmup_as_long_as_the_run_warns(warmup: int) -> None:
    settings = {"step_scheduler.max_steps": 40, "lr_scheduler.lr_warmup_steps": warmup}
    (text,) = length_warnings(decided(100, **settings), 100)
    assert text.startswith(f"the warm-up of {warmup} steps is as long as the run of 40 steps or longer")
    assert text.endswith("set lr_scheduler.lr_warmup_steps=2")
    assert length_warnings(decided(100, **settings | {"lr_scheduler.lr_warmup_steps": 2}), 100) == []


def test_the_plan_warns_and_shows_the_length(
    conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = {"step_scheduler.max_steps": 8, "checkpoint.checkpoint_dir": str(tmp_path / "run")}
    finetune(small_config(**settings), Ranks(), conversations, plan_only=True)
    assert "schedule    6 epochs in batches of 8, 50 steps of warm-up" in caplog.text
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("the warm-up of 50 steps is as long as the run of 8 steps or longer" in text for text in warnings)
    assert any("in a run of 8 steps a model hardly learns anything" in text for text in warnings)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_original_length(
    conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's config has the numbers; the same command with more steps reads them there."""
    caplog.set_level(logging.INFO)
    share = {"lr_scheduler": {"lr_warmup_share": 0.9}, "checkpoint.checkpoint_dir": str(tmp_path / "run")}
    first = OPEN | share | {"step_scheduler": OPEN["step_scheduler"] | {"max_steps": 2}}
    finetune(small_config(**first), Ranks(), conversations)
    assert "for 340 training questions: batches of 8, 7 epochs, 2 steps of warm-up" in caplog.text
    began = yaml.safe_load((tmp_path / "run" / CONFIG).read_text())
    assert (began["step_scheduler"]["global_batch_size"], began["step_scheduler"]["num_epochs"]) == (8, 7)
    assert began["lr_scheduler"]["lr_warmup_steps"] == 2
    finetune(small_config(**first | {"step_scheduler.max_steps": 5}), Ranks(), conversations)
    rates = [record["lr"] for record in read_json_lines(tmp_path / "run" / METRICS)[0]]
    peak = small_config().optimizer.lr
    assert rates[:3] == pytest.approx([0, peak / 2, peak])  # with a share, 5 steps would still warm up
    assert rates[3] < peak


def test_a_changed_share_of_warm_up_is_named_when_a_run_resumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {share: small_config(**OPEN, **{"lr_scheduler.lr_warmup_share": share}) for share in (0.1, 0.5)}
    began = decide_length(asked[0.1], None, 100, 1)
    (tmp_path / CONFIG).write_text(began.to_yaml())
    assert decide_length(asked[0.1], tmp_path, 100, 1) == began
    assert "has no effect" not in caplog.text
    assert decide_length(asked[0.5], tmp_path, 100, 1) == began
    assert "lr_warmup_share=0.5 has no effect: the run started with 32 steps of warm-up and keeps them" in caplog.text
