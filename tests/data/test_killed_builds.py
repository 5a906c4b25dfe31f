"""A builder that is killed at any moment leaves a cache that the next run completes, byte for byte as if it never was.

Three kills here, 20 with `make stress`.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import fresh_home, small_config
from tests.kills import KILLS, Starter, starter_of
from vlm_core.cache import FILES, checksums, read_manifest
from vlm_core.data.splits import fetch_splits

BUILD = """
import os, sys
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.token_cache import build_tokens
from vlm_core.models.base_model import fetch_model
from vlm_core.models.chat import load_chat
from vlm_core.recipe import load_config

config = load_config("demo", {"dataset.path_or_dataset": "builtin:phantom?images=400"})
chat = load_chat(fetch_model(config.model))

def work(home):
    os.environ["MEDPIX_HOME"] = home
    build_tokens(prepare_conversations(config)[0], chat)
"""


@pytest.fixture(scope="module")
def prepared() -> None:
    """The dataset and the model of the builders, made before any of them starts."""
    fetch_splits(small_config(**{"dataset.path_or_dataset": "builtin:phantom?images=400"}))


@pytest.fixture
def starter(prepared: None) -> Iterator[Starter]:
    with starter_of(BUILD) as starter:
        yield starter


def homes_content(home: Path) -> dict[str, dict[str, str]]:
    """Returns the checksums of all files of both kinds of cache."""
    root = home / "cache"
    # All of them: what a killed builder left is gone.
    directories = [path for kind in ("conversations", "tokens") for path in (root / kind).iterdir() if path.is_dir()]
    assert all(read_manifest(path)[FILES] == checksums(path) for path in directories)
    return {path.name: checksums(path) for path in directories}


@pytest.mark.slow
@pytest.mark.timeout(300 + 90 * KILLS)
def test_a_killed_build_is_completed_byte_for_byte(starter: Starter, tmp_path: Path, tiny_gemma3: Path) -> None:
    def new_home(name: str) -> Path:
        home = fresh_home(tmp_path / name)
        (home / "cache" / "conversations").unlink()  # those of the tests' own home are not to be found
        return home

    def build(home: Path) -> float:
        starter.start(str(home))  # waits for the imports, the first time
        begun = time.monotonic()
        assert starter.end() == 0
        return time.monotonic() - begun

    reference = new_home("reference")
    seconds = build(reference)
    expected = homes_content(reference)
    assert len(expected) == 2
    chosen, killed = random.Random(7), 0
    for number in range(KILLS):
        home = new_home(str(number))
        builder = starter.start(str(home))
        time.sleep(chosen.uniform(0, seconds))
        with suppress(ProcessLookupError):  # it had ended
            os.kill(builder, signal.SIGKILL)
        killed += starter.end() == signal.SIGKILL
        build(home)
        assert homes_content(home) == expected
    assert killed >= KILLS / 2
    print(f"{killed} of {KILLS} builders were killed at work; a build takes {seconds:.1f} s")
