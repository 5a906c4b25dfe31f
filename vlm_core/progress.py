"""Shows the progress of long work: a bar in a terminal, otherwise (log, flow run) a line every 10 % or 30 seconds.

Other displays receive the progress through `progress_sent_to`, or from the progress file that a job writes.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from vlm_core.files import write_json
from vlm_core.log import PROGRESS

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_TENTHS = 1.0  # short work gets its last line only
LINES = 10  # lines in total, if the amount of work is known
SECONDS_BETWEEN_REPORTS = 1.0
PROGRESS_FILE = "MEDPIX_PROGRESS_FILE"  # environment variable: path of a job's progress file


@dataclass(frozen=True)
class Progress:
    """The progress of a piece of work: `done` of `total` units; `total` is None if unknown."""

    title: str
    unit: str
    done: int
    total: int | None
    note: str
    seconds_left: float | None


_sinks: list[Callable[[Progress], None]] = []


@contextmanager
def progress_sent_to(sink: Callable[[Progress], None]) -> Iterator[None]:
    """Makes each ProgressBar of this process call `sink` about once a second and at its end, during the block."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


def progress_writer(path: Path) -> Callable[[Progress], None]:
    """Returns a sink that writes the latest progress to `path` as JSON."""
    return lambda progress: write_json(path, asdict(progress))


def duration(seconds: float) -> str:
    """Formats a number of seconds for people.

    >>> duration(42.4), duration(200), duration(7300)
    ('42 s', '3 min 20 s', '2 h 1 min')
    """
    if seconds == float("inf"):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class ProgressBar:
    """Counts `total` units of work (None: unknown); use it as a context manager.

    >>> with ProgressBar(total=2, title="encode", unit="image") as progress:
    ...     progress.update(2)
    """

    def __init__(self, total: int | None, title: str, unit: str, *, enabled: bool = True, done: int = 0) -> None:
        self.total, self.title, self.unit, self.done, self.first = total, title, unit, done, done
        self.enabled, self.lines = enabled, enabled and not sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            desc=title,
            unit=unit,
            unit_scale=unit == "byte",
            initial=done,
            disable=not enabled or self.lines,
        )
        self.started = self.last_line = time.monotonic()
        self.tenths = self._tenths()
        self.reported = 0.0

    def update(self, amount: int = 1, note: str = "") -> None:
        """Counts `amount` more units; `note` is shown next to the count."""
        self.done += amount
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(amount)
        now = time.monotonic()
        if self.enabled and (now - self.reported >= SECONDS_BETWEEN_REPORTS or self.done == self.total):
            self.reported = now
            left = self.seconds_left() if self.total else None
            for sink in _sinks:
                sink(Progress(self.title, self.unit, self.done, self.total, note, left))
        if self.lines and self._is_time_for_a_line(now):
            self.last_line, self.tenths = now, self._tenths()
            of, left = (f"/{self.total}", f", {duration(self.seconds_left())} left") if self.total else ("", "")
            count = (f"{self.done}{of} {self.unit}s", note)
            logger.log(PROGRESS, "%s %s%s", self.title, ", ".join(filter(None, count)), left)

    def _is_time_for_a_line(self, now: float) -> bool:
        waited = now - self.last_line
        if self._tenths() == self.tenths:
            return waited >= SECONDS_BETWEEN_LINES
        return waited >= SECONDS_BETWEEN_TENTHS or self.done == self.total

    def _tenths(self) -> int:
        return self.done * LINES // self.total if self.total else 0

    def seconds_left(self) -> float:
        """Returns the estimated seconds to the end from the average speed; infinity if it is unknown."""
        worked = self.done - self.first
        if self.total is None or not worked:
            return float("inf")
        return (time.monotonic() - self.started) / worked * (self.total - self.done)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
