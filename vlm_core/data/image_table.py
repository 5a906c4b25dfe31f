"""The distinct images of a dataset while its conversation cache is built."""

import hashlib
import json
from concurrent.futures import Future
from typing import Any

from vlm_core.data.cell_images import Picture
from vlm_core.data.examples import RejectedRow
from vlm_core.data.image_cells import FromBase64
from vlm_core.data.image_workers import ImageWorkers
from vlm_core.data.images import ImageFacts


class ImageTable:
    """The distinct pictures met so far. Files with equal pixels are one picture; each file is decoded once."""

    def __init__(self, workers: ImageWorkers | None = None) -> None:
        self.digests: list[str] = []  # of the decoded pixels, by row in images.arrow
        self._workers = workers or ImageWorkers(1)
        self._known: set[str] = set()  # sha256 of each encoded image that was announced
        self._pending: dict[str, tuple[bytes, Future[ImageFacts]]] = {}
        self._index_of_file: dict[str, int] = {}  # sha256 of the encoded image -> row in images.arrow
        self._index_of_pixels: dict[str, int] = {}
        self._unreadable: dict[str, str] = {}  # sha256 of the encoded image -> why it does not decode
        self._new: list[dict[str, Any]] = []
        self._last: tuple[bytes, str] | None = None

    def announce(self, encoded: bytes) -> str:
        """Returns the key of an image for `index`, and has it decoded if it is new."""
        # Questions about an image mostly follow each other: comparing is ten times faster than hashing.
        if self._last is not None and self._last[0] == encoded:
            return self._last[1]
        key = hashlib.sha256(encoded).hexdigest()
        if key not in self._known:
            self._known.add(key)
            self._pending[key] = encoded, self._workers.inspect(encoded)
        self._last = encoded, key
        return key

    def index(self, key: str) -> int:
        """Returns the index of an announced image; raises RejectedRow for one that does not decode.

        Indices follow the order of the calls, whenever an image was decoded.
        """
        if key in self._pending:
            self._settle(key, *self._pending.pop(key))
        if key in self._unreadable:
            raise RejectedRow(self._unreadable[key])
        return self._index_of_file[key]

    def take_new(self) -> list[dict[str, Any]]:
        """Returns the images that were not written yet."""
        new, self._new = self._new, []
        return new

    def _settle(self, key: str, encoded: bytes, inspected: "Future[ImageFacts]") -> None:
        """Notes what a new file is: a new picture, one that is known from another file, or none."""
        try:
            facts = inspected.result()
        except ValueError as error:
            reason = f"{error} (it was base64 text)" if isinstance(encoded, FromBase64) else str(error)
            self._unreadable[key] = reason
            return
        if facts.sha256 not in self._index_of_pixels:
            self._index_of_pixels[facts.sha256] = len(self.digests)
            self.digests.append(facts.sha256)
            medical = json.dumps(encoded.facts, sort_keys=True) if isinstance(encoded, Picture) else None
            self._new.append({"encoded": encoded, "medical": medical, **vars(facts)})
        self._index_of_file[key] = self._index_of_pixels[facts.sha256]
