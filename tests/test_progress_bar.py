"""The log has a line of progress per tenth and per half minute; a job's line keeps its level, not its time."""

import logging

import pytest

from vlm_core import progress
from vlm_core.log import PROGRESS, read_line
from vlm_core.progress import ProgressBar, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, for tests to change."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_tenth(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    with caplog.at_level(PROGRESS), ProgressBar(200, "finetune", "step", done=50) as bar:
        for step in range(150):
            clock[0] += 0.5
            bar.update(note=f"loss {step}")
    assert [record.levelno for record in caplog.records] == [PROGRESS] * 8  # a quarter was done at the start
    assert caplog.messages[0] == "finetune 60/200 steps, loss 9, 1 min 10 s left"
    assert caplog.messages[-1] == "finetune 200/200 steps, loss 149, 0 s left"


def test_quick_work_has_one_line(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    with caplog.at_level(PROGRESS), ProgressBar(50, "encode", "image") as bar:
        for _ in range(50):
            clock[0] += 0.01
            bar.update()
    assert caplog.messages == ["encode 50/50 images, 0 s left"]


def test_work_that_is_slow_or_of_unknown_length_has_a_line_per_half_minute(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    with (
        caplog.at_level(PROGRESS),
        ProgressBar(1000, "finetune", "step") as bar,
        ProgressBar(None, "read", "row") as rows,
    ):
        for _ in range(7):
            clock[0] += 10
            bar.update()
            rows.update(100)
    assert caplog.messages == [
        "finetune 3/1000 steps, 2 h 46 min left",
        "read 300 rows",
        "finetune 6/1000 steps, 2 h 45 min left",
        "read 600 rows",
    ]


def test_durations_are_easy_to_read() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 200, 7300)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 1 min"]
    assert duration(float("inf")) == "unknown time"


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("12:00:00 INFO    token ids reused", logging.INFO, "token ids reused"),
        ("12:00:00 WARNING  look out", logging.WARNING, "look out"),
        ("12:00:00 PROGRESS finetune 3/30 steps", PROGRESS, "finetune 3/30 steps"),
        ("examples    340: 9 steps per epoch", logging.INFO, "examples    340: 9 steps per epoch"),
        ("12:00:00 is noon", logging.INFO, "12:00:00 is noon"),
    ],
)
def test_a_line_of_a_job_is_read_back(line: str, level: int, message: str) -> None:
    assert read_line(line) == (level, message)
