"""How much memory a piece of work takes at most."""

import threading

import psutil
import torch


class PeakMemory:
    """The largest memory above that at the start, in MB: resident, looked at every 5 ms; or the GPU's."""

    def __enter__(self) -> "PeakMemory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.process, self.stopped = psutil.Process(), threading.Event()
        self.before = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
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
