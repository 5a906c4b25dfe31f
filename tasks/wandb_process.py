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

from tasks import bound
from tasks.wandb_run import FINISH_SECONDS, INIT_SECONDS, NOT_INSTALLED
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
        follow = [sys.executable, "-m", "tasks.wandb_run", "--follow", str(directory)]
        with (directory / LOG).open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(bound.__file__)), str(os.getpid()), *follow],
                stdin=subprocess.DEVNULL,  # wandb would ask for a key
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look(self) -> None:
        """Warns, once, when the process has ended before its time."""
        if self.process.poll() and not self.warned:
            self.warned = True
            said = (self.directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
            self.logger.warning(
                "%s; training goes on, and python -m tasks.wandb_run %s sends what is missing (%s has more)",
                said[-1] if said else "Weights & Biases got nothing", self.directory, self.directory / LOG,
            )  # fmt: skip

    def end(self) -> None:
        """Lets the process send the rest, and no longer than a network may take."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(INIT_SECONDS + FINISH_SECONDS + 10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.look()
