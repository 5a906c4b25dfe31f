"""What a person sees who runs a flow by hand in a terminal: the log without Prefect's own lines, and a live bar."""

import logging
import sys
from pathlib import Path

from prefect.client.schemas import State
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for
from tqdm import tqdm

from vlm_core.files import read_json
from vlm_core.progress import Progress, duration

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
NOISE = ("Finished in state Completed", "Stopping temporary server")  # the headings of the stages say as much


def tidy_log() -> None:
    """Leaves out of this process' log what is of no use to the person who started the run."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.name.startswith("prefect") and record.getMessage().startswith(NOISE))


def page_of(state: State) -> str | None:
    """Returns the address of a flow run's page, None for a run without a server that stays."""
    return url_for("flow-run", state.state_details.flow_run_id) if PREFECT_API_URL.value() else None


class LiveLine:
    """One line with bar, loss and time left, of what a job writes to its progress file; nothing outside a terminal."""

    def __init__(self, file: Path) -> None:
        self.file, self.bar = file, tqdm(disable=True)
        self.shown: Progress | None = None

    def look(self) -> None:
        """Shows the latest progress."""
        if sys.stderr.isatty() and self.file.is_file():
            self.show(Progress(**read_json(self.file)))

    def show(self, progress: Progress) -> None:
        """Shows `progress`, on a line of its own if it is another piece of work than before."""
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
        """Ends the line."""
        self.bar.close()
