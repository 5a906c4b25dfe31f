"""Logging of the commands: messages to standard error, so that standard output carries results alone."""

import logging
import re
import sys

from tqdm import tqdm

from vlm_core.plain_text import keep_logs_plain

PROGRESS = logging.INFO + 1  # of lines that a bar on a terminal takes the place of
logging.addLevelName(PROGRESS, "PROGRESS")
_LINE = re.compile(r"\d\d:\d\d:\d\d (\w+) +(.*)")


def configure_logging(*, quiet: bool = False) -> None:
    """Sends records of INFO and above (WARNING and above when `quiet`) to standard error."""
    keep_logs_plain()
    handler = BesideBars(sys.stderr)
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    if sys.stderr.isatty():
        handler.addFilter(lambda record: record.levelno != PROGRESS)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[handler],
        force=True,
    )
    for noisy in ("httpx", "httpx2", "urllib3", "filelock", "datasets", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def read_line(text: str) -> tuple[int, str]:
    """Returns level and message of a line that `configure_logging` wrote; any other line is a message of INFO.

    >>> read_line("12:00:00 WARNING the disk is nearly full")
    (30, 'the disk is nearly full')
    """
    found = _LINE.fullmatch(text)
    level = logging.getLevelNamesMapping().get(found[1]) if found else None
    return (logging.INFO, text) if found is None or level is None else (level, found[2])


class BesideBars(logging.StreamHandler):
    """Writes a line above the bars of tqdm that are on the screen, not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)
