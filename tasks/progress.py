"""Shows the progress of long steps in Prefect's UI: one progress artifact per step, with numbers and time left."""

import logging
import time
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from vlm_core.files import read_json
from vlm_core.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_UPDATES = 3.0
SECONDS_AFTER_A_FAILURE = 60.0  # Prefect's client has already retried for seconds


class ProgressArtifact:
    """The progress artifact of one step: created with the first progress, updated every few seconds."""

    def __init__(self, step: str, run_id: str = "", file: Path | None = None) -> None:
        """`file` is the file to which the step's job writes its progress; `poll` reads it."""
        self.key, self.run_id, self.file = f"medpix-{step}-progress", run_id, file
        self.artifact: UUID | None = None
        self.shown: Progress | None = None
        self.next_update = 0.0

    def poll(self) -> None:
        """Shows the job's latest progress, if it changed."""
        if self.file is not None and self.file.is_file():
            self.show(Progress(**read_json(self.file)))

    def show(self, progress: Progress) -> None:
        """Shows `progress`. If Prefect's API is down, the step continues, and a later call sends the update."""
        ended = progress.done == progress.total
        if progress == self.shown or (time.monotonic() < self.next_update and not ended):
            return
        self.shown, self.next_update = progress, time.monotonic() + SECONDS_BETWEEN_UPDATES
        percent = 100.0 * progress.done / progress.total if progress.total else 0.0
        try:
            self._send(percent, describe(progress, self.run_id))
        except Exception as error:  # a failure of the network or the server must not stop a training
            self.next_update = time.monotonic() + SECONDS_AFTER_A_FAILURE
            logger.warning("Prefect did not accept the progress of %s: %s", self.key, error)

    def _send(self, percent: float, description: str) -> None:
        if self.artifact is None:
            found = create_progress_artifact(percent, key=self.key, description=description)
            assert isinstance(found, UUID)  # outside a coroutine it returns the id
            self.artifact = found
        else:
            update_progress_artifact(self.artifact, percent, description=description)


def describe(progress: Progress, run_id: str) -> str:
    """Returns `progress` as a small Markdown table."""
    of = "" if progress.total is None else f" of {progress.total:,}"
    rows = [(progress.title, f"{progress.done:,}{of} {progress.unit}s"), ("now", progress.note)]
    if progress.seconds_left is not None:
        rows.append(("time left", str(timedelta(seconds=round(progress.seconds_left)))))
    rows.append(("run", run_id))
    (title, count), *others = [(name, value) for name, value in rows if value]
    return "\n".join([f"| {title} | {count} |", "|---|---|", *(f"| {name} | {value} |" for name, value in others)])
