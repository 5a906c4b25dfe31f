"""The distinct images of a dataset while its conversation cache is built."""

import hashlib
from typing import Any

from vlm_core.data.examples import RejectedRow
from vlm_core.data.images import inspect_image


class ImageTable:
    """The distinct images met so far; each is decoded once, to see whether it can be."""

    def __init__(self) -> None:
        self.index_of: dict[str, int] = {}  # sha256 of the encoded image -> row in images.arrow
        self.digests: list[str] = []
        self.unreadable: dict[str, str] = {}  # sha256 -> why it does not decode
        self._new: list[dict[str, Any]] = []
        self._last: tuple[bytes, int] | None = None

    def index(self, encoded: bytes) -> int:
        """Returns the index of an image; raises RejectedRow for one that does not decode."""
        # Questions about an image mostly follow each other: to compare is ten times faster than to hash.
        if self._last is not None and self._last[0] == encoded:
            return self._last[1]
        digest = hashlib.sha256(encoded).hexdigest()
        if digest in self.unreadable:
            raise RejectedRow(self.unreadable[digest])
        if digest not in self.index_of:
            try:
                facts = inspect_image(encoded)
            except ValueError as error:
                self.unreadable[digest] = str(error)
                raise RejectedRow(str(error)) from None
            self.index_of[digest] = len(self.index_of)
            self.digests.append(digest)
            self._new.append({"sha256": digest, "encoded": encoded, **vars(facts)})
        self._last = encoded, self.index_of[digest]
        return self.index_of[digest]

    def take_new(self) -> list[dict[str, Any]]:
        """Returns the images that were not written yet."""
        new, self._new = self._new, []
        return new
