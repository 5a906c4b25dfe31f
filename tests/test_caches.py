"""Caches are listed, verified and pruned; a cache that a run is building stays."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import small_config
from vlm_core.cache import cached_directory
from vlm_core.caches import BUILT_DIRECTORIES, find_caches, list_caches, prune_caches, verify_caches
from vlm_core.data.prepare import prepare_conversations
from vlm_core.evaluation.store import Store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def cache(home: Path) -> Path:
    return prepare_conversations(small_config())[0]


def age(directory: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    for path in (directory, *directory.rglob("*")):
        os.utime(path, (then, then))


def test_each_cache_has_one_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in set(BUILT_DIRECTORIES) - {"conversations", "phantom"}:
        cached_directory(cache.parents[1] / kind, "key", lambda directory: {})
    list_caches()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*sorted(BUILT_DIRECTORIES), "all"]
    (conversations,) = (line for line in lines if line.startswith("conversations"))
    assert cache.name in conversations
    assert "400 rows, 40 images" in conversations


def test_a_damaged_file_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_caches() == 0
    images = cache / "images.arrow"
    content = bytearray(images.read_bytes())
    content[len(content) // 2] ^= 1
    images.write_bytes(content)
    (cache / "statistics.json").unlink()
    assert verify_caches() == 1
    output = capsys.readouterr().out
    assert f"damaged: {images}; delete {cache}" in output
    assert f"damaged: {cache / 'statistics.json'}" in output


def test_caches_that_are_unused_for_long_are_deleted(
    cache: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for found in find_caches():
        age(found.directory, 40)
    prepare_conversations(small_config())  # marks both caches as used
    prune_caches(30, dry_run=False)
    assert cache.is_dir()
    for found in find_caches():
        age(found.directory, 40)
    prune_caches(30, dry_run=True)
    assert cache.is_dir()
    assert f"would delete: {cache}" in capsys.readouterr().out
    prune_caches(30, dry_run=False)
    assert list(find_caches()) == []
    assert prepare_conversations(small_config()) == (cache, False)  # the cache is built again


def test_only_leftovers_of_killed_builders_are_deleted(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leftover = cache.with_name(f".{cache.name}.4711")
    leftover.mkdir()
    (leftover / "images.arrow").write_bytes(b"half")
    with FileLock(cache.parent / f".{cache.name}.lock"):
        prune_caches(30, dry_run=False)
        assert f"in use, kept: {leftover}" in capsys.readouterr().out
    prune_caches(30, dry_run=False)
    assert not leftover.exists()
    assert cache.is_dir()


def test_a_damaged_shard_of_the_vision_cache_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from vlm_core.models.feature_store import FeatureStore

    directory = home / "cache" / "vision" / "tower"
    directory.mkdir(parents=True)
    FeatureStore(directory).add(["a", "b"], torch.ones(2, 3))
    assert verify_caches() == 0
    (shard,) = directory.glob("*.arrow")
    content = bytearray(shard.read_bytes())
    content[content.index(b"\x00\x00\x80?")] ^= 1
    shard.write_bytes(content)
    assert verify_caches() == 1
    assert f"damaged: {shard}" in capsys.readouterr().out


def test_reading_a_cache_counts_as_use(home: Path) -> None:
    """Features and answers are read far more often than they are written."""
    store = Store(home / "cache" / "answers", {"model": "a"})
    store.add({"question": {"text": "Yes"}})
    age(store.directory, 40)
    (cache,) = find_caches()
    assert cache.days_unused > 39
    Store(home / "cache" / "answers", {"model": "a"})
    assert cache.days_unused < 1


def test_a_damaged_answer_is_asked_again(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(home / "cache" / "answers", {"model": "a"})
    store.add({key: {"text": "Yes: the left lung", "likelihood": 0.25} for key in "abc"})
    content = store.own.read_text().splitlines()
    content[1] = content[1].replace("left", "lefu")
    store.own.write_text("\n".join(content) + "\n")
    found = Store(home / "cache" / "answers", {"model": "a"})
    assert found.records == {key: store[key] for key in "ac"}
    assert "has 1 damaged answers: these questions are asked again" in caplog.text
