"""When two cells name the same patient (or case), so that nobody is in training and in validation unnoticed.

Files from one hospital write one id in several ways: 101 is 101.0 where pandas met a missing id, "101" in CSV, "P1" is
"p1 " from another desk, and a copied hyphen is a dash. These are the same. Leading zeros are not ignored: hospitals
with ids of a fixed width have a patient 0101 beside 101. The data report counts ids that differ by zeros alone.
"""

import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

MISSING = ("", "nan", "nat", "none", "null", "<na>", "n/a", "#n/a")  # as pandas and spreadsheets write no id
WHOLE = re.compile(r"([+-]?\d+)\.0*")
DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")


def case_text(cell: Any) -> str | None:
    """Returns the id in a cell as it is shown: trimmed, a whole number without a fraction; None if there is no id.

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
    """Returns the normal form of an id: equal for equal patients."""
    plain = " ".join(unicodedata.normalize("NFKC", text).translate(DASHES).casefold().split()).upper()
    whole = WHOLE.fullmatch(plain)
    return whole[1] if whole else plain


def without_zeros(text: str) -> str:
    """Returns the normal form of an id without the zeros before its numbers."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", case_key(text))


def _visible(character: str) -> str:
    """Returns a character, a space for one that breaks lines, and nothing for one without width."""
    kind = unicodedata.category(character)
    return " " if kind == "Cc" else "" if kind == "Cf" else character
