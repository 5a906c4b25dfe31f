"""Measures the peak memory of a piece of work."""

import threading

import psutil
import torch


class PeakMemory:
    """Peak memory in MB: the GPU's, or on a CPU the resident memory above the start's, polled every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.process, self.stopped = psutil.Process(), threading.Event()
        self.before = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._poll)
        self.thread.start()
        return self

    def _poll(self) -> None:
        while not self.stopped.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    @property
    def megabytes(self) -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
        return (self.peak - self.before) / 1e6
