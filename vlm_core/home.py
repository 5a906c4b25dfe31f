"""Where everything is written: `MEDPIX_HOME`, by default `.medpix/` in the working directory."""

import os
import tempfile
from pathlib import Path


def medpix_home() -> Path:
    """Returns the project's home as an absolute path; it is not created here."""
    return Path(os.environ.get("MEDPIX_HOME") or ".medpix").expanduser().absolute()


def require_writable(directory: Path) -> None:
    """Raises ValueError unless files can be written in `directory`, or it could be made; leaves nothing behind."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        # Tried, not asked: access bits say nothing about read-only filesystems, and nothing to root.
        with tempfile.TemporaryDirectory(dir=existing):
            return
    except OSError as error:
        raise ValueError(
            f"no permission to write to {directory} ({existing}: {error.strerror}); "
            "set MEDPIX_HOME (or checkpoint.checkpoint_dir) to a directory that can be written to"
        ) from None
