"""Which files of a hub dataset are downloaded."""

from collections.abc import Iterable, Sequence

TEXT_TABLES = [f"{suffix}{packed}" for suffix in ("json", "jsonl", "ndjson", "csv", "tsv") for packed in ("", ".gz")]
IMAGES = ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "dcm", "nii", "nii.gz")


TABLES = ("parquet", "arrow", "feather", *TEXT_TABLES)
CARD = "*.md"


def hub_files(data_files: Sequence[str], archives: Sequence[str]) -> list[list[str]]:
    """Returns the patterns to download, as alternatives in order; what the config names is downloaded and no more.

    Repositories often have the rows in several formats: parquet alone is enough, unless the images are in archives.
    """
    if not data_files and not archives:
        return [[CARD, *_patterns(["parquet"])], [CARD, *_patterns([*TABLES, *IMAGES])]]
    return [[CARD, *(data_files or _patterns(TABLES)), *(archives or _patterns(IMAGES))]]


def _patterns(suffixes: Iterable[str]) -> list[str]:
    """Returns glob patterns of files with these suffixes, in lower or upper case."""
    letters = ("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in suffix) for suffix in suffixes)
    return [f"*.{suffix}" for suffix in letters]
