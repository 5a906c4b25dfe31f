"""One process or many under torchrun: setting up, sums over ranks, and an orderly end."""

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
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from vlm_core.files import is_disk_full
from vlm_core.home import keep_private
from vlm_core.hub import HubBusyError
from vlm_core.log import configure_logging
from vlm_core.plain_text import printable
from vlm_core.progress import PROGRESS_FILE, progress_sent_to, progress_writer

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=3)
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
    """Yields this process's `Ranks`, read from torchrun's environment; a lone process when there is none.

    More than one process are joined by nccl on GPUs and by gloo elsewhere.
    """
    ranks = Ranks(*(int(os.environ.get(name, default)) for name, default in _ENVIRONMENT.items()))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_parent()
    if ranks.world_size == 1:
        yield ranks
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
    # Ranks wait for the main one while it downloads, or while another job fills the cache that it needs.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    try:
        yield ranks
        dist.barrier()
        time.sleep(0.3)  # gloo's threads race with the interpreter's exit (SIGABRT) unless they have come to rest
    finally:
        dist.destroy_process_group()


@contextmanager
def command() -> Iterator[Ranks]:
    """Yields the `Ranks` of a command; the main rank alone speaks, and wrong input ends it with its reason."""
    keep_private()
    with process_group() as ranks:
        configure_logging(quiet=not ranks.is_main)
        file = os.environ.get(PROGRESS_FILE) if ranks.is_main else None
        try:
            with progress_sent_to(progress_writer(Path(file))) if file else nullcontext():
                yield ranks
        except (ValueError, HubBusyError) as error:
            raise SystemExit(f"error: {printable(error)}") from error
        except OSError as error:
            if not is_disk_full(error):
                raise
            remedy = (
                "Free some space, for example with python -m vlm_core.caches prune, and give the same command again"
            )
            raise SystemExit(f"error: {printable(error)}. {remedy}") from None


_ENVIRONMENT = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}


def _die_with_parent() -> None:
    """Has the kernel kill this rank when torchrun dies: a rank is a session of its own, so SIGKILL would leak it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def sum_over_ranks(*values: float) -> list[float]:
    """Returns each value summed over all ranks, in double precision."""
    if not dist.is_initialized():
        return list(values)
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def same_as_main(value: T) -> T:
    """Returns the main rank's `value` on every rank; all have to call it."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def decided_by_main(ranks: Ranks, decide: Callable[[], T]) -> T:
    """Returns what `decide` returns on the main rank, on every rank; its ValueError is raised on every rank too."""
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
    """Returns the most memory that this process had: of the GPU, or resident where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextmanager
def main_rank_first(ranks: Ranks) -> Iterator[None]:
    """Lets the main rank through the block before the others: it downloads and builds, they find what is there.

    transformers writes a model on the main rank alone, so that a tiny one built by another rank would be empty.
    """
    if not ranks.is_main:
        barrier()
    yield
    if ranks.is_main:
        barrier()


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()
