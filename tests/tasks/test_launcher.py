"""Real torchrun subprocesses are followed while they run, reported when they fail, and gone after a cancellation."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.launchers.follow import run_job
from tasks.launchers.job import Job, JobFailedError
from tasks.launchers.local import LocalLauncher
from vlm_core.config import ComputeConfig

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys, time
rank = os.environ["RANK"]
# In one write: two ranks share the pipe.
sys.stdout.write(f"rank {rank} pid {os.getpid()} arguments {sys.argv[1:]}\\n")
if sys.argv[1] == "ok":
    from vlm_core.log import configure_logging
    import logging
    configure_logging()
    logging.warning("look out, rank %s", rank)
if sys.argv[1] == "odd":
    pieces = (b"a line that comes ", b"in two pieces: caf\\xc3", b"\\xa9\\n", b"not UTF-8: \\xff\\n", b"no newline")
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()
        time.sleep(0.7)
if sys.argv[1] == "fail":
    raise SystemExit(3)
if sys.argv[1] == "wait":
    from vlm_core.training.distributed import process_group
    with process_group():
        open(f"ready{rank}", "w").write(str(os.getpid()))
        time.sleep(600)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "job_under_test.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return "job_under_test"


def job(program: str, *arguments: str, processes: int = 2, log_file: Path = Path("job.log")) -> Job:
    return Job(program, arguments, ComputeConfig(nproc_per_node=processes), log_file)


def test_lines_reach_the_logger_and_the_file(program: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    polls: list[float] = []
    with caplog.at_level(logging.INFO):
        run_job(
            job(program, "ok", "a b; $(c)", log_file=tmp_path / "logs" / "job.log"),
            LocalLauncher(),
            logger=logging.getLogger("test"),
            on_poll=lambda: polls.append(time.monotonic()),
        )
    lines = [line for line in caplog.messages if line.startswith("rank")]
    assert sorted(line.split()[1] for line in lines) == ["0", "1"]
    assert all("arguments ['ok', 'a b; $(c)']" in line for line in lines)  # no shell has interpreted them
    assert set(lines) <= set((tmp_path / "logs" / "job.log").read_text().splitlines())
    assert len(polls) >= 2
    # Each line keeps its level; only the logger adds a time.
    warned = [record for record in caplog.records if "look out" in record.getMessage()]
    assert sorted(record.getMessage() for record in warned) == ["look out, rank 0", "look out, rank 1"]
    assert {record.levelname for record in warned} == {"WARNING"}


def test_odd_bytes_and_unfinished_lines_are_logged(
    program: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_job(job(program, "odd", processes=1), LocalLauncher(), logger=logging.getLogger("test"))
    assert caplog.messages[-3:] == ["a line that comes in two pieces: café", "not UTF-8: \ufffd", "no newline"]


def test_a_failure_has_the_exit_code_and_the_last_lines(program: str, tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="job_under_test ended with exit code 1; .*job.log ends with") as error:
        run_job(job(program, "fail", processes=1), LocalLauncher(), logger=logging.getLogger("test"))
    assert "exitcode  : 3" in str(error.value)


CALLER = """
import logging
from tasks.launchers.follow import run_job
from tasks.launchers.local import LocalLauncher
from tasks.launchers.job import Job
from vlm_core.config import ComputeConfig
from pathlib import Path
job = Job("job_under_test", ("wait",), ComputeConfig(nproc_per_node=2), Path("job.log"))
run_job(job, LocalLauncher(), logger=logging.getLogger())
"""


def test_a_job_ends_when_its_parent_ends(program: str, tmp_path: Path) -> None:
    """After SIGKILL, a flow's engine cannot stop its torchrun itself."""
    caller = subprocess.Popen([sys.executable, "-c", CALLER])
    deadline = time.monotonic() + 60
    while len([path for path in tmp_path.glob("ready*") if path.read_text()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    job = psutil.Process(caller.pid).children(recursive=True)
    assert len(job) == 4  # the parent guard, torchrun, and two ranks
    caller.kill()
    caller.wait()
    assert psutil.wait_procs(job, timeout=20)[1] == []


SAVES = """
import os, signal, sys, time
def save(number, frame):
    time.sleep(3)
    open("saved", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(600)
"""


def test_a_second_sigterm_leaves_time_to_save(program: str, tmp_path: Path) -> None:
    """A worker that is stopped sends SIGTERM to a flow's process, which passes it on, and then kills that process."""
    (tmp_path / f"{program}.py").write_text(SAVES)
    caller = subprocess.Popen([sys.executable, "-c", CALLER.replace("nproc_per_node=2", "nproc_per_node=1")])
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    job = psutil.Process(caller.pid).children(recursive=True)
    job[0].terminate()
    time.sleep(1)
    caller.kill()
    caller.wait()
    assert psutil.wait_procs(job, timeout=20)[1] == []
    assert (tmp_path / "saved").exists()
    assert "Traceback" not in (tmp_path / "job.log").read_text()


@pytest.mark.parametrize("killed", ["by the caller", "torchrun by SIGKILL"])
def test_no_process_survives(program: str, tmp_path: Path, killed: str) -> None:
    class Cancelled(BaseException):
        pass

    def ranks() -> list[psutil.Process]:
        return [psutil.Process(int(path.read_text())) for path in tmp_path.glob("ready*") if path.read_text()]

    seen: list[psutil.Process] = []

    def poll() -> None:
        if len(ranks()) == 2 and not seen:
            seen.extend([*ranks(), ranks()[0].parent()])
            if killed == "by the caller":
                raise Cancelled
            seen[-1].kill()

    with pytest.raises((Cancelled, JobFailedError)):
        run_job(job(program, "wait"), LocalLauncher(), logger=logging.getLogger("test"), on_poll=poll)
    assert len(seen) == 3
    assert psutil.wait_procs(seen, timeout=5)[1] == []
