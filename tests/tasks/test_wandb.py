"""Weights & Biases gets the contents of the run directory, each record once, and its failures do not stop a training.

The tests read the offline mode's files with wandb's own reader.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.trackers.wandb_process import sent_to_wandb
from tasks.trackers.wandb_run import NOT_INSTALLED, SAMPLE_COLUMNS, STATE
from tests.conftest import small_config
from tests.tasks.test_mlflow_run import report
from tests.wandb_files import wandb_runs
from tests.wandb_server import WandbServer, wandb_server
from vlm_core.files import read_json, read_json_lines, write_json
from vlm_core.finetune import finetune
from vlm_core.run_directory import CONFIG, METRICS, PARAMETERS, RESULT, SAMPLES, VALIDATION
from vlm_core.training.distributed import Ranks

pytestmark = pytest.mark.slow

OFFLINE = {"wandb": {"project": "medpix", "mode": "offline"}}
IMPATIENT = "import tasks.trackers.wandb_run as w; w.INIT_SECONDS = w.FINISH_SECONDS = 3; w.main()"
ONLINE = {"wandb": {"project": "medpix"}}


def curve(runs: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for run in runs for row in run["history"] if key in row]


def command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tasks.trackers.wandb_run", *options, str(directory)]


def send(directory: Path) -> str:
    """Runs the command on a run directory, and returns its output."""
    return subprocess.run(command(directory), check=True, capture_output=True, text=True, timeout=60).stderr


def test_offline_files_hold_what_the_run_directory_holds(conversations: Path, tmp_path: Path) -> None:
    settings = {"checkpoint.checkpoint_dir": str(tmp_path), "step_scheduler.val_every_steps": 2}
    finetune(small_config(**settings | OFFLINE), Ranks(), conversations)
    assert "wandb sync" in send(tmp_path)
    (run,) = wandb_runs(tmp_path)
    records, validations = (read_json_lines(tmp_path / name)[0] for name in (METRICS, VALIDATION))
    for key in ("loss", "grad_norm", "lr", "tokens_per_second", "elapsed_seconds"):
        assert curve([run], f"train/{key}") == [(record["step"], record[key]) for record in records]
    assert len(records) == 3
    assert curve([run], "validation/loss") == [(record["step"], record["loss"]) for record in validations]
    assert (run["project"], run["name"], run["exit_code"]) == ("medpix", tmp_path.name, 0)
    assert run["config"]["optimizer"]["lr"] == 4e-3
    assert run["config"]["parameters"] == read_json(tmp_path / PARAMETERS)
    samples = [row for path in run["files"].glob("media/table/*") for row in read_json(path)["data"]]
    expected = [[sample[column] for column in SAMPLE_COLUMNS] for sample in read_json_lines(tmp_path / SAMPLES)[0]]
    assert sorted(samples) == sorted(expected)
    assert {row[0] for row in samples} == {2, 3}
    assert len([*run["files"].glob("media/images/loss*.png")]) == 1


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def sent(directory: Path) -> dict[str, int]:
    return read_json(directory / STATE)["sent"] if (directory / STATE).exists() else {}


def test_a_resumed_run_resumes_the_same_wandb_run(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(small_config(**OFFLINE).to_yaml())
    follower = subprocess.Popen(command(tmp_path, "--follow"), stderr=subprocess.DEVNULL)
    report(tmp_path, 1, 5)
    until(lambda: sent(tmp_path).get(METRICS) == 5)
    follower.send_signal(signal.SIGTERM)
    assert follower.wait(60) == 0
    report(tmp_path, 4, 9)  # resumed from step 3, so steps 4 and 5 are written again
    write_json(tmp_path / RESULT, {"steps": 9, "last_loss": 9.0})
    send(tmp_path)
    first, second = wandb_runs(tmp_path)
    assert first["id"] == second["id"]
    assert (first["exit_code"], second["exit_code"]) == (1, 0)  # unfinished, then finished
    assert curve([first, second], "train/loss") == [(step, float(step)) for step in range(1, 10)]


def test_no_texts_reach_wandb_if_reports_have_none(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(small_config(**OFFLINE, **{"report.images": False}).to_yaml())
    report(tmp_path, 1, 1)
    sample = {"step": 1, "example_id": "a", "question": "q", "prediction": "p", "reference": "r"}
    (tmp_path / SAMPLES).write_text(json.dumps(sample) + "\n")
    (tmp_path / VALIDATION).write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    send(tmp_path)
    (run,) = wandb_runs(tmp_path)
    assert curve([run], "validation/loss") == [(1, 2.0)]
    assert not [*run["files"].glob("media/**/*")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server


def test_the_server_gets_each_step_once(server: WandbServer, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(small_config(**ONLINE).to_yaml())
    report(tmp_path, 1, 5)
    send(tmp_path)
    report(tmp_path, 4, 9)
    write_json(tmp_path / RESULT, {"steps": 9})
    send(tmp_path)
    assert [(row["step"], row["train/loss"]) for row in server.history] == [(i, float(i)) for i in range(1, 10)]
    assert set(server.runs) == {read_json(tmp_path / STATE)["id"]}
    assert server.exit_codes == [1, 0]
    server.status = 401
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.match("error: Weights & Biases did not accept the run: .* 401", done.stderr.splitlines()[-1])


def test_records_that_miss_the_timeout_stay_in_files(server: WandbServer, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(small_config(**ONLINE).to_yaml())
    impatient = [sys.executable, "-c", IMPATIENT, "--follow", str(tmp_path)]
    with subprocess.Popen(impatient, stderr=subprocess.PIPE, text=True) as sender:
        report(tmp_path, 1, 1)
        until(lambda: sent(tmp_path).get(METRICS) == 1)
        server.status = 503
        report(tmp_path, 2, 2)
        until(lambda: sent(tmp_path).get(METRICS) == 2)
        sender.terminate()
        output = sender.communicate(timeout=60)[1]
    assert sender.returncode == 1
    assert re.search(
        rf"not everything was received in 3 s; to send the rest, run: wandb sync {tmp_path}/wandb/run-\S+", output
    )


def test_the_flow_warns_if_the_server_refuses_at_the_end(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / CONFIG).write_text(small_config(**ONLINE).to_yaml())
    with sent_to_wandb(small_config(**ONLINE), tmp_path, logging.getLogger("test")) as poll:
        report(tmp_path, 1, 1)
        until(lambda: sent(tmp_path).get(METRICS) == 1)
        server.status = 401
        report(tmp_path, 2, 2)
        poll()
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Use `wandb sync`" in warning


NO_NETWORK = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}


def test_a_rejected_run_is_one_line_of_error(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(small_config(**ONLINE).to_yaml())
    impatient = [sys.executable, "-c", IMPATIENT, str(tmp_path)]
    done = subprocess.run(impatient, env=os.environ | NO_NETWORK, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: Weights & Biases did not accept the run: ")
    (tmp_path / CONFIG).write_text(small_config().to_yaml())
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has no section wandb; add one: wandb: {project: NAME}" in done.stderr


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def test_the_flow_continues_without_a_key_and_warns_once(
    no_key: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / CONFIG).write_text(small_config(**ONLINE).to_yaml())
    with sent_to_wandb(small_config(**ONLINE), tmp_path, logging.getLogger("test")) as poll:
        until(lambda: poll() or bool(caplog.messages))
        poll()
    (warning,) = caplog.messages
    assert "did not accept the run" in warning
    assert f"to send the rest, run: python -m tasks.trackers.wandb_run {tmp_path} (the training continues" in warning


def test_the_flow_sends_new_records_until_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / CONFIG).write_text(small_config(**OFFLINE).to_yaml())
    with sent_to_wandb(small_config(**OFFLINE), tmp_path, logging.getLogger("test")) as poll:
        report(tmp_path, 1, 2)
        until(lambda: sent(tmp_path).get(METRICS) == 2)
        poll()
        report(tmp_path, 3, 4)
        write_json(tmp_path / RESULT, {"steps": 4})
    (run,) = wandb_runs(tmp_path)
    assert curve([run], "train/loss") == [(step, float(step)) for step in range(1, 5)]
    assert run["exit_code"] == 0
    assert [message for name, _, message in caplog.record_tuples if name == "test"] == []


def test_without_wandb_the_warning_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with sent_to_wandb(small_config(**ONLINE), tmp_path, logging.getLogger("test")) as poll:
        poll()
    assert caplog.messages == [f"this run is not sent to Weights & Biases: {NOT_INSTALLED}"]
    assert "pip install 'medpix-finetune[wandb]'" in NOT_INSTALLED
    assert list(tmp_path.iterdir()) == []
