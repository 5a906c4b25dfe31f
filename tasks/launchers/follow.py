"""Runs a job from start to end, in the same way for every launcher: copies its log, polls it, reports its failure."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from prefect.exceptions import TerminationSignal

from tasks.launchers.job import Job, JobFailedError, Launcher
from vlm_core.log import read_line

SECONDS_BETWEEN_POLLS = 0.5
TAIL_LINES = 30

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


def run_job(job: Job, launcher: Launcher, *, logger: Logger, on_poll: Callable[[], None] = lambda: None) -> None:
    """Submits `job` to `launcher` and follows it to its end.

    Copies the lines of the job's log to `logger` while the job runs. Calls `on_poll` about twice a second, and once
    after the end. If this call ends early (a cancellation, an error in `on_poll`), it cancels the job first.
    Raises JobFailedError for a non-zero exit code, and ValueError if the job cannot be submitted.
    """
    job.log_file.parent.mkdir(parents=True, exist_ok=True)
    job.log_file.touch()
    submitted = launcher.submit(job)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        with job.log_file.open("rb") as source:
            source.seek(submitted.log_start)
            while (exit_code := submitted.result()) is None:
                _copy_lines(source, logger, tail)
                on_poll()
                time.sleep(SECONDS_BETWEEN_POLLS)
            _copy_lines(source, logger, tail, ended=True)
            on_poll()
    except (TerminationSignal, KeyboardInterrupt):
        logger.info("stopping %s; a training saves a checkpoint first", job.module)
        raise
    finally:
        submitted.cancel()
    if exit_code:
        last_lines = "\n".join(tail)
        code = f"{exit_code} ({submitted.failure_detail})" if submitted.failure_detail else exit_code
        raise JobFailedError(f"{job.module} ended with exit code {code}; {job.log_file} ends with:\n{last_lines}")


def _copy_lines(source: BinaryIO, logger: Logger, tail: deque[str], *, ended: bool = False) -> None:
    """Logs the new lines of the job's log, and keeps the last ones in `tail`."""
    while line := source.readline():
        if not line.endswith(b"\n") and not ended:
            source.seek(-len(line), os.SEEK_CUR)  # The job is still writing this line.
            return
        text = line.decode(errors="replace").rstrip()  # Drivers write to the log too, in any encoding.
        if text:
            tail.append(text)
            level, message = read_line(text)  # without the job's time stamp: the logger adds its own
            logger.log(level, "%s", message)
