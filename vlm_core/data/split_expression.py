"""Split expressions: which rows of which split a config asks for."""

from collections.abc import Mapping

from datasets import ReadInstruction

from vlm_core.data.dataset_files import Table


def resolve_split(dataset: str, expression: str, tables: Mapping[str, Table]) -> tuple[str, int, int]:
    """Returns (split, first row, end) of an expression such as `train[:1000]`, as `datasets` reads it.

    Raises ValueError for a split that the dataset lacks, and for an expression of several ranges.
    """
    count = {split: len(table.rows) for split, table in tables.items()}
    name = expression.partition("[")[0]
    if name not in count:
        near = f"; set dataset.split={next(iter(count))} to train on it" if len(count) == 1 else ""
        raise ValueError(
            f"dataset {dataset!r} has no split {name!r}; it has {', '.join(count)}{near}. "
            "validation_dataset.split=null with dataset.split_by=case divides the rows of dataset.split"
        )
    parts = ReadInstruction.from_spec(expression).to_absolute(count)
    if len(parts) != 1:
        raise ValueError(f"split {expression!r} must name one range of one split, for example {name}[:1000]")
    return name, parts[0].from_ or 0, count[name] if parts[0].to is None else parts[0].to
