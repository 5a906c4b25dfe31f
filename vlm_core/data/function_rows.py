"""Rows that a user's own function returns (`dataset._target_`)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from vlm_core.data.row_readers import ROWS_AT_ONCE, Row


@dataclass(frozen=True)
class FunctionRows:
    """Rows that a user's function returns; it is called when the first row is read."""

    call: Callable[[], Any]

    columns = ["conversation", "case_id", "mode"]

    @cached_property
    def _items(self) -> Any:
        return self.call()

    def columns_by_file(self) -> list[tuple[Path, Sequence[str]]]:
        return []

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        items, number = iter(self._items), 0
        while rows := list(islice(items, ROWS_AT_ONCE)):
            yield number, [{column: row.get(column) for column in columns} for row in rows]
            number += len(rows)

    def holds_images(self, column: str) -> bool:
        return True  # `path_or_dataset` identifies what the function reads.
