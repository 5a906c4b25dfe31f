"""Sets up logging for the commands: messages go to standard error, so that standard output has only results."""

import logging
import re
import sys

from tqdm import tqdm

from vlm_core.plain_text import keep_logs_plain

PROGRESS = logging.INFO + 1  # level of progress lines, which a terminal shows as a bar instead
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
    for noisy in ("httpx", "httpx2", "urllib3", "filelock", "datasets", "absl", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def read_line(text: str) -> tuple[int, str]:
    """Parses a line that `configure_logging` wrote into level and message; any other line counts as INFO.

    >>> read_line("12:00:00 WARNING the disk is nearly full")
    (30, 'the disk is nearly full')
    """
    found = _LINE.fullmatch(text)
    level = logging.getLevelNamesMapping().get(found[1]) if found else None
    return (logging.INFO, text) if found is None or level is None else (level, found[2])


class BesideBars(logging.StreamHandler):
    """A handler that writes lines above the visible tqdm bars, not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)
