"""The directory for all output and caches: `MEDPIX_HOME`, by default `.medpix/` in the working directory."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def medpix_home() -> Path:
    """Returns the home as an absolute path, without creating it."""
    return Path(os.environ.get("MEDPIX_HOME") or ".medpix").expanduser().absolute()


def keep_private() -> None:
    """Sets the umask so that only users who may read the home can read what this process writes (patients' images).

    A new home and its files are private to the owner (mode 0700). After `chmod 2770`, the home and all files written
    later are shared with its group.
    """
    home = medpix_home()
    with suppress(OSError):  # the command that needs the home reports the error
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = home.stat().st_mode if home.is_dir() else 0o700
    users = os.umask(0o077)
    os.umask(users | (0o077 & ~mode))


def require_writable(directory: Path) -> None:
    """Raises ValueError unless this process can write to `directory` or create it. Leaves no files."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        # Test by writing: access bits ignore read-only file systems and do not restrict root.
        with tempfile.TemporaryDirectory(dir=existing):
            return
    except OSError as error:
        raise ValueError(
            f"no permission to write to {directory} ({existing}: {error.strerror}); "
            "set MEDPIX_HOME (or checkpoint.checkpoint_dir) to a writable directory"
        ) from None
