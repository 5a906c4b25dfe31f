"""Decodes the images of a build: first in this process, then in worker processes if it takes more than seconds."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import vlm_core
from vlm_core.data.image_worker import LENGTH
from vlm_core.data.images import ImageFacts, UnreadableImageError, inspect_image

PATIENCE = 2.0  # seconds of decoding here before processes are started, which takes half a second


class ImageWorkers:
    """Inspects images on as many cores as this process may use. Close it when the build ends."""

    def __init__(self, processes: int | None = None, patience: float = PATIENCE) -> None:
        self.processes = len(os.sched_getaffinity(0)) if processes is None else processes
        self._patience, self._spent = patience, 0.0
        self._threads: ThreadPoolExecutor | None = None
        self._own = threading.local()  # each thread talks to a worker of its own
        self._workers: list[subprocess.Popen[bytes]] = []

    def inspect(self, encoded: bytes) -> "Future[ImageFacts]":
        """Returns the facts of an image, or its UnreadableImageError, when they are known."""
        if self.processes > 1 and self._spent >= self._patience:
            self._threads = self._threads or ThreadPoolExecutor(self.processes)
            return self._threads.submit(self._ask, encoded)
        started, found = time.monotonic(), Future[ImageFacts]()
        try:
            found.set_result(inspect_image(encoded))
        except UnreadableImageError as error:
            found.set_exception(error)
        self._spent += time.monotonic() - started
        return found

    def close(self) -> None:
        """Ends the workers."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            assert worker.stdin
            assert worker.stdout
            worker.stdin.close()
            worker.stdout.close()
            worker.wait()

    def _ask(self, encoded: bytes) -> ImageFacts:
        worker = getattr(self._own, "worker", None)
        if worker is None or worker.poll() is not None:
            worker = self._own.worker = self._start()
        assert worker.stdin
        assert worker.stdout
        try:
            worker.stdin.write(len(encoded).to_bytes(LENGTH, "little") + encoded)
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        if "facts" in answer:
            return ImageFacts(**answer["facts"])
        if not answer:
            worker.wait()
        raise UnreadableImageError(answer.get("error", "image that ends its decoder"))

    def _start(self) -> "subprocess.Popen[bytes]":
        """Starts a worker. It imports this package, wherever this process has it from."""
        here = str(Path(vlm_core.__file__).parents[1])
        paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "vlm_core.data.image_worker"]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
        )
        self._workers.append(worker)
        return worker
