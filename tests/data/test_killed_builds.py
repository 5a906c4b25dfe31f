"""A builder that is killed at any moment leaves a cache that the next run completes, byte for byte as if it never was.

Three kills here, 20 with `make stress`.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import fresh_home, small_config
from tests.kills import KILLS
from vlm_core.cache import FILES, checksums, read_manifest
from vlm_core.data.splits import fetch_splits

BUILD = """
import sys
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.token_cache import build_tokens
from vlm_core.families import GEMMA3
from vlm_core.models.base_model import fetch_model
from vlm_core.models.chat import load_chat
from vlm_core.recipe import load_config

config = load_config("demo", {"dataset.path_or_dataset": "builtin:phantom?images=400"})
chat = load_chat(fetch_model(config.model))
print("ready", flush=True)
sys.stdin.readline()
build_tokens(prepare_conversations(config)[0], chat)
print("built", flush=True)
"""


@pytest.fixture(scope="module")
def prepared() -> None:
    """The dataset and the model of the builders, made before any of them starts."""
    fetch_splits(small_config(**{"dataset.path_or_dataset": "builtin:phantom?images=400"}))


def start(home: Path) -> subprocess.Popen[str]:
    """Starts a builder and returns it when it has imported everything and waits for a line."""
    (home / "cache").mkdir(parents=True, exist_ok=True)
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILD],
        env=os.environ | {"MEDPIX_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert builder.stdout
    assert builder.stdout.readline() == "ready\n"
    return builder


def build(home: Path) -> float:
    """Builds to the end and returns the seconds that it took."""
    builder = start(home)
    begun = time.monotonic()
    out, _ = builder.communicate("go\n")
    assert out == "built\n"
    return time.monotonic() - begun


def homes_content(home: Path) -> dict[str, dict[str, str]]:
    """Returns the checksums of all files of both kinds of cache."""
    root = home / "cache"
    # All of them: what a killed builder left is gone.
    directories = [path for kind in ("conversations", "tokens") for path in (root / kind).iterdir() if path.is_dir()]
    assert all(read_manifest(path)[FILES] == checksums(path) for path in directories)
    return {path.name: checksums(path) for path in directories}


@pytest.mark.slow
@pytest.mark.timeout(300 + 90 * KILLS)
def test_a_killed_build_is_completed_byte_for_byte(
    prepared: None, tmp_path: Path, tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new_home(name: str) -> Path:
        home = fresh_home(tmp_path / name)
        (home / "cache" / "conversations").unlink()  # those of the tests' own home are not to be found
        return home

    reference = new_home("reference")
    seconds = build(reference)
    expected = homes_content(reference)
    assert len(expected) == 2
    chosen, killed = random.Random(7), 0
    for number in range(KILLS):
        home = new_home(str(number))
        builder = start(home)
        assert builder.stdin
        builder.stdin.write("go\n")
        builder.stdin.flush()
        time.sleep(chosen.uniform(0, seconds))
        killed += builder.poll() is None
        builder.kill()
        builder.communicate()
        build(home)
        assert homes_content(home) == expected
    assert killed >= KILLS / 2
    print(f"{killed} of {KILLS} builders were killed at work; a build takes {seconds:.1f} s")
