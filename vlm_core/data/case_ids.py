"""Decides whether two cells name the same patient (or case), so that no patient is in both splits unnoticed.

The same id is often written in several ways. 101 becomes 101.0 if pandas met a missing id, and "101" in CSV. "P1" and
"p1 " come from different people. A copied hyphen may be a dash. All these are equal. Leading zeros are significant:
with ids of a fixed width, 0101 and 101 can be two patients. The data report counts ids that differ only by zeros.
"""

import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

MISSING = ("", "nan", "nat", "none", "null", "<na>", "n/a", "#n/a")  # how pandas and spreadsheets write a missing id
WHOLE = re.compile(r"([+-]?\d+)\.0*")
DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")


def case_text(cell: Any) -> str | None:
    """Returns the id in a cell for display: trimmed, a whole number without a fraction; None if there is no id.

    Raises ValueError for a cell that is not one value.
    """
    if isinstance(cell, bytes | bytearray):
        cell = bytes(cell).decode(errors="replace")
    if isinstance(cell, list | tuple | dict | set):
        raise ValueError("case id that is not one value")
    if isinstance(cell, float | Decimal) and math.isfinite(cell) and cell == int(cell):
        cell = int(cell)
    text = "" if cell is None else "".join(map(_visible, str(cell))).strip()
    return None if text.casefold() in MISSING else text


def case_key(text: str) -> str:
    """Returns the normalised id: equal keys mean the same patient."""
    plain = " ".join(unicodedata.normalize("NFKC", text).translate(DASHES).casefold().split()).upper()
    whole = WHOLE.fullmatch(plain)
    return whole[1] if whole else plain


def without_zeros(text: str) -> str:
    """Returns the normalised id without leading zeros in its numbers."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", case_key(text))


def _visible(character: str) -> str:
    """Returns the character; a space for a control character, nothing for an invisible one."""
    kind = unicodedata.category(character)
    return " " if kind == "Cc" else "" if kind == "Cf" else character
