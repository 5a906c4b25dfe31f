"""Divides the rows of all datasets of a run into training and validation."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_core.data.splits import IMAGE, PUBLISHED, SPLITS, VALIDATION, Splits

logger = logging.getLogger(__name__)


class ConnectedImages:
    """Sets of images that examples show together, directly or through other images (union-find)."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}  # union-find parent links

    def join(self, images: Sequence[str]) -> None:
        """Merges the sets of an example's images; `images` are hashes."""
        names = {self.name(image) for image in images}
        for other in names - {least := min(names)}:
            self._parents[other] = least

    def name(self, image: str) -> str:
        """Returns the name of an image's set: its smallest hash. It does not depend on the order of the examples."""
        while image in self._parents:
            parent = self._parents[image]
            self._parents[image] = image = self._parents.get(parent, parent)
        return image


class Division:
    """Says the side of each row. A case or image that was drawn for one dataset is on the same side in the others."""

    def __init__(self, moved: Mapping[str, str] | None = None) -> None:
        self.connected = ConnectedImages()
        self._moved = moved or {}  # case or image -> its side, instead of the side that it drew
        self._sides: dict[str, str] = {}
        self._drawn: dict[str, set[str]] = defaultdict(set)  # dataset -> its cases or images

    def side(self, splits: Splits, record: Mapping[str, Any]) -> str:
        """Returns the side of a row, with its `published` split, first `image` and `case_key`.

        If images decide, all rows must have been read: only then it is known which images belong together.
        """
        if splits.split_by == PUBLISHED:
            return record["published"]
        name = self.connected.name(record["image"]) if splits.split_by == IMAGE else record["case_key"]
        self._drawn[splits.name].add(name)
        if name not in self._sides:
            self._sides[name] = self._moved.get(name) or splits.side_of(name)
        return self._sides[name]

    def to_move(self, splits: Splits, rows: Mapping[str, int]) -> dict[str, str]:
        """Returns what to move to a side of a dataset that got no row, if one did: the case or image drawn nearest."""
        empty, drawn = [side for side in SPLITS if not rows[side]], sorted(self._drawn[splits.name])
        if len(empty) != 1 or len(drawn) < 2 or not 0 < splits.validation_share < 1:
            return {}
        nearest = (min if empty[0] == VALIDATION else max)(drawn, key=splits.drawn)
        logger.info(
            "no case or image was drawn for %s: there are only %d; one is moved there",
            splits.row_name(empty[0]), len(drawn),
        )  # fmt: skip
        return {nearest: empty[0]}
