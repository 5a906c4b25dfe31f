"""What a check of `medpix doctor` returns."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A line of the report: what was found, and for a warning or a problem what to do."""

    state: Literal["ok", "warning", "problem"]
    name: str
    found: str
    remedy: str = ""
