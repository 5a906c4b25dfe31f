"""The terminal's view of a flow that is run by hand: a log without Prefect's own lines, and a live progress bar."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.schemas import State
from prefect.exceptions import CancelledRun
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for
from tqdm import tqdm

from vlm_core.files import read_json
from vlm_core.hub import HubBusyError
from vlm_core.plain_text import printable
from vlm_core.progress import Progress, duration

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
NOISE = ("Finished in state Completed", "Stopping temporary server")  # the stage headings show the same


def tidy_log() -> None:
    """Hides the lines of this process's log that do not help the person who started the run."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    logging.getLogger("mlflow").setLevel(logging.WARNING)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a command with one line if its input is wrong, and with a shell's exit code after Ctrl-C."""
    try:
        yield
    except (ValueError, HubBusyError) as error:
        raise SystemExit(f"error: {printable(error)}") from error
    except CancelledRun:  # the flow's log already reports what was saved
        raise SystemExit(130) from None


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.name.startswith("prefect") and record.getMessage().startswith(NOISE))


def page_of(state: State) -> str | None:
    """Returns the address of a flow run's page, or None if its server ended with the run."""
    return url_for("flow-run", state.state_details.flow_run_id) if PREFECT_API_URL.value() else None


class LiveLine:
    """One line with bar, loss and time left, read from a job's progress file; shown in terminals only."""

    def __init__(self, file: Path) -> None:
        self.file, self.bar = file, tqdm(disable=True)
        self.shown: Progress | None = None

    def poll(self) -> None:
        """Reads and shows the latest progress."""
        if sys.stderr.isatty() and self.file.is_file():
            self.show(Progress(**read_json(self.file)))

    def show(self, progress: Progress) -> None:
        """Shows `progress`; a new piece of work (another title) gets a new line."""
        if progress == self.shown:
            return
        if self.shown is None or progress.title != self.shown.title:
            self.bar.close()
            bar_format = BAR if progress.total else None
            self.bar = tqdm(total=progress.total, desc=progress.title, bar_format=bar_format, dynamic_ncols=True)
        self.shown, self.bar.n = progress, progress.done
        left = progress.seconds_left
        self.bar.set_postfix_str(", ".join(filter(None, [progress.note, f"{duration(left)} left" if left else ""])))

    def close(self) -> None:
        """Closes the line."""
        self.bar.close()
