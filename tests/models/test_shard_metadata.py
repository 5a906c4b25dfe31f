"""A checkpoint of torch's DCP is read without running what it holds, and only from its own files."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from vlm_core.models.shard_metadata import ShardReader

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


class Call:
    """A pickle that calls a function with a path when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    dcp.save({**WEIGHTS, "step": 3}, checkpoint_id=directory, no_dist=True)
    return directory


def rewrite(checkpoint: Path, change: Callable[[Metadata], Any]) -> None:
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(change(metadata) or metadata))


def read(checkpoint: Path) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in WEIGHTS.items()}
    ShardReader(checkpoint).fill(found)
    return found


def test_tensors_are_read_beside_objects_that_are_not_wanted(checkpoint: Path) -> None:
    assert all(tensor.equal(WEIGHTS[name]) for name, tensor in read(checkpoint).items())


def inside(value: Any) -> Callable[[Metadata], None]:
    """Hides a value in a part of the metadata that torch does not look at."""
    return lambda metadata: setattr(metadata, "planner_data", {"a": [value]})


def moved(path: str) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = path

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: Call(os.system, "touch ran"), "it names posix.system, which torch never writes there"),
        (inside(Call(eval, "open('ran', 'w')")), "it names builtins.eval"),
        (inside(Call(torch.load, "ran")), "it names torch.serialization.load"),
        (inside(Call(os.mkdir, "ran")), "it names posix.mkdir"),
        (inside(Path.cwd), "it names builtins.getattr|it names pathlib"),
        (lambda metadata: {"a": 1}, "has no list of weights"),
        (moved("../other.distcp"), "refers to a file outside it"),
        (moved("/etc/passwd"), "refers to a file outside it"),
        (moved("link.distcp"), "refers to a file outside it"),
        (lambda m: m.state_dict_metadata.update(a=BytesStorageMetadata()), "its entry a is an object where a weight"),
    ],
)
def test_what_could_run_or_lead_out_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Metadata], Any], message: str
) -> None:
    monkeypatch.chdir(checkpoint)
    Path("link.distcp").symlink_to("/etc/passwd")
    before = sorted(checkpoint.iterdir())
    rewrite(checkpoint, change)
    with pytest.raises(ValueError, match=message):
        read(checkpoint)
    assert sorted(checkpoint.iterdir()) == before


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04", b"cos\nsystem\n(S'touch ran'\ntR."])
def test_a_damaged_or_handwritten_pickle_is_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata is not read, because it is damaged or not a checkpoint's"):
        read(checkpoint)
