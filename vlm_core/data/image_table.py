"""The distinct images of a dataset while its conversation cache is built."""

import hashlib
import json
from typing import Any

from vlm_core.data.cell_images import Picture
from vlm_core.data.examples import RejectedRow
from vlm_core.data.image_cells import FromBase64
from vlm_core.data.images import inspect_image


class ImageTable:
    """The distinct pictures met so far. Files with equal pixels are one picture; each file is decoded once."""

    def __init__(self) -> None:
        self.digests: list[str] = []  # of the decoded pixels, by row in images.arrow
        self._index_of_file: dict[str, int] = {}  # sha256 of the encoded image -> row in images.arrow
        self._index_of_pixels: dict[str, int] = {}
        self._unreadable: dict[str, str] = {}  # sha256 of the encoded image -> why it does not decode
        self._new: list[dict[str, Any]] = []
        self._last: tuple[bytes, int] | None = None

    def index(self, encoded: bytes) -> int:
        """Returns the index of an image; raises RejectedRow for one that does not decode."""
        # Questions about an image mostly follow each other: comparing is ten times faster than hashing.
        if self._last is not None and self._last[0] == encoded:
            return self._last[1]
        digest = hashlib.sha256(encoded).hexdigest()
        if digest in self._unreadable:
            raise RejectedRow(self._unreadable[digest])
        if digest not in self._index_of_file:
            self._index_of_file[digest] = self._add(encoded, digest)
        self._last = encoded, self._index_of_file[digest]
        return self._index_of_file[digest]

    def take_new(self) -> list[dict[str, Any]]:
        """Returns the images that were not written yet."""
        new, self._new = self._new, []
        return new

    def _add(self, encoded: bytes, digest: str) -> int:
        """Returns the index of the picture in a new file, which may be known from another file."""
        try:
            facts = inspect_image(encoded)
        except ValueError as error:
            reason = f"{error} (it was base64 text)" if isinstance(encoded, FromBase64) else str(error)
            self._unreadable[digest] = reason
            raise RejectedRow(reason) from None
        if facts.sha256 not in self._index_of_pixels:
            self._index_of_pixels[facts.sha256] = len(self.digests)
            self.digests.append(facts.sha256)
            medical = json.dumps(encoded.facts, sort_keys=True) if isinstance(encoded, Picture) else None
            self._new.append({"encoded": encoded, "medical": medical, **vars(facts)})
        return self._index_of_pixels[facts.sha256]
