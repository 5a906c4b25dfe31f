"""Where everything is written: `MEDPIX_HOME`, by default `.medpix/` in the working directory."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def medpix_home() -> Path:
    """Returns the project's home as an absolute path; it is not created here."""
    return Path(os.environ.get("MEDPIX_HOME") or ".medpix").expanduser().absolute()


def keep_private() -> None:
    """Lets nobody read what this process writes who cannot read the home, which holds patients' images.

    A new home is its owner's alone (0700), and so are all files then. `chmod 2770` shares a home with its group, and
    files written afterwards as well.
    """
    home = medpix_home()
    with suppress(OSError):  # The command that needs the home reports this.
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = home.stat().st_mode if home.is_dir() else 0o700
    users = os.umask(0o077)
    os.umask(users | (0o077 & ~mode))


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
