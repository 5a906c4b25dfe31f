"""The password of this home's Prefect server: a file that only its owner can read, made once and then kept."""

import secrets
from pathlib import Path

from vlm_core.cache import locked
from vlm_core.files import published_file
from vlm_core.home import medpix_home

USER = "medpix"


def password_file() -> Path:
    """Returns the path of the file. Prefect's log-in page asks for its content."""
    return medpix_home() / "services" / "prefect-password"


def home_password() -> str:
    """Returns `user:password`; the first call creates it. Raises ValueError if the file has something else in it."""
    path = password_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _write(path, f"{USER}:{secrets.token_urlsafe(32)}")
    if path.stat().st_mode & 0o077:  # copied, or restored from a backup
        path.chmod(0o600)
    text = path.read_text(encoding="utf-8").strip()
    user, _, password = text.partition(":")
    if not (user and password and text.isascii() and text.isprintable()):
        raise ValueError(f"{path} does not hold `user:password`; delete it, and run `make down` and `make up`")
    return text


def _write(path: Path, text: str) -> None:
    with published_file(path) as aside:
        aside.touch(mode=0o600)
        aside.write_text(f"{text}\n", encoding="utf-8")
