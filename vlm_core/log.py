"""Logging of the commands: messages to standard error, so that standard output carries results alone."""

import logging
import sys


def configure_logging(*, quiet: bool = False) -> None:
    """Sends records of INFO and above (WARNING and above when `quiet`) to standard error."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("httpx", "urllib3", "filelock", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
