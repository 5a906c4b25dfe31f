"""ProgressBar of long work: a bar in a terminal, a plain line now and then elsewhere (a log, a flow run)."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


class ProgressBar:
    """Counts `total` units of work (None: nobody knows how many); use it as a context manager.

    >>> with ProgressBar(total=2, title="encode", unit="image") as progress:
    ...     progress.update(2)
    """

    def __init__(self, total: int | None, title: str, unit: str, *, enabled: bool = True, done: int = 0) -> None:
        self.total, self.title, self.unit, self.done, self.first = total, title, unit, done, done
        self.lines = enabled and not sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=title, unit=unit, initial=done, disable=not enabled or self.lines)
        self.started = self.said = time.monotonic()

    def update(self, amount: int = 1, note: str = "") -> None:
        """Counts `amount` more units; `note` is shown beside the count."""
        self.done += amount
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(amount)
        now = time.monotonic()
        if self.lines and (now - self.said >= SECONDS_BETWEEN_LINES or self.done == self.total):
            self.said = now
            of, left = (f"/{self.total}", f", {self.seconds_left():.0f} s left") if self.total else ("", "")
            logger.info("%s %d%s %ss%s%s", self.title, self.done, of, self.unit, f", {note}" if note else "", left)

    def seconds_left(self) -> float:
        """Returns the expected time to the end, from the speed so far."""
        worked = self.done - self.first
        if self.total is None or not worked:
            return float("inf")
        return (time.monotonic() - self.started) / worked * (self.total - self.done)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
