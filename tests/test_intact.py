"""A damaged cache is found when a run opens it: it is built again or named, with the remedy."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_core import intact
from vlm_core.cache import cached_directory
from vlm_core.files import read_json, write_json
from vlm_core.intact import MANIFEST, damages, record_of, require_intact


def build(directory: Path) -> dict[str, Any]:
    (directory / "images.arrow").write_bytes(bytes(range(256)) * 20)
    (directory / "part").mkdir()
    (directory / "part" / "rows.arrow").write_bytes(b"rows")
    return {"rows": {"train": 100}, "share": 0.1, "closed": {"Is it ä?": [1, None]}}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return cached_directory(tmp_path, "key", build)[0]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to compare their checksums."""
    files: list[Path] = []
    checksum = intact._fast_checksum

    def counted(path: Path) -> str:
        files.append(path)
        return checksum(path)

    monkeypatch.setattr(intact, "_fast_checksum", counted)
    return files


def flip(file: Path, at: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at < 0 else at] ^= 1
    file.write_bytes(content)


def flip_at_the_same_time(file: Path) -> None:
    """Flips a byte and restores the times that a program can set."""
    status = file.stat()
    flip(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def other_count(cache: Path) -> None:
    write_json(cache / MANIFEST, read_json(cache / MANIFEST) | {"rows": {"train": 101}})


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda cache: flip(cache / "images.arrow"), "images.arrow"),
        (lambda cache: flip_at_the_same_time(cache / "images.arrow"), "images.arrow"),
        (lambda cache: flip(cache / "part" / "rows.arrow"), "part/rows.arrow"),
        (lambda cache: (cache / "images.arrow").write_bytes(b""), "images.arrow"),
        (lambda cache: (cache / "part" / "rows.arrow").unlink(), "part/rows.arrow"),
        (lambda cache: shutil.rmtree(cache / "part"), "part/rows.arrow"),
        (lambda cache: (cache / MANIFEST).write_bytes((cache / MANIFEST).read_bytes()[:40]), MANIFEST),
        (lambda cache: (cache / MANIFEST).write_text("[]"), MANIFEST),
        (other_count, MANIFEST),
    ],
)
def test_a_damaged_cache_is_named_and_built_again(
    cache: Path, damage: Callable[[Path], object], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path.name: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    require_intact(cache)
    damage(cache)
    with pytest.raises(ValueError, match=rf"{file} is damaged \(.+\): delete {cache}, and run again"):
        require_intact(cache)
    assert cached_directory(cache.parent, "key", build) == (cache, False)
    assert f"is damaged ({file}: " in caplog.text
    assert {path.name: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
    assert cached_directory(cache.parent, "key", build) == (cache, True)


def test_files_are_read_once_a_day_and_after_a_change(cache: Path, read: list[Path]) -> None:
    assert damages(cache) == {}
    assert len(read) == 2
    intact._compared.clear()  # as another process
    assert damages(cache) == {}
    assert len(read) == 2
    yesterday = time.time() - intact.DAY - 1
    os.utime(record_of(cache), (yesterday, yesterday))
    intact._compared.clear()
    assert damages(cache) == {}
    assert len(read) == 4
    (cache / "part" / "rows.arrow").touch()
    assert damages(cache) == {}
    assert len(read) == 6


def test_a_cache_of_another_user_is_compared_by_each_process(
    cache: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(intact, "write_json", refuse)
    for _ in range(2):
        assert damages(cache) == {}
    assert len(read) == 2


def test_older_caches_have_their_slower_checksums_compared(cache: Path) -> None:
    manifest = read_json(cache / MANIFEST)
    del manifest[intact.FAST]
    write_json(cache / MANIFEST, manifest)
    assert damages(cache) == {}
    flip(cache / "images.arrow")
    assert damages(cache) == {"images.arrow": intact.DIFFERS}


def test_an_unreadable_record_is_ignored(cache: Path, read: list[Path]) -> None:
    record_of(cache).write_text("[")
    assert damages(cache) == {}
    assert len(read) == 2
