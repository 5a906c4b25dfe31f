"""Features of images on disk, in shards that are complete or absent, each row with a checksum.

A directory belongs to one tower, image processor and dtype. Its shards may come from many datasets: a feature is found
by the hash of its decoded pixels, and a new dataset adds the missing ones.
"""

import hashlib
import logging
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from vlm_core.files import free_bytes, published_file

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [("sha256", pa.string()), ("crc32", pa.uint32()), ("shape", pa.list_(pa.int32())), ("features", pa.binary())]
)


@dataclass(frozen=True)
class _Place:
    shard: Path
    table: pa.Table
    row: int


class FeatureStore:
    """`store.read(hashes)` returns the features of images; shapes and dtype lie in each shard."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.places: dict[str, _Place] = {}
        self.refresh()

    def refresh(self) -> None:
        """Finds shards that were added."""
        self.places = {}
        for shard in sorted(self.directory.glob("*.arrow")):
            try:
                table = _opened(shard)
            except (pa.ArrowException, ValueError, OSError) as error:  # its images count as missing
                logger.warning("%s is damaged: %s", shard, error)
                continue
            self.places |= {digest: _Place(shard, table, row) for row, digest in enumerate(table["sha256"].to_pylist())}

    def missing(self, hashes: Sequence[str]) -> list[str]:
        """Returns the distinct ones of `hashes` that the store does not have, in their order."""
        return [digest for digest in dict.fromkeys(hashes) if digest not in self.places]

    def add(self, hashes: Sequence[str], features: Sequence[torch.Tensor]) -> None:
        """Writes a shard with the features of the images in `hashes`, of one dtype."""
        encoded = [row.cpu().contiguous().view(torch.uint8).numpy().tobytes() for row in features]
        kind = {"dtype": str(features[0].dtype).removeprefix("torch.")}
        columns = [list(hashes), [zlib.crc32(row) for row in encoded], [list(row.shape) for row in features], encoded]
        table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), SCHEMA.with_metadata(kind))
        name = hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
        with (
            published_file(self.directory / f"{name}.arrow") as aside,
            pa.OSFile(str(aside), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    def read(self, hashes: Sequence[str]) -> list[torch.Tensor]:
        """Returns the features of each of `hashes`, in the dtype that they were computed in.

        Raises ValueError if the bytes on disk are not those that were written.
        """
        return [self._read(self.places[digest]) for digest in hashes]

    def _read(self, place: _Place) -> torch.Tensor:
        dtype = _dtype(place.table.schema.metadata)
        shape = place.table["shape"][place.row].as_py()
        return torch.frombuffer(bytearray(self._verified(place)), dtype=dtype).view(shape)

    def clean(self, hashes: Sequence[str]) -> None:
        """Verifies the stored rows of `hashes`; deletes the shards of damaged ones and the leftovers of killed jobs.

        No other job may be writing.
        """
        for leftover in self.directory.glob(".*.arrow.*"):
            leftover.unlink()
        self.refresh()
        readable = {place.shard for place in self.places.values()}
        for shard in set(self.directory.glob("*.arrow")) - readable:
            shard.unlink()
        for digest in dict.fromkeys(hashes):
            place = self.places.get(digest)
            if place is None or not place.shard.exists():
                continue
            try:
                self._verified(place)
            except ValueError as error:
                logger.warning("%s", error)
                place.shard.unlink()
        self.refresh()

    def _verified(self, place: _Place) -> Any:
        buffer = place.table["features"][place.row].as_buffer()
        shape, dtype = place.table["shape"][place.row].as_py(), _dtype(place.table.schema.metadata)
        has_shape = math.prod(shape) * dtype.itemsize == len(buffer) and min(shape, default=0) > 0
        if not has_shape or zlib.crc32(buffer) != place.table["crc32"][place.row].as_py():
            raise ValueError(f"{place.shard} is damaged (row {place.row}); delete it, and its images are encoded again")
        return buffer

    def require_space(self, images: int, wanted: int) -> None:
        """Raises ValueError if the disk has no room for the features of `images` more images, `wanted` bytes in all."""
        free = free_bytes(self.directory)
        if wanted > free:
            raise ValueError(
                f"the vision cache needs {wanted / 1e9:.1f} GB for {images} images and {self.directory} has "
                f"{free / 1e9:.1f} GB left; free some space, set MEDPIX_HOME, or set vision_cache.enabled=false"
            )


def damaged_shards(directory: Path) -> list[str]:
    """Returns the names of the shards of a store that cannot be read, or whose rows are not those that were written."""
    store = FeatureStore(directory)
    damaged = {path.name for path in directory.glob("*.arrow")} - {place.shard.name for place in store.places.values()}
    for place in store.places.values():
        try:
            store._verified(place)
        except ValueError:
            damaged.add(place.shard.name)
    return sorted(damaged)


def _opened(shard: Path) -> pa.Table:
    """Returns the rows of a shard, memory-mapped; raises ValueError or an error of Arrow if they are damaged."""
    with pa.memory_map(str(shard)) as source:
        table = pa.ipc.open_stream(source).read_all()
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"its columns are {', '.join(table.schema.names)}, not {', '.join(SCHEMA.names)}")
    _dtype(table.schema.metadata)
    table.validate(full=True)  # a damaged offset could lead anywhere
    if any(column.null_count for column in table.columns):
        raise ValueError("it lacks values")
    return table


def _dtype(kind: dict[bytes, bytes] | None) -> torch.dtype:
    """Returns the dtype that the metadata of a shard names; raises ValueError if it names none."""
    name = (kind or {}).get(b"dtype", b"").decode(errors="replace")
    if not isinstance(found := getattr(torch, name, None), torch.dtype):
        raise ValueError(f"it names {name!r} as the dtype of its features")
    return found
