"""Runs a command on one process, or on several under torchrun: setup, sums over ranks, and a clean exit."""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from vlm_core.files import is_disk_full
from vlm_core.home import keep_private
from vlm_core.hub import HubBusyError
from vlm_core.log import configure_logging
from vlm_core.plain_text import printable
from vlm_core.progress import PROGRESS_FILE, progress_sent_to, progress_writer

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=3)  # while one rank works for all: it downloads, builds a cache, writes a checkpoint
STEP_WAIT = timedelta(minutes=15)  # in the training loop, where all ranks do equal work
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the job."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process logs, writes files and reports."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Yields this process's `Ranks`, read from torchrun's environment variables; without them, a single process.

    Several processes form a group: nccl on GPUs, gloo on CPUs.
    """
    ranks = Ranks(*(int(os.environ.get(name, default)) for name, default in _ENVIRONMENT.items()))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_parent()
    if ranks.world_size == 1:
        yield ranks
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=STEP_WAIT)
    for wait in (LONGEST_WAIT, STEP_WAIT):
        _meetings[wait] = dist.new_group(backend="gloo", timeout=wait)
    try:
        yield ranks
        barrier()
        time.sleep(0.3)  # lets gloo's threads finish: otherwise they race with the interpreter's exit (SIGABRT)
    finally:
        _meetings.clear()
        dist.destroy_process_group()


@contextmanager
def command() -> Iterator[Ranks]:
    """Yields the `Ranks` of a command. Only the main rank logs. Wrong input ends the process with an error message."""
    keep_private()
    with process_group() as ranks:
        configure_logging(quiet=not ranks.is_main)
        file = os.environ.get(PROGRESS_FILE) if ranks.is_main else None
        try:
            with progress_sent_to(progress_writer(Path(file))) if file else nullcontext():
                yield ranks
        except (ValueError, HubBusyError, LateRankError) as error:
            raise SystemExit(f"error: {printable(error)}") from error
        except OSError as error:
            if not is_disk_full(error):
                raise
            remedy = "Free some space, for example with python -m vlm_core.caches prune, and run the same command again"
            raise SystemExit(f"error: {printable(error)}. {remedy}") from None


_ENVIRONMENT = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}


def _die_with_parent() -> None:
    """Makes the kernel kill this rank when torchrun dies.

    torchrun starts each rank in a separate session, so a SIGKILL of torchrun would leave the ranks running.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def sum_over_ranks(*values: float) -> list[float]:
    """Returns each value summed over all ranks, in double precision.

    All ranks must call this at about the same time; see `STEP_WAIT`.
    """
    if not dist.is_initialized():
        return list(values)
    _meet(STEP_WAIT)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total, group=_meetings[STEP_WAIT])
    return total.tolist()


def same_as_main(value: T) -> T:
    """Returns the main rank's `value` on every rank. All ranks must call this."""
    if not dist.is_initialized():
        return value
    barrier()
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_meetings[LONGEST_WAIT])
    return values[0]


def decided_by_main(ranks: Ranks, decide: Callable[[], T]) -> T:
    """Calls `decide` on the main rank only and returns its result on every rank. Every rank raises its ValueError."""
    found, error = None, None
    if ranks.is_main:
        try:
            found = decide()
        except ValueError as raised:
            error = raised
    found, error = same_as_main((found, error))
    if error:
        raise error
    return cast(T, found)


def peak_memory_mb() -> float:
    """Returns this process's peak memory in MB: GPU memory, or resident memory on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextmanager
def main_rank_first(ranks: Ranks) -> Iterator[None]:
    """Runs the block on the main rank first: it downloads and builds, and the other ranks then find the result.

    transformers writes a model only on the main rank. A tiny model built on another rank would be empty.
    """
    if not ranks.is_main:
        barrier()
    yield
    if ranks.is_main:
        barrier()


def barrier() -> None:
    """Waits for all ranks, as long as one of them may work for the others."""
    if dist.is_initialized():
        _meet(LONGEST_WAIT)


class LateRankError(RuntimeError):
    """A rank did not come to where all others wait."""


_meetings: dict[timedelta, Any] = {}  # longest wait -> the group of all ranks that waits so long, on CPUs


def _meet(wait: timedelta) -> None:
    """Waits until all ranks have called this.

    Raises LateRankError after `wait`; the error of rank 0 names the ranks that have not come.
    """
    try:
        dist.monitored_barrier(group=_meetings[wait], timeout=wait, wait_all_ranks=True)
    except RuntimeError as error:
        raise LateRankError(
            f"not every rank came to where rank {dist.get_rank()} waited for {wait} (hours:minutes:seconds): {error}. "
            "The error of rank 0 names the late ranks. See their last lines in the log; py-spy dump --pid shows where "
            "a process hangs. The same command resumes from the last checkpoint"
        ) from error
