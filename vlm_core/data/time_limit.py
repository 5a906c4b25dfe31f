"""A time limit for code that comes with a model, such as a chat template: an endless loop in it cannot hang a run."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfTimeError(Exception):
    """The block of a `time_limit` took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError inside the block after `seconds`, in any thread, as soon as Python code runs in it."""
    thread, lock, ended = threading.get_ident(), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not ended:
                _raise_in(thread, OutOfTimeError)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
        _raise_in(thread, None)  # withdraws one that has not arrived yet
        timer.cancel()


def _raise_in(thread: int, kind: type[Exception] | None) -> None:
    target = ctypes.py_object(kind) if kind else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
