"""Lets one deployed run at a time use this machine: trainings and evaluations wait for their turn.

First come, first served. Each run has a ticket: a file that describes the run, and a lock that its process holds. The
kernel releases the lock when the process ends, so a killed run does not block others. Two kinds of runs do not wait: a
run by hand, since a person decided to start it now, and a run on a cluster, since the cluster's scheduler places its
jobs.
"""

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import State, get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run
from prefect.states import Running

from tasks.stops import Stopped
from vlm_core.cache import locked
from vlm_core.config import ComputeConfig
from vlm_core.files import read_json, write_json
from vlm_core.home import medpix_home

SECONDS_BETWEEN_POLLS = 1.0
AUTOMATIC = ("SCHEDULE", "AUTOMATION")  # Prefect's types of creator for runs that no person started
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]
Ticket = dict[str, Any]


def turns_directory() -> Path:
    """Returns the directory of this machine's tickets.

    Several machines may share a home, so the name has the machine's boot id. It also holds in a container, whose host
    name differs from the machine's.
    """
    machine = BOOT_ID.read_text().strip() if BOOT_ID.exists() else socket.gethostname()
    return medpix_home() / "turns" / machine


@contextmanager
def turn(compute: ComputeConfig) -> Iterator[None]:
    """Reserves this machine for the block; a deployed run first waits for earlier runs, and shows this on its page.

    Raises Stopped for a run that a schedule or an automation started, if one with the same parameters runs or waits.
    """
    logger, local = get_run_logger(), compute.launcher == "local"
    waits = local and bool(deployment.id)
    mine = {
        "run": flow_run.name or f"process {os.getpid()}",
        "flow": flow_run.flow_name or "",
        "page": flow_run.ui_url or "",
        "work": _work(),
        "local": local,
        "waits": waits,
    }
    directory = turns_directory()
    with ticket(directory, mine) as number:
        _require_no_duplicate(directory, number, mine)
        if waits:
            _wait_on_the_page(directory, number, logger)
        elif local:
            for other in others_before(directory, number):
                logger.warning("%s is running on this machine too: both will be slower", describe(other))
        yield


def _work() -> str:
    """Returns a digest of this run's work: its flow and its parameters."""
    work = json.dumps([flow_run.flow_name, flow_run.parameters], sort_keys=True, default=str)
    return hashlib.sha256(work.encode()).hexdigest()


def _require_no_duplicate(directory: Path, number: int, mine: Ticket) -> None:
    """Raises Stopped if this run is automatic and an equal one runs or waits: automatic runs must not pile up."""
    same = [other for other in _others(directory, number) if other["work"] == mine["work"] and other["number"] < number]
    if not same or not deployment.id:
        return
    with get_client(sync_client=True) as client:
        creator = client.read_flow_run(UUID(str(flow_run.id))).created_by
    if creator is not None and creator.type in AUTOMATIC:
        raise Stopped(
            f"Not started: {describe(same[0])} runs or waits with the same parameters, so nothing is left to do. To "
            f"run again after it, press Retry on this page, or use `prefect flow-run retry {flow_run.id}`."
        )


def _wait_on_the_page(directory: Path, number: int, logger: Logger) -> None:
    def show(message: str) -> None:
        logger.info("%s", message)
        _set_state(Running(name="Waiting", message=message))

    if wait_for_turn(directory, number, show):
        logger.info("it is this run's turn")
        _set_state(Running())


def _set_state(state: State) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), state, force=True)


@contextmanager
def ticket(directory: Path, content: Ticket) -> Iterator[int]:
    """Creates a ticket with the next number, yields the number, and removes the ticket after the block."""
    directory.mkdir(parents=True, exist_ok=True)
    with _changing(directory):
        number = max(_numbers(directory), default=0) + 1
        lock = FileLock(_lock_file(directory, number), fallback_to_soft=False)
        lock.acquire(timeout=0)
        write_json(_file(directory, number), content)
    try:
        yield number
    finally:
        with _changing(directory):
            _remove(directory, number)
            lock.release()


def wait_for_turn(directory: Path, number: int, show: Callable[[str], None]) -> bool:
    """Waits until no run is before this one, and returns whether it had to wait.

    Calls `show` with the reason whenever that changes.
    """
    shown = ""
    while before := others_before(directory, number):
        message = _waiting_message(before)
        if message != shown:
            show(message)
            shown = message
        time.sleep(SECONDS_BETWEEN_POLLS)
    return bool(shown)


def others_before(directory: Path, number: int) -> list[Ticket]:
    """Returns the tickets of this machine's runs before `number`, and of all runs by hand, since those never wait."""
    others = [other for other in _others(directory, number) if other["local"]]
    return [other for other in others if other["number"] < number or not other["waits"]]


def _others(directory: Path, number: int) -> list[Ticket]:
    """Returns the tickets of all other runs, and removes the tickets of processes that have ended."""
    found = []
    with _changing(directory):
        for other in sorted(_numbers(directory)):
            if other == number:
                continue
            if _is_held(_lock_file(directory, other)):
                found.append({**read_json(_file(directory, other)), "number": other})
            else:
                _remove(directory, other)
    return found


def describe(other: Ticket) -> str:
    """Describes a run for messages: its flow, its name, and its page in Prefect."""
    words = [other["flow"], repr(other["run"]), f"({other['page']})" if other["page"] else ""]
    return " ".join(word for word in words if word)


def _waiting_message(before: list[Ticket]) -> str:
    queue = f", and {len(before) - 1} more before this run" if len(before) > 1 else ""
    return f"waiting for {describe(before[0])}, which is running on this machine{queue}"


def _changing(directory: Path) -> Any:
    return locked(directory / ".lock")


def _numbers(directory: Path) -> list[int]:
    return [int(path.stem) for path in directory.glob("*.json")]


def _file(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}.json"


def _lock_file(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}.lock"


def _is_held(path: Path) -> bool:
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _remove(directory: Path, number: int) -> None:
    for path in (_file(directory, number), _lock_file(directory, number)):
        path.unlink(missing_ok=True)
