"""Reads a checkpoint of torch.distributed.checkpoint without running code that is in it.

Its file `.metadata` is a pickle, which can call any function when it is read. Here it may only name the classes that
torch writes into it. What it says is then checked, because torch opens the files that it names and unpickles those of
its entries that are not tensors.
"""

import io
import pickle
import warnings
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

from vlm_core.files import stays_inside

_METADATA_CLASSES = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
ALLOWED: Final = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),  # looks a layout up by its name
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("collections", "OrderedDict"),
    *(("torch.distributed.checkpoint.metadata", name) for name in _METADATA_CLASSES),
}


class ShardReader(FileSystemReader):
    """torch's reader of a checkpoint directory, made safe for directories that are not trusted."""

    def __init__(self, directory: Path) -> None:
        """Reads and checks the metadata; raises ValueError if it is refused."""
        super().__init__(directory)
        self.metadata = _unpickled(directory / ".metadata")
        _require_files_inside(self.metadata, directory)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the metadata that was checked, whatever the file holds by now."""
        self.metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self.metadata

    def fill(self, wanted: dict[str, torch.Tensor]) -> None:
        """Sets each of the tensors in `wanted` to the weight of its name.

        Raises ValueError if a weight is damaged, or not a tensor: torch would unpickle it without any limit.
        """
        entries = self.metadata.state_dict_metadata
        others = [name for name in wanted if not isinstance(entries.get(name), TensorStorageMetadata)]
        if others:
            raise ValueError(f"{self.path} is not read: its entry {others[0]} is an object where a weight has to be")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # given although no_dist is set
            try:
                dcp.load(wanted, storage_reader=self, no_dist=True)  # in place
            except CheckpointException as error:
                _, (cause, _) = error.failures.popitem()
                raise ValueError(f"the weights in {self.path} cannot be read: {cause}") from None


class _Unpickler(pickle.Unpickler):
    """Finds the classes of DCP's metadata and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module in ("pathlib", "pathlib._local"):
            return PurePosixPath  # cannot touch a file
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which torch never writes there")
        return super().find_class(module, name)


def _unpickled(path: Path) -> Any:
    try:
        return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{path} is not read, because it is damaged or not a checkpoint's: {error}. Take the checkpoint from where "
            "it was written"
        ) from None


def _require_files_inside(metadata: Any, directory: Path) -> None:
    """Raises ValueError unless the metadata is a checkpoint's and only refers to files of `directory`."""
    if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict):
        raise ValueError(f"{directory} is not a checkpoint of torch: its .metadata has no list of weights")
    stored = metadata.storage_data
    for index, place in stored.items() if isinstance(stored, dict) else ():
        if not (isinstance(index, MetadataIndex) and isinstance(place, _StorageInfo) and _is_inside(place, directory)):
            raise ValueError(f"{directory} is not read: it refers to a file outside it, {str(place)[:200]}")


def _is_inside(place: _StorageInfo, directory: Path) -> bool:
    name = place.relative_path
    is_plain = isinstance(name, str) and Path(name).name == name and not place.transform_descriptors
    return is_plain and stays_inside(directory, directory / name)
