"""Which files the image cells of a dataset mean, and what identifies them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from vlm_core.data.examples import Columns, image_paths
from vlm_core.data.image_cells import ImageError
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.row_readers import Rows


def image_places(rows: Rows, columns: Columns, folder: ImageFolder) -> tuple[dict[str, Path | str], list[str]]:
    """Returns (`{path in the rows: file or directory, or why it is not found}`, notes about images found elsewhere).

    A missing image is not an error here: its row is rejected later.
    """
    found: dict[str, Path | str] = {}
    by = defaultdict(list)
    for path in sorted(_image_paths(rows, columns)):
        try:
            if (directory := folder.directory(path)) is not None:
                found[path] = directory
                continue
            image = folder.find(path)
            found[path] = image.path
            by[image.how].append(f"{path} is {folder.shown(image.path)}")
        except ImageError as reason:
            found[path] = str(reason)
    by.pop("", None)
    return found, [f"{len(which)} images were found {how}: {which[0]}" for how, which in by.items()]


def image_digests(places: Mapping[str, Path | str], folder: ImageFolder) -> Iterator[str]:
    """Yields what identifies the images in `places`: their paths and contents."""
    for path, place in places.items():
        yield path
        try:
            yield from [place] if isinstance(place, str) else folder.digests(place)
        except ImageError as reason:
            yield str(reason)


def _image_paths(rows: Rows, columns: Columns) -> set[str]:
    """Returns the paths in the image cells and conversations of all rows.

    Columns that store the images themselves are not read.
    """
    stored = columns.image is not None and rows.holds_images(columns.image)
    without = replace(columns, image=None) if stored and columns.conversation is None else columns
    if without.image is None and without.conversation is None:
        return set()
    needed = (without.image, without.conversation, without.question, without.answer, *without.where.columns)
    batches = (batch for _, batch in rows.batches([*dict.fromkeys(filter(None, needed))], 0, None))
    kept = (row for batch in batches for row in batch if without.where.keeps(row))
    return {path for row in kept for path in image_paths(row, without)}
