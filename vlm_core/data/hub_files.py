"""Which files of a hub dataset are downloaded."""

from collections.abc import Iterable

TEXT_TABLES = [f"{suffix}{packed}" for suffix in ("json", "jsonl", "ndjson", "csv", "tsv") for packed in ("", ".gz")]
IMAGES = ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "dcm", "nii", "nii.gz")


def _patterns(suffixes: Iterable[str]) -> list[str]:
    """Returns glob patterns of files with these suffixes, in lower or upper case."""
    letters = ("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in suffix) for suffix in suffixes)
    return ["*.md", *(f"*.{suffix}" for suffix in letters)]


# Patterns to download, in order. Repositories often have the rows in several formats: parquet alone is enough.
HUB_FILES = (_patterns(["parquet"]), _patterns(["parquet", "arrow", "feather", *TEXT_TABLES, *IMAGES]))
