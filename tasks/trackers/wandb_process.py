"""Starts and ends the process that sends a run to Weights & Biases; the training never waits for it."""

import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.launchers import parent_guard
from tasks.trackers.wandb_run import FINISH_SECONDS, INIT_SECONDS, NOT_INSTALLED
from vlm_core.config import Config

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]
LOG = "wandb.log"


@contextmanager
def sent_to_wandb(config: Config, directory: Path, logger: Logger) -> Iterator[Callable[[], None]]:
    """Sends the run in `directory` to W&B while the block runs, if the config has a section `wandb`.

    Yields a function to call regularly, which checks the process. A failure gives one warning; the block continues.
    """
    if config.wandb is None:
        yield lambda: None
        return
    if importlib.util.find_spec("wandb") is None:
        logger.warning("this run is not sent to Weights & Biases: %s", NOT_INSTALLED)
        yield lambda: None
        return
    sender = _Sender(directory, logger)
    try:
        yield sender.poll
    finally:
        sender.end()


class _Sender:
    def __init__(self, directory: Path, logger: Logger) -> None:
        self.directory, self.logger, self.warned = directory, logger, False
        follow = [sys.executable, "-m", "tasks.trackers.wandb_run", "--follow", str(directory)]
        self.log = directory / LOG
        with self.log.open("ab") as sink:
            self.begun = sink.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-P", parent_guard.__file__, str(os.getpid()), *follow],
                stdin=subprocess.DEVNULL,  # wandb would ask for a key
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> None:
        """Warns once if the process has ended too early, or has not sent everything."""
        if self.process.poll() is None or self.warned:
            return
        complaints = self._complaints()
        if complaints or self.process.returncode:
            self.warned = True
            reason = complaints[-1] if complaints else f"Weights & Biases: exit code {self.process.returncode}"
            self.logger.warning("%s (the training continues; see %s)", reason, self.log)

    def _complaints(self) -> list[str]:
        """Returns the error lines of our command, and the warnings and errors of wandb."""
        with self.log.open("rb") as source:
            source.seek(self.begun)
            lines = source.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.startswith(("error: ", "wandb: WARNING ", "wandb: ERROR "))]

    def end(self) -> None:
        """Lets the process send the rest, and kills it if that takes longer than the network timeouts."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(INIT_SECONDS + FINISH_SECONDS + 10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.poll()
