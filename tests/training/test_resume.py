"""A run never starts anew over its checkpoints: whatever is damaged, it resumes from an intact one and says so."""

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from tests.conftest import small_config
from vlm_core.files import is_disk_full, point, read_json, read_json_lines, write_json
from vlm_core.finetune import finetune
from vlm_core.resume import checkpoint_to_resume
from vlm_core.run_directory import (
    CHECKSUMS,
    CONFIG,
    LATEST,
    LOWEST_VAL,
    METRICS,
    PROGRESS,
    TRAINING_STATE,
    VALIDATION,
    WEIGHTS,
)
from vlm_core.training.checkpoint import load_progress, load_state
from vlm_core.training.distributed import Ranks

STEPS = {"step_scheduler": {"global_batch_size": 8, "max_steps": 4, "ckpt_every_steps": 2, "val_every_steps": 2}}


def train(directory: Path, conversations: Path) -> list[float]:
    finetune(small_config(**STEPS, **{"checkpoint.checkpoint_dir": str(directory)}), Ranks(), conversations)
    return [record["loss"] for record in read_json_lines(directory / METRICS)[0]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, conversations: Path) -> Path:
    """A run with the checkpoints of steps 2 and 4."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    train(directory, conversations)
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


@pytest.mark.slow
def test_a_pause_changes_nothing_in_the_rest_of_the_run(finished: Path, tmp_path: Path, conversations: Path) -> None:
    config = small_config(**STEPS, **{"checkpoint.checkpoint_dir": str(tmp_path)})
    paused = finetune(config, Ranks(), conversations, pause_after=3)
    assert paused["steps"] == 3
    assert Path(paused["checkpoint"]).name == "epoch_0_step_3"
    assert finetune(config, Ranks(), conversations, pause_after=3) == paused  # nothing is done twice
    assert [record["step"] for record in read_json_lines(tmp_path / VALIDATION)[0]] == [2, 3]
    assert finetune(config, Ranks(), conversations)["steps"] == 4
    both = [[record["loss"] for record in read_json_lines(run / METRICS)[0]] for run in (tmp_path, finished)]
    assert both[0] == both[1]
    counts = [load_progress(run / LATEST) for run in (tmp_path, finished)]
    assert counts[0] == counts[1]  # early stopping too: the validation at the pause does not count
    digests = [read_json(run / LATEST / CHECKSUMS)["model/model.safetensors"] for run in (tmp_path, finished)]
    assert digests[0] == digests[1]


def test_a_pause_needs_a_step_and_a_checkpoint(tmp_path: Path, conversations: Path) -> None:
    for overrides, step in (({"checkpoint.enabled": False}, 2), ({}, 0)):
        config = small_config(**STEPS, **{"checkpoint.checkpoint_dir": str(tmp_path)}, **overrides)
        with pytest.raises(ValueError, match=f"--pause-after {step} needs a step from 1 on and a checkpoint"):
            finetune(config, Ranks(), conversations, pause_after=step)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def relink(run: Path, target: str) -> None:
    (run / LATEST).unlink()
    (run / LATEST).symlink_to(target)


def of_latest(change: Callable[[Path], Any], *names: str) -> Callable[[Path], Any]:
    return lambda run: change((run / LATEST).resolve().joinpath(*names))


def as_a_file(run: Path) -> None:
    (run / LATEST).unlink()
    (run / LATEST).write_text("epoch_0_step_4")


SAFETENSORS = (WEIGHTS, "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "step", "said"),
    [
        (lambda run: relink(run, "epoch_9_step_99"), 4, "step_99 is not a checkpoint"),
        (lambda run: relink(run, LATEST), 4, "LATEST is not a checkpoint"),
        (lambda run: relink(run, "/nowhere/epoch_0_step_3"), 2, "step_3 is not a checkpoint"),
        (as_a_file, 4, "LATEST is not a checkpoint"),
        (lambda run: (run / LATEST).unlink(), 4, ""),  # a copy without links
        (of_latest(shutil.rmtree), 2, "step_4 is not a checkpoint"),
        (of_latest(cut, *SAFETENSORS), 2, "is incomplete"),
        (of_latest(lambda path: path.write_bytes(b""), *SAFETENSORS), 2, "model.safetensors is empty"),
        (of_latest(flip, *SAFETENSORS), 2, "model/model.safetensors missing or changed"),
        (of_latest(Path.unlink, *SAFETENSORS), 2, "model/model.safetensors missing or changed"),
        (of_latest(cut, TRAINING_STATE), 2, "training_state.pt missing or changed"),
        (of_latest(flip, TRAINING_STATE), 2, "training_state.pt missing or changed"),
        (of_latest(cut, PROGRESS), 2, "progress.json is damaged"),
        (
            of_latest(lambda path: path.write_text('{"step": 1000000000}'), PROGRESS),
            2,
            "progress.json missing or changed",
        ),
        (of_latest(lambda path: path.write_text("[]"), PROGRESS), 2, "is damaged"),
        (of_latest(lambda path: path.write_text('{"step": -4}'), PROGRESS), 2, "its step is -4"),
        (of_latest(lambda path: path.write_text(""), CONFIG), 2, "is damaged"),
        (of_latest(lambda path: path.write_text("a: [1"), CONFIG), 2, "is damaged"),
        (of_latest(cut, CHECKSUMS), 2, "checksums.json is damaged"),
        (of_latest(lambda path: path.write_text("[1]"), CHECKSUMS), 2, "is damaged"),
    ],
)
def test_the_newest_intact_checkpoint_is_taken(
    run: Path, damage: Callable[[Path], Any], step: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run)
    found = checkpoint_to_resume(run, None, thorough=True)
    assert found == run / f"epoch_0_step_{step}"
    assert said in caplog.text
    if said:
        assert f"the run resumes from {found.name} instead" in caplog.text


def test_cut_weights_are_found_without_checksums(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints of earlier versions have none."""
    latest = run / "epoch_0_step_4"
    (latest / CHECKSUMS).unlink()
    cut(latest.joinpath(*SAFETENSORS))
    assert checkpoint_to_resume(run, None) == run / "epoch_0_step_2"
    assert "model.safetensors is incomplete" in caplog.text


