"""A job's progress reaches Prefect's UI every few seconds, and an API that is down does not stop the job."""

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import progress
from tasks.progress import ProgressArtifact
from vlm_core.progress import Progress, ProgressBar, progress_sent_to, progress_writer


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, str]]:
    """The calls that were sent to the API, as (create or update, percent, description)."""
    calls: list[tuple[str, float, str]] = []

    def create(percent: float, *, key: str, description: str) -> Any:
        calls.append((key, percent, description))
        return uuid4()

    def update(artifact: Any, percent: float, *, description: str) -> None:
        calls.append(("update", percent, description))

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(progress, "update_progress_artifact", update)
    return calls


def test_a_bar_is_followed_through_its_file(tmp_path: Path, sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "finetune.progress.json"
    artifact = ProgressArtifact("finetune", "demo-1", file)
    artifact.poll()
    assert sent == []  # the job has not started
    with progress_sent_to(progress_writer(file)), ProgressBar(400, "finetune", "step", done=100) as bar:
        bar.update(100, "loss 6.1234, 12.3 samples/s")
        artifact.poll()
        artifact.poll()
        bar.update(1, "not yet")
        artifact.poll()
        assert len(sent) == 1  # not more often than every few seconds
        bar.update(199, "loss 0.5000, 12.4 samples/s")
    artifact.poll()  # the end is always shown
    artifact.poll()
    assert [(what, percent) for what, percent, _ in sent] == [("medpix-finetune-progress", 50.0), ("update", 100.0)]
    assert sent[1][2].splitlines() == [
        "| finetune | 400 of 400 steps |",
        "|---|---|",
        "| now | loss 0.5000, 12.4 samples/s |",
        "| time left | 0:00:00 |",
        "| run | demo-1 |",
    ]


def test_bars_of_other_ranks_and_outside_the_block_report_nothing(tmp_path: Path) -> None:
    with progress_sent_to(progress_writer(tmp_path / "file")):
        ProgressBar(1, "encode", "image", enabled=False).update()
    ProgressBar(1, "encode", "image").update()
    assert not (tmp_path / "file").exists()


def test_an_api_that_is_down_does_not_stop_the_job(caplog: pytest.LogCaptureFixture) -> None:
    artifact = ProgressArtifact("encode")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), caplog.at_level(logging.WARNING):
        artifact.show(Progress("encode images", "image", 1, 10, "", 3.0))
        artifact.show(Progress("encode images", "image", 2, 10, "", 2.0))
    assert caplog.text.count("Prefect did not accept the progress of medpix-encode-progress") == 1
