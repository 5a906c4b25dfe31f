"""Logging of the commands: messages to standard error, so that standard output carries results alone."""

import logging
import sys


def configure_logging(*, quiet: bool = False) -> None:
    """Sends records of INFO and above (WARNING and above when `quiet`) to standard error."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    # At the handler: a logger that has a level of its own is not asked about the root's.
    logging.getLogger().handlers[0].setLevel(logging.WARNING if quiet else logging.INFO)
    for noisy in ("httpx", "httpx2", "urllib3", "filelock", "datasets", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
