"""A stopped run is Cancelled, not Crashed: its page shows what was saved, and nothing is red."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from tasks.stops import SWEEP, ends_quietly, report_stop, resumption, stoppable_task
from vlm_core.files import write_json


def run_directory(directory: Path, step: int | None) -> Path:
    """Creates a run directory with a checkpoint of `step`, and returns it."""
    if step is not None:
        checkpoint = directory / f"epoch_2_step_{step}"
        checkpoint.mkdir()
        write_json(checkpoint / "progress.json", {"step": step})
        (directory / "LATEST").symlink_to(checkpoint.name)
    return directory


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


def test_the_message_names_the_checkpoint_and_how_to_resume(tmp_path: Path) -> None:
    assert resumption(run_directory(tmp_path, 1200)) == (
        f"Stopped: step 1,200 is saved in {tmp_path}/epoch_2_step_1200. The same command with "
        f"`--checkpoint.checkpoint_dir {tmp_path}` resumes from it."
    )


def test_the_message_says_if_nothing_was_saved(tmp_path: Path) -> None:
    assert "no checkpoint was saved yet" in resumption(tmp_path)
    assert resumption(tmp_path).endswith("from the start.")


def test_a_sweep_and_its_trials_resume_by_the_name_of_the_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "first"
    (sweep / "first-trial-001").mkdir(parents=True)
    trial = run_directory(sweep / "first-trial-001", 1200)
    write_json(sweep / SWEEP, {})
    assert resumption(trial).endswith("The same command with `--sweep-name first` resumes from it.")
    assert "the trials are saved in" in resumption(sweep)
    assert resumption(sweep).endswith("The same command with `--sweep-name first` resumes from them.")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), TerminationSignal(15)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_flow_is_cancelled_and_nothing_is_red(
    prefect: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: BaseException
) -> None:
    directory, later = run_directory(tmp_path, 7), []

    @stoppable_task(persist_result=False)
    def train() -> int:
        raise stop

    @flow
    @ends_quietly
    def training() -> int:
        try:
            steps = train()
        except Exception as error:
            report_stop(directory, error)
        later.append(steps)
        return steps

    caplog.set_level(logging.INFO)
    state = training(return_state=True)
    assert (state.name, state.message) == ("Cancelled", resumption(directory))
    assert later == []
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", resumption(directory)) in logged
    assert ("INFO", "Finished in state Cancelled('Stopped on request.')") in logged
    assert [message for level, message in logged if level not in ("INFO", "DEBUG") or "rash" in message] == []


@pytest.mark.slow
def test_a_task_that_ends_by_itself_returns_its_value(prefect: None) -> None:
    @stoppable_task(persist_result=False)
    def add(a: int, b: int = 2) -> int:
        return a + b

    @flow
    @ends_quietly
    def adding(a: int) -> int:
        return add(a)

    assert adding(3) == 5
    assert adding.parameters.properties["a"]["type"] == "integer"  # the form has the function's parameters
