"""torchrun on two hosts without a scheduler: a short break of the link is harmless, a long one causes a restart."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed.jobs import job, write_jobs
from tests.distributed.test_two_ranks import configure
from tests.e2e.services import ROOT, wait_until
from tests.hosts import ADDRESSES, INTERFACE, Hosts, two_hosts
from vlm_core.files import read_json_lines
from vlm_core.run_directory import METRICS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("MEDPIX_KILLS" not in os.environ, reason="minutes: make stress runs it"),
]

STEPS = 50
# The loop of docs/clusters.md: an agent without a link ends, and a new one joins the others.
AGAIN = 'for attempt in 1 2 3 4 5 6 7 8 9; do "$@" && exit 0; sleep 1; done; exit 1'


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


def agent(hosts: Hosts, host: int, root: Path, conversations: Path) -> subprocess.Popen[bytes]:
    """Starts the command of docs/clusters.md on a host for two trainings; the first one runs undisturbed."""
    words = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=medpix", "--max-restarts=3"]
    # Namespaces have no names in DNS, so the test sets their addresses and the host of the rendezvous.
    words += [f"--rdzv-endpoint={ADDRESSES[0]}:29400", f"--local-addr={ADDRESSES[host]}"]
    words += [f"--rdzv-conf=is_host={int(host == 0)},last_call_timeout=1"]
    jobs = write_jobs(root / f"jobs-{host}.json", [job(root / name, conversations) for name in ("whole", "cut")])
    command = [sys.executable, "-m", "torch.distributed.run", *words, "-m", "tests.distributed.jobs", str(jobs)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with log_of(root, host).open("wb") as log:
        call = hosts.on(host, "sh", "-c", AGAIN, "again", *command)
        return subprocess.Popen(call, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def log_of(root: Path, host: int) -> Path:
    return root / f"host-{host}.log"


@contextmanager
def agents(hosts: Hosts, root: Path, conversations: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yields the processes on both hosts, and kills them at the end."""
    started = [agent(hosts, host, root, conversations) for host in (0, 1)]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the kernel ends the ranks when torchrun dies
                process.wait()


def steps_of(directory: Path) -> int:
    return len(read_json_lines(directory / METRICS)[0])


def test_a_cut_link_does_not_change_the_curve(hosts: Hosts, conversations: Path, tmp_path: Path) -> None:
    length = {"step_scheduler.max_steps": STEPS, "step_scheduler.num_epochs": 9, "step_scheduler.ckpt_every_steps": 5}
    for name in ("whole", "cut"):
        configure(tmp_path / name, **length)
    run = tmp_path / "cut"

    def restarts() -> int:
        return sum(log_of(tmp_path, host).read_text().count("resumed from") for host in (0, 1))

    with agents(hosts, tmp_path, conversations) as processes:
        wait_until(lambda: steps_of(run) >= 6, "a few steps of training")
        hosts.cut()
        time.sleep(2)
        hosts.reconnect()
        wait_until(lambda: steps_of(run) >= 20, "the resumed training")
        assert restarts() == 0
        hosts.cut()
        ended = "RendezvousConnectionError"
        wait_until(lambda: ended in log_of(tmp_path, 1).read_text(), "the second host notices", 120)
        reached = steps_of(run)
        assert 20 <= reached < STEPS
        hosts.reconnect()
        assert [process.wait(400) for process in processes] == [0, 0], log_of(tmp_path, 0).read_text()
    assert restarts() >= 1  # on a busy machine, an agent may give up waiting and start again
    whole, cut = (read_json_lines(tmp_path / name / METRICS)[0] for name in ("whole", "cut"))
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in cut] == [
        (r["step"], r["loss"], r["grad_norm"]) for r in whole
    ]
    assert [r["step"] for r in cut] == list(range(1, STEPS + 1))
