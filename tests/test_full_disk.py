"""A full disk is one clear error, whichever library met it, and leaves nothing half-written; a plan foresees it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.conftest import small_config
from vlm_core import files
from vlm_core.files import NoSpaceError, append_json_line, published_directory, published_file, write_json


def write_to_full_device() -> None:
    with Path("/dev/full").open("w") as stream:
        stream.write("x")


def write_arrow_to_full_device() -> None:
    schema = pa.schema([("x", pa.int64())])
    with pa.OSFile("/dev/full", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([[1] * 100_000], schema=schema))


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


SAFETENSORS = "Error while serializing: I/O error: No space left on device (os error 28)"
TORCH = "[enforce fail at inline_container.cc:778] . PytorchStreamWriter failed writing file data/3: file write failed"


@pytest.mark.parametrize(
    "fail",
    [
        write_to_full_device,
        write_arrow_to_full_device,
        raising(OSError(122, "Disk quota exceeded")),
        raising(Exception(SAFETENSORS)),
        raising(RuntimeError(TORCH)),
    ],
)
@pytest.mark.parametrize("publish", [published_file, published_directory])
def test_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Any, fail: Callable[[], None]
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 4096)

    def write() -> None:
        with publish(tmp_path / "final") as aside:
            if aside.is_dir():
                (aside / "part").write_text("x")
            fail()

    with pytest.raises(NoSpaceError, match=r"no space left in .*checkpoint_dir.*same command again"):
        write()
    assert not [*tmp_path.iterdir()]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("shape mismatch"), PermissionError(13, "no"), KeyError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, published_directory(tmp_path / "final"):
            raise error
        assert caught.value is error


def test_lines_and_json_name_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSpaceError, match="/dev"):
        append_json_line(Path("/dev/full"), {"step": 1})
    monkeypatch.setattr(files, "_flush", raising_os_error)
    with pytest.raises(NoSpaceError):
        write_json(tmp_path / "x.json", {})
    assert not [*tmp_path.iterdir()]


def raising_os_error(_: Path) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("settings", "there", "fits", "says"),
    [
        ({}, 0, 1, ""),
        ({}, 0, 0.9, "a checkpoint of about 1.0 GB will not fit"),
        ({"step_scheduler.ckpt_every_steps": 10}, 0, 11, ""),
        ({"step_scheduler.ckpt_every_steps": 10}, 0, 10.5, "11 checkpoints .*max_recent_checkpoints=8"),
        ({"step_scheduler.ckpt_every_steps": 10}, 8, 3, ""),
        ({"step_scheduler.ckpt_every_steps": 10}, 0, 2.5, "free some"),
        ({"step_scheduler.ckpt_every_steps": 10, "checkpoint.max_recent_checkpoints": 2}, 0, 4, ""),
        ({"step_scheduler.ckpt_every_steps": 10, "checkpoint.max_recent_checkpoints": 2}, 0, 3.5, "4 checkpoints"),
        ({"step_scheduler.ckpt_every_steps": 10, "checkpoint.max_recent_checkpoints": 2}, 4, 0.5, "a checkpoint of"),
        ({"step_scheduler.ckpt_every_steps": 10, "checkpoint.enabled": False}, 0, 0, ""),
    ],
)
def test_a_plan_whose_checkpoints_do_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], there: int, fits: float, says: str
) -> None:
    from vlm_core.training import plan as planning

    monkeypatch.setattr(planning, "free_bytes", lambda _: int(fits * 1e9))
    for number in range(there):
        (tmp_path / f"epoch_0_step_{number}").mkdir()
    counts = dict.fromkeys(planning.Plan.__dataclass_fields__, 1) | {"steps": 100, "memory": {}}
    plan = planning.Plan(**counts | {"checkpoint_bytes": 1e9})
    if not says:
        planning.require_disk(plan, small_config(**settings), tmp_path)
        return
    with pytest.raises(ValueError, match=says):
        planning.require_disk(plan, small_config(**settings), tmp_path)
