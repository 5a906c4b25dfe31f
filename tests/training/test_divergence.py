"""Numbers that are not finite reach neither weights nor checkpoints nor JSON; a run of such numbers ends."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import small_config
from vlm_core.files import append_json_line, read_json, to_json, write_json
from vlm_core.finetune import finetune
from vlm_core.run_directory import LATEST, LOWEST_VAL, METRICS, PROGRESS, RESULT, VALIDATION
from vlm_core.training.distributed import Ranks
from vlm_core.training.divergence import DivergedError, DivergenceWatch, broken_weight
from vlm_core.training.loop import Trainer
from vlm_core.training.loss import TokenLoss

EACH_STEP = {"max_steps": 4, "ckpt_every_steps": 1, "val_every_steps": 1}


def settings(directory: Path, **schedule: Any) -> dict[str, Any]:
    steps = {"step_scheduler": {"global_batch_size": 8} | EACH_STEP | schedule}
    return steps | {"lr_scheduler": {"lr_warmup_steps": 0}, "checkpoint.checkpoint_dir": str(directory)}


def strict(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file that holds JSON alone, as other parsers read it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("limit", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_a_diverged_run_ends_with_an_error_and_without_a_broken_checkpoint(
    limit: int, conversations: Path, tmp_path: Path
) -> None:
    """It ends after the limit, or at its last step if that comes first."""
    wild = {"optimizer.lr": 1e30, "clip_grad_norm.max_norm": None}
    config = small_config(**settings(tmp_path, max_nonfinite_steps=limit) | wild)
    with pytest.raises(DivergedError, match=r"; no checkpoint .*lower optimizer.lr=1e\+30, set clip_grad"):
        finetune(config, Ranks(), conversations)
    records = strict(tmp_path / METRICS)
    assert [record["nonfinite_steps"] for record in records] == list(range(min(limit + 1, 4)))
    assert [record["loss"] is None for record in records] == [False, True, True, True][: len(records)]
    assert all(record["loss"] is None for record in strict(tmp_path / VALIDATION))
    assert not (tmp_path / LATEST).exists()
    assert not list(tmp_path.glob("*/" + PROGRESS))
    assert not (tmp_path / RESULT).exists()


def test_one_broken_step_is_left_out_and_the_run_continues(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, state = Trainer._backward, {}

    def broken_once(self: Trainer, batches: Any, tokens: float) -> Iterator[float]:
        yield from original(self, batches, tokens)
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        state[self.progress.step] = weights
        if self.progress.step == 1:
            yield math.nan

    monkeypatch.setattr(Trainer, "_backward", broken_once)
    config = small_config(**settings(tmp_path, val_every_steps=None))
    assert finetune(config, Ranks(), conversations)["steps"] == 4
    assert all(state[1][name].equal(state[2][name]) for name in state[1])
    assert any(not state[2][name].equal(state[3][name]) for name in state[2])
    assert "step 1 is not applied: its loss is nan and its gradient norm is" in caplog.text
    assert "no checkpoint at step 1: the last loss was not finite" in caplog.text
    assert sorted(path.name for path in tmp_path.glob("epoch_*")) == [f"epoch_0_step_{step}" for step in (2, 3, 4)]
    assert read_json(tmp_path / LATEST / PROGRESS)["nonfinite_steps"] == 1


@pytest.mark.slow
def test_a_validation_loss_that_is_not_finite_is_never_the_lowest(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss of one batch is broken in the second validation: the data is, and the weights are not."""
    original, validate = TokenLoss.forward, Trainer._validate
    validations, broken = list[int](), list[torch.Tensor]()

    def counted(self: Trainer, *arguments: Any, **options: Any) -> bool:
        validations.append(self.progress.step)
        return validate(self, *arguments, **options)

    def loss(self: TokenLoss, batch: Any) -> torch.Tensor:
        found = original(self, batch)
        if len(validations) == 2 and not broken:
            broken.append(found)
            return found * math.nan
        return found

    monkeypatch.setattr(Trainer, "_validate", counted)
    monkeypatch.setattr(TokenLoss, "forward", loss)
    several = {"packing.max_tokens": 800}  # forward passes
    config = small_config(**settings(tmp_path, max_steps=2, early_stop_patience=1) | several)
    finetune(config, Ranks(), conversations)
    assert [record["loss"] is None for record in strict(tmp_path / VALIDATION)] == [False, True]
    assert (tmp_path / LOWEST_VAL).resolve().name == "epoch_0_step_1"
    assert (tmp_path / LATEST).resolve().name == "epoch_0_step_2"
    assert read_json(tmp_path / LATEST / PROGRESS)["validations_since_lowest"] == 0
    assert "the validation loss of step 2 is not finite: 1 of" in caplog.text


def test_the_watch_counts_steps_in_a_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = DivergenceWatch(small_config(**{"step_scheduler.max_nonfinite_steps": 2}), tmp_path)
    for step, finite in enumerate([True, False, True, False], start=1):
        watch.after_step(step, 1.0 if finite else math.inf, 1.0, finite=finite)
        watch.require_applied_steps(step)
        assert watch.sound is finite
    watch.after_validation(4, 0, 3)
    watch.require_sound(4)
    (tmp_path / LATEST).mkdir()
    watch.after_step(5, 1.0, math.nan, finite=False)
    with pytest.raises(DivergedError, match=f"in steps 4 to 5.*{LATEST} is the last good checkpoint. Start again in"):
        watch.require_applied_steps(5)
    watch.after_validation(5, 3, 3)
    with pytest.raises(DivergedError, match="give no finite numbers at the last step, 5"):
        watch.require_sound(5)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_null_for_what_is_not_finite(value: float, tmp_path: Path) -> None:
    assert (
        to_json({"a": value, "b": [(value, 1.5)], "c": {"d": value}})
        == '{"a": null, "b": [[null, 1.5]], "c": {"d": null}}'
    )
    write_json(tmp_path / "value.json", [value])
    append_json_line(tmp_path / "lines.jsonl", {"loss": value})
    assert read_json(tmp_path / "value.json") == [None]
    assert strict(tmp_path / "lines.jsonl") == [{"loss": None}]


@pytest.mark.parametrize(("value", "found"), [(math.nan, "b"), (-math.inf, "b"), (3e38, None)])
def test_a_broken_weight_is_named(value: float, found: str | None) -> None:
    weights = {"a": torch.ones(2, dtype=torch.int64), "b": torch.tensor([1.0, value]), "c": torch.ones(1)}
    assert broken_weight(weights) == found
