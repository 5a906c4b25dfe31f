"""A training that is killed at any moment and restarted until it ends equals the uninterrupted one bit for bit.

Three kills here, 20 with `make stress`: at random moments, and one in three while a checkpoint is being saved.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from tests.kills import KILLS, Starter, starter_of
from vlm_core.files import file_sha256, read_json, read_json_lines
from vlm_core.run_directory import CONFIG, LATEST, METRICS, PROGRESS, RESULT

# 340 rows in steps of 40 are epochs of 9 steps, each step of several micro-batches.
STEPS = 2 * KILLS + 6
RUN = {
    "packing.max_tokens": 150,
    "step_scheduler": {
        "global_batch_size": 40, "num_epochs": 99, "max_steps": STEPS, "ckpt_every_steps": 2, "val_every_steps": None
    },
}  # fmt: skip
TRAIN = """
import json, os, sys
import transformers.models.gemma3.modeling_gemma3, vlm_core.models.tiny
from vlm_core.arguments import finetune_parser
from vlm_core.finetune import main

def work(line):
    main(*finetune_parser(None).parse_config(json.loads(line)))
"""


def arguments(directory: Path, conversations: Path) -> list[str]:
    directory.mkdir(exist_ok=True)
    (directory / CONFIG).write_text(small_config(**RUN, **{"checkpoint.checkpoint_dir": str(directory)}).to_yaml())
    return ["--config", str(directory / CONFIG), "--conversations", str(conversations)]


def steps_done(directory: Path) -> int:
    records = read_json_lines(directory / METRICS)[0]
    return records[-1]["step"] if records else 0


def half_saved(directory: Path) -> list[Path]:
    return [path for path in directory.glob(".epoch_*") if path.is_dir()]


class Runs:
    """Runs a training several times in one directory."""

    def __init__(self, starter: Starter, directory: Path, conversations: Path) -> None:
        self.starter, self.directory, self.conversations = starter, directory, conversations

    def start(self) -> int:
        """Starts the run and returns its process id."""
        return self.starter.start(json.dumps(arguments(self.directory, self.conversations)))

    def end(self) -> int:
        """Waits for the run and returns its wait status: 0, or the signal that killed it."""
        return self.starter.end()

    def kill_after(self, step: int, seconds: float) -> None:
        """Starts the run and kills it `seconds` after `step`."""
        before, process = steps_done(self.directory), self.start()
        while not step <= steps_done(self.directory) != before:  # the run first drops records after its checkpoint
            time.sleep(0.005)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        assert self.end() == signal.SIGKILL

    def kill_while_it_saves(self) -> None:
        """Starts the run and kills it while a checkpoint is half saved."""
        left, process = set(half_saved(self.directory)), self.start()
        while True:
            # Leftovers of the previous run stay until this run deletes them.
            new = set(half_saved(self.directory)) - left
            if new:
                os.kill(process, signal.SIGSTOP)
                if any(path.exists() for path in new):
                    break
                os.kill(process, signal.SIGCONT)
        os.kill(process, signal.SIGKILL)
        assert self.end() == signal.SIGKILL
        assert half_saved(self.directory)


@pytest.fixture
def starter() -> Iterator[Starter]:
    with starter_of(TRAIN) as starter:
        yield starter


def outcome(directory: Path) -> tuple[list[Any], dict[str, str]]:
    """Returns (step, loss, gradient norm) of each step, and the checksums of all saved weights."""
    records = read_json_lines(directory / METRICS)[0]
    weights = {path.parts[-3]: file_sha256(path) for path in directory.glob("epoch_*/model/model.safetensors")}
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records], weights


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * KILLS)
def test_a_killed_run_equals_the_uninterrupted_one(conversations: Path, tmp_path: Path, starter: Starter) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = Runs(starter, whole, conversations)
    undisturbed.start()
    assert undisturbed.end() == 0
    expected = outcome(whole)
    assert (len(expected[0]), len(expected[1])) == (STEPS, STEPS // 2)
    records = read_json_lines(whole / METRICS)[0]
    step_seconds = (records[-1]["elapsed_seconds"] - records[0]["elapsed_seconds"]) / (
        STEPS - 1
    )  # including the saving
    chosen, runs = random.Random(5), Runs(starter, killed, conversations)
    for number in range(KILLS):
        if number % 3 == 1:
            runs.kill_while_it_saves()
        else:  # after the last checkpoint of the previous kill, so that the run makes progress
            runs.kill_after(chosen.randint(2 * number + 2, 2 * number + 4), chosen.uniform(0, step_seconds))
        # The checkpoint to resume from is complete, whatever half-saved files are beside it.
        saved = (killed / LATEST).resolve()
        assert saved.name.endswith(f"_step_{read_json(saved / PROGRESS)['step']}")
        assert not (killed / RESULT).exists()
    runs.start()
    assert runs.end() == 0
    assert outcome(killed) == expected
    assert half_saved(killed) == []