def test_a_run_without_an_intact_checkpoint_does_not_start_anew(run: Path) -> None:
    for step in (2, 4):
        cut(run / f"epoch_0_step_{step}" / TRAINING_STATE)
    with pytest.raises(ValueError, match=r"step_4 is damaged: .*step_2 is damaged: .*No checkpoint of .* is intact"):
        checkpoint_to_resume(run, None, thorough=True)
    assert checkpoint_to_resume(run / "other", None, thorough=True) is None


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(run: Path) -> None:
    flip(run / "epoch_0_step_2" / TRAINING_STATE)
    with pytest.raises(ValueError, match=r"restore_from='epoch_0_step_2': .*training_state.pt missing or changed"):
        checkpoint_to_resume(run, "epoch_0_step_2", thorough=True)
    assert checkpoint_to_resume(run, "epoch_0_step_4", thorough=True) == run / "epoch_0_step_4"


def test_the_best_checkpoint_is_found_without_its_pointer(run: Path) -> None:
    (run / LOWEST_VAL).unlink()
    for step, lowest, since in ((2, 3.5, 0), (4, 3.5, 1)):
        progress = read_json(run / f"epoch_0_step_{step}" / PROGRESS)
        progress |= {"lowest_validation_loss": lowest, "validations_since_lowest": since}
        write_json(run / f"epoch_0_step_{step}" / PROGRESS, progress)
        (run / f"epoch_0_step_{step}" / CHECKSUMS).unlink()  # as in checkpoints of earlier versions
    assert checkpoint_to_resume(run, LOWEST_VAL) == run / "epoch_0_step_2"


def test_a_run_with_a_damaged_checkpoint_ends_as_an_undisturbed_one(
    run: Path, finished: Path, conversations: Path
) -> None:
    """Records are damaged too: a power cut leaves half a line or zeros."""
    flip(run / "epoch_0_step_4" / WEIGHTS / "model.safetensors")
    with (run / METRICS).open("ab") as stream:
        stream.write(b"\0" * 20 + b'\n{bad\n[1]\n{"loss": 1}\n{"step": 9')
    losses = [record["loss"] for record in read_json_lines(finished / METRICS)[0]]
    assert train(run, conversations) == losses
    assert all(json.loads(line)["step"] for line in (run / METRICS).read_text().splitlines())
    assert checkpoint_to_resume(run, None, thorough=True) == run / "epoch_0_step_4"


def test_an_optimizer_state_is_never_unpickled(run: Path) -> None:
    class Call:
        def __reduce__(self) -> Any:
            return Path.mkdir, (run / "ran",)

    (run / LATEST / TRAINING_STATE).write_bytes(pickle.dumps(Call(), protocol=2))
    with pytest.raises(ValueError, match=r"training_state.pt is damaged, or holds .*to an older checkpoint"):
        load_state(run / LATEST)
    assert not (run / "ran").exists()


def test_a_state_that_cannot_be_used_is_named_with_a_remedy(run: Path) -> None:
    """Checkpoints of earlier versions have no checksums, so that their damage shows only here."""
    torch.save({"a": 1}, run / LATEST / TRAINING_STATE)
    with pytest.raises(ValueError, match=r"does not hold the states of optimizer .*to an older checkpoint"):
        load_state(run / LATEST)
    (run / LATEST / TRAINING_STATE).unlink()
    with pytest.raises(ValueError, match=r"training_state.pt is missing. .*to an older checkpoint"):
        load_state(run / LATEST)
    write_json(run / LATEST / PROGRESS, read_json(run / LATEST / PROGRESS) | {"added_later": 1})
    with pytest.raises(ValueError, match=r"a newer version wrote it .*added_later.*to an older checkpoint"):
        load_progress(run / LATEST)


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "quota"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    CheckpointException("save", dict[int, Any]({0: (OSError(errno.ENOSPC, "No space left on device"), None)})),
]


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    finished: Path, run: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(map(is_disk_full, FULL))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))

    def fail(*arguments: object) -> None:
        raise FULL[-1]

    shutil.rmtree(run / "epoch_0_step_4")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ValueError, match=r"no space left in .*, which has \d+ MB free: .*same command again"):
        train(run, conversations)
    assert [path.name for path in run.glob("*epoch*")] == ["epoch_0_step_2"]
    monkeypatch.undo()
    losses = [record["loss"] for record in read_json_lines(finished / METRICS)[0]]
    assert train(run, conversations) == losses


def test_a_pointer_replaces_what_a_copy_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copytree(tmp_path / "new", tmp_path / LATEST)
    point(tmp_path / LATEST, tmp_path / "new")
    assert (tmp_path / LATEST).readlink() == Path("new")
