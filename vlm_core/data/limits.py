"""Limits for code that comes with a model, such as a chat template: it can neither hang a run nor fill the memory."""

import ctypes
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

AGAIN = 1.0  # seconds; Python drops an error that arrives while it collects garbage, so it is raised again
_LIMITED = threading.Lock()  # the limit of memory belongs to the process


class OutOfTimeError(Exception):
    """The block of a `time_limit` took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError inside the block after `seconds`, in any thread, as soon as Python code runs in it."""
    thread, lock, over, ended = threading.get_ident(), threading.Lock(), threading.Lock(), False

    def watch() -> None:
        wait = seconds
        while not over.acquire(timeout=wait):
            with lock:
                if not ended:
                    _raise_in(thread, OutOfTimeError)
            wait = AGAIN

    over.acquire()
    try:
        threading.Thread(target=watch, daemon=True).start()
        yield
    finally:
        try:
            with lock:
                ended = True
        finally:  # an error may arrive in the lines above
            ended = True
            over.release()
            _raise_in(thread, None)  # withdraws one that has not arrived yet


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Makes the process raise MemoryError inside the block instead of taking `size` more bytes of address space.

    The limit holds for all threads of the process. Another thread that enters such a block waits. A stricter limit of
    the process stays.
    """
    with _LIMITED:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = psutil.Process().memory_info().vms + size
        others = [other for other in (soft, hard) if other != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min([limit, *others]), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _raise_in(thread: int, kind: type[Exception] | None) -> None:
    target = ctypes.py_object(kind) if kind else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
