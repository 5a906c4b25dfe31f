"""Rules of the config about rows: which are kept (`dataset.where`), and how columns form a question."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_core.config.data import TEMPLATE_FIELD
from vlm_core.data.cells import NoTextError, text_of


@dataclass(frozen=True)
class Where:
    """The values that a row must have in some columns to be kept."""

    allowed: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (column, its values)

    @classmethod
    def of(cls, pairs: Sequence[str]) -> "Where":
        """Returns the rule of `COLUMN=VALUE` pairs; of several values of a column, a row must have one."""
        allowed: dict[str, tuple[str, ...]] = {}
        for column, _, value in (pair.partition("=") for pair in pairs):
            allowed[column.strip()] = (*allowed.get(column.strip(), ()), value.strip())
        return cls(tuple(allowed.items()))

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        return [column for column, _ in self.allowed]

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Returns whether a row is kept. Cells are compared as texts: 1.0 and 1 are equal, a list equals nothing."""
        return all(_text(row[column]) in values for column, values in self.allowed)

    def __str__(self) -> str:
        return ", ".join(f"{column}={' or '.join(values)}" for column, values in self.allowed)


def template_columns(template: str | None) -> list[str]:
    """Returns the columns that a template of questions names, each once."""
    return [*dict.fromkeys(TEMPLATE_FIELD.findall(template or ""))]


def filled(template: str, text: Callable[[str], str | None]) -> str:
    """Returns a template with each `{COLUMN}` replaced by the column's `text`, without spaces around it.

    A line in which all columns are empty is left out, such as the fourth choice of a question with three.
    """
    lines = []
    for line in template.strip().splitlines():
        texts = {column: (text(column) or "").strip() for column in TEMPLATE_FIELD.findall(line)}
        if not texts or any(texts.values()):
            lines.append(TEMPLATE_FIELD.sub(lambda field, texts=texts: texts[field[1]], line))
    return "\n".join(lines)


def _text(cell: Any) -> str | None:
    try:
        return (text_of(cell) or "").strip()
    except NoTextError:
        return None
