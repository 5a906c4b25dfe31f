"""The process that sends a run to Weights & Biases while it trains: started and ended here, and never waited for."""

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
    """Sends the run in `directory` to W&B while the block runs, where the config says so.

    Yields what is to be called now and then. Whatever fails is one warning, and the block goes on.
    """
    if config.wandb is None:
        yield lambda: None
        return
    if importlib.util.find_spec("wandb") is None:
        logger.warning("Weights & Biases gets nothing of this run: %s", NOT_INSTALLED)
        yield lambda: None
        return
    sender = _Sender(directory, logger)
    try:
        yield sender.look
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

    def look(self) -> None:
        """Warns, once, when the process has ended before its time, or without having sent everything."""
        if self.process.poll() is None or self.warned:
            return
        complaints = self._complaints()
        if complaints or self.process.returncode:
            self.warned = True
            reason = complaints[-1] if complaints else f"Weights & Biases: exit code {self.process.returncode}"
            self.logger.warning("%s (the training goes on; %s has more)", reason, self.log)

    def _complaints(self) -> list[str]:
        """Returns the lines of the command, and of wandb itself, that say what went wrong."""
        with self.log.open("rb") as source:
            source.seek(self.begun)
            lines = source.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.startswith(("error: ", "wandb: WARNING ", "wandb: ERROR "))]

    def end(self) -> None:
        """Lets the process send the rest, and no longer than a network may take."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(INIT_SECONDS + FINISH_SECONDS + 10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.look()
