"""A job from its start to its end, the same for every launcher: its log, its follower's own work, its failure."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from prefect.exceptions import TerminationSignal

from tasks.launchers.job import Job, JobFailedError, Launcher
from vlm_core.log import read_line

SECONDS_BETWEEN_LOOKS = 0.5
TAIL_LINES = 30

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


def run_job(job: Job, launcher: Launcher, *, logger: Logger, on_look: Callable[[], None] = lambda: None) -> None:
    """Has `launcher` run `job` to its end.

    Lines of its log go to `logger` while it runs; `on_look` is called about twice a second, and once after the end.
    Whatever ends this call early (a cancellation, an error of `on_look`) cancels the job first.
    Raises JobFailedError for a non-zero exit code, ValueError where the job cannot be submitted.
    """
    job.log_file.parent.mkdir(parents=True, exist_ok=True)
    job.log_file.touch()
    submitted = launcher.submit(job)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        with job.log_file.open("rb") as source:
            source.seek(submitted.log_start)
            while (exit_code := submitted.result()) is None:
                _pass_on(source, logger, tail)
                on_look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            _pass_on(source, logger, tail, ended=True)
            on_look()
    except (TerminationSignal, KeyboardInterrupt):
        logger.info("stopping %s; a training saves its step first", job.module)
        raise
    finally:
        submitted.cancel()
    if exit_code:
        last_lines = "\n".join(tail)
        code = f"{exit_code} ({submitted.remark})" if submitted.remark else exit_code
        raise JobFailedError(f"{job.module} ended with exit code {code}; {job.log_file} ends with:\n{last_lines}")


def _pass_on(source: BinaryIO, logger: Logger, tail: deque[str], *, ended: bool = False) -> None:
    while line := source.readline():
        if not line.endswith(b"\n") and not ended:
            source.seek(-len(line), os.SEEK_CUR)  # It is still being written.
            return
        text = line.decode(errors="replace").rstrip()  # Drivers write into it too, in whatever encoding.
        if text:
            tail.append(text)
            level, message = read_line(text)  # whoever logs it has a time of its own
            logger.log(level, "%s", message)
