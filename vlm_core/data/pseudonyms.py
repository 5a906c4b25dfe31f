"""Replaces case ids by keyed hashes, so that no patient's id is stored or shown (`dataset.pseudonymise_case_ids`).

The key is in an environment variable, or in a file of the home that is created when it is first needed. With another
key, the same data has other pseudonyms and another cache. Nobody without the key can compute a pseudonym from an id.
"""

import hashlib
import hmac
import logging
import os
import secrets
from dataclasses import dataclass

from vlm_core.cache import locked
from vlm_core.config import DatasetConfig
from vlm_core.data.case_ids import case_key
from vlm_core.data.examples import Columns
from vlm_core.home import medpix_home

logger = logging.getLogger(__name__)

KEY = "MEDPIX_CASE_KEY"  # environment variable
FILE = "case-id-key"
SHORTEST = 16  # characters of a key
LENGTH = 16  # hexadecimal digits of a pseudonym: two of a million cases are equal with a chance of 1 in 40 million


@dataclass(frozen=True, repr=False)
class Pseudonyms:
    """The pseudonyms of one key."""

    key: bytes

    def of(self, case: str) -> str:
        """Returns the pseudonym of a case id; ids that `case_key` takes for one patient have the same."""
        return f"case-{self._hash(case_key(case))}"

    @property
    def fingerprint(self) -> str:
        """Identifies the key in the key of a cache."""
        return self._hash("\0fingerprint")

    def _hash(self, text: str) -> str:
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()[:LENGTH]


def pseudonyms_of(config: DatasetConfig, columns: Columns) -> Pseudonyms | None:
    """Returns what replaces case ids, None if the config keeps them; raises ValueError if another column shows them."""
    if not config.pseudonymise_case_ids:
        return None
    if columns.case is None:
        logger.warning("dataset.pseudonymise_case_ids has no effect: the data has no case column")
    elif columns.case == columns.mode:
        raise ValueError(
            f"dataset.mode_column={columns.mode} is the column of the case ids, which dataset.pseudonymise_case_ids "
            "hides: name another column, or null"
        )
    return read_pseudonyms()


def read_pseudonyms() -> Pseudonyms:
    """Returns the pseudonyms of this machine's key; raises ValueError for a key that is too short or not private."""
    given = os.environ.get(KEY)
    if given is not None:
        return Pseudonyms(_checked(given, f"the environment variable {KEY}"))
    path = medpix_home() / FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(path.with_name(f".{FILE}.lock")):
        if not path.exists():
            aside = path.with_name(f".{FILE}.new")
            aside.unlink(missing_ok=True)
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(secrets.token_hex(32) + "\n")
            aside.replace(path)
    try:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"{path} can be read by others: chmod 600 it")
        return Pseudonyms(_checked(path.read_text(encoding="utf-8"), str(path)))
    except PermissionError:
        raise ValueError(
            f"{path}, the key of the pseudonyms of case ids, belongs to another user: set {KEY} to the same key"
        ) from None


def _checked(text: str, place: str) -> bytes:
    key = text.strip().encode()
    if len(key) < SHORTEST:
        raise ValueError(f"{place} must hold a key of at least {SHORTEST} characters")
    return key
