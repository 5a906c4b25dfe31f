"""Images are decoded in several processes: the same cache as in one, no process left, no image that ends the build."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.conftest import small_config
from tests.data.image_files import encode
from vlm_core.cache import FILES, read_manifest
from vlm_core.data import conversation_cache
from vlm_core.data.conversation_cache import build_conversations
from vlm_core.data.image_workers import ImageWorkers
from vlm_core.data.images import UnreadableImageError, inspect_image
from vlm_core.data.splits import fetch_splits

PNG = encode(Image.effect_noise((40, 30), 90))


@pytest.mark.parametrize("rules", [{}, {"dataset.split_by": "image"}])
def test_two_processes_build_the_cache_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any]
) -> None:
    splits = fetch_splits(small_config(**rules))
    built = []
    for processes in (1, 2):
        monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / str(processes)))
        monkeypatch.setattr(conversation_cache, "ImageWorkers", partial(ImageWorkers, processes, patience=0.0))
        built.append(read_manifest(build_conversations(splits)[0]))
    assert built[0][FILES] == built[1][FILES]  # the sha256 of every file
    assert built[0] == built[1]
    assert not [child for child in psutil.Process().children() if "image_worker" in " ".join(child.cmdline())]


def test_facts_and_refusals_come_back() -> None:
    workers = ImageWorkers(2, patience=0.0)
    images = [PNG, PNG[:300], b"", encode(Image.effect_noise((300, 200), 50), "jpeg"), b"%!PS-Adobe"] * 3
    found = [workers.inspect(image) for image in images]
    for image, future in zip(images, found, strict=True):
        if image[:4] in (PNG[:4], b"\xff\xd8\xff\xe0") and image != PNG[:300]:
            assert future.result() == inspect_image(image)
        else:
            with pytest.raises(UnreadableImageError) as alone:
                inspect_image(image)
            assert str(future.exception()) == str(alone.value)
    workers.close()
    assert all(worker.returncode == 0 for worker in workers._workers)


def test_an_image_that_ends_its_decoder_is_refused_and_the_others_are_read() -> None:
    workers = ImageWorkers(2, patience=0.0)
    assert workers.inspect(PNG).result().width == 40
    for worker in list(workers._workers):
        worker.send_signal(signal.SIGSTOP)
    pending = [workers.inspect(PNG) for _ in range(2)]
    time.sleep(0.2)
    for worker in list(workers._workers):
        worker.kill()
        worker.wait()  # A worker that is still dying would take the next image.
    refused = [future.exception() for future in pending]
    assert any(isinstance(error, UnreadableImageError) and "ends its decoder" in str(error) for error in refused)
    assert workers.inspect(PNG).result().height == 30
    workers.close()


def test_a_killed_build_leaves_no_process() -> None:
    program = (
        "import sys, time; from vlm_core.data.image_workers import ImageWorkers; w = ImageWorkers(2, patience=0.0)\n"
        "[w.inspect(b'x').exception() for _ in range(4)]\n"
        "print(*(p.pid for p in w._workers), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout
        workers = [psutil.Process(int(pid)) for pid in build.stdout.readline().split()]
        assert workers
        os.kill(build.pid, signal.SIGKILL)
    psutil.wait_procs(workers, timeout=10)
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
