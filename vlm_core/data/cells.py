"""Turns a cell of a table into text. Questions, answers, cases and modes all use this module."""

import ast
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

WHOLE = 2**53  # up to here, whole floats are integers of a column with missing cells
# A list of texts that pandas wrote into a CSV cell; a list in JSON has double quotes, and may be an answer.
PYTHON_LIST = re.compile(r"\s*\[\s*['\"].{0,10000}'\s*\]\s*|\s*\[\s*'.{0,10000}['\"]\s*\]\s*", re.DOTALL)
NOT_FINITE = "a number that is not finite (NaN or infinity)"
NO_TEXT = "a cell that is not a text"


class NoTextError(ValueError):
    """A cell has no text. The message is a reason shared by all such cells; `detail` describes this cell."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.detail = detail


def text_of(cell: Any) -> str | None:
    """Returns the text of a cell; None if it is empty (null, or NaN, the null of numeric columns).

    A text is unchanged. A whole float is written without its fraction, because a column of integers with missing
    cells is stored as floats. Dates and times are ISO 8601, booleans are `true` and `false`, bytes are decoded as
    UTF-8. Raises NoTextError for anything else: a list (also the text of a Python list), an object, an infinite
    number, bytes that are not UTF-8.
    """
    if cell is None:
        return None
    if isinstance(cell, str):
        return _whole_text(cell)
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int | float | Decimal):
        return _of_number(cell)
    if isinstance(cell, datetime):  # before date: a datetime is also a date
        return cell.date().isoformat() if _is_day(cell) else cell.isoformat(sep=" ")
    if isinstance(cell, date | time):
        return cell.isoformat()
    if isinstance(cell, bytes):
        return _of_bytes(cell)
    if hasattr(cell, "item") and getattr(cell, "shape", None) == ():  # a NumPy scalar from a user's function
        return text_of(cell.item())
    raise NoTextError(_kind(cell), shown(cell))


def _whole_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoTextError("a text with half a character (a lone surrogate)", shown(text)) from None
    if PYTHON_LIST.fullmatch(text) and _is_python_list(text):
        raise NoTextError("a list as Python writes it, which is not one text", shown(text))
    return str(text)


def _is_python_list(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text.strip()), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def shown(cell: Any) -> str:
    """Returns a cell for an error message: shortened, and bytes as their count."""
    if isinstance(cell, bytes):
        return f"{len(cell)} bytes"
    if isinstance(cell, list | tuple):
        more = ", ..." if len(cell) > 3 else ""
        return f"[{', '.join(map(shown, cell[:3]))}{more}]"
    if isinstance(cell, Mapping):
        more = ", ..." if len(cell) > 5 else ""
        return f"{{{', '.join(f'{key}: {shown(value)}' for key, value in list(cell.items())[:5])}{more}}}"
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_number(number: int | float | Decimal) -> str | None:
    if isinstance(number, int):
        return f"{number:d}"
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise NoTextError(NOT_FINITE, str(number))
    if isinstance(number, Decimal):
        return f"{number:f}"
    return str(int(number)) if number.is_integer() and abs(number) <= WHOLE else repr(number)


def _of_bytes(cell: bytes) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        raise NoTextError("bytes that are not UTF-8 text", shown(cell)) from None


def _is_day(moment: datetime) -> bool:
    return moment.time() == time() and moment.tzinfo is None


def _kind(cell: Any) -> str:
    if isinstance(cell, list | tuple):
        return "a list, which is not one text"
    if isinstance(cell, Mapping):
        return "an object, which is not one text"
    return f"{NO_TEXT} ({type(cell).__name__})"
