"""A Slurm cluster of two nodes on this machine: its controller, a slurmd a node, and a munged, all in one directory."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tasks.launchers.parent_guard import end_with_parent
from tests.e2e.services import free_port, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("n1", "n2")

CONFIGURATION = """
ClusterName=test
# Two clusters on one machine: the port of a rendezvous follows from the job.
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.sock
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldPort={port}
SlurmdTimeout=8
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=1 RealMemory=1000
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 PriorityTier=2
PartitionName=short Nodes=n1 MaxTime=5
"""


def why_not(programs: Sequence[str] = PROGRAMS, packages: str = "slurm-wlm munge") -> str | None:
    """Returns why there can be no cluster here; None where there can."""
    missing = [name for name in programs if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install {packages}"
    return None if os.geteuid() == 0 else "Slurm's daemons take root here"


def _search_path() -> str:
    return os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))


class Cluster:
    """The daemons. What lies in `hidden` no node sees, what lies in `on_n1_alone` only n1."""

    def __init__(self, home: Path) -> None:
        self.home, self.processes = home, dict[str, "subprocess.Popen[bytes]"]()
        self.hastened: dict[str, float] = {}  # when which job was told to start soon
        self.hidden, self.on_n1_alone = home / "hidden", home / "on-n1-alone"
        for directory in (home / "state", self.hidden, self.on_n1_alone, *(home / node for node in NODES)):
            directory.mkdir()
        ports = {name: free_port() for name in ("port", *NODES)}
        host = os.uname().nodename.partition(".")[0]
        self.configuration = home / "slurm.conf"
        self.configuration.write_text(CONFIGURATION.format(home=home, host=host, first_job=free_port(), **ports))
        key = home / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def start(self) -> None:
        """Starts everything, and waits until both nodes are there."""
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        self._start(
            "munged", "munged", "--foreground", "--force", *(f"--{k}={self.home / v}" for k, v in files.items())
        )
        wait_until((self.home / "munge.sock").exists, "munged", 30)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.asked("sinfo", "--noheader", "--format=%T").split() == ["idle"], "both nodes", 60)

    def start_controller(self) -> None:
        """Starts the daemon that knows the queue."""
        self._start("slurmctld", "slurmctld", "-D")

    def start_node(self, node: str) -> None:
        """Starts a node in a view of its own on the filesystem."""
        places = [self.hidden] if node == "n1" else [self.hidden, self.on_n1_alone]
        hide = "".join(f"mount -t tmpfs none '{place}' && " for place in places)
        self._start(node, "unshare", "--mount", "sh", "-c", f"{hide}exec slurmd -D -N {node}")

    def kill_node(self, node: str) -> None:
        """Ends a node as a power cut does: slurmd and all that runs on it."""
        slurmd = self.processes.pop(node)
        slurmd.kill()
        slurmd.wait()
        steps = [process for process in self.processes_of_jobs() if process.environ().get("SLURMD_NODENAME") == node]
        parents = {parent for process in steps for parent in process.parents() if "slurmstepd" in parent.name()}
        for process in (*parents, *steps):
            process.kill()

    def start_what_waits(self) -> None:
        """Has jobs that were queued again start in a few seconds: Slurm has them wait for two minutes.

        In the second of its end a node takes a job for the one that was ended, and does not start it.
        """
        for line in self.asked("squeue", "--noheader", "--states=PENDING", "--format=%A %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime" and time.monotonic() > self.hastened.get(job, 0.0) + 30:
                self.hastened[job] = time.monotonic()
                self.asked("scontrol", "update", f"JobId={job}", "StartTime=now+4")

    def processes_of_jobs(self) -> list[psutil.Process]:
        """Returns what jobs of this cluster run."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("SLURM_CONF") == str(self.configuration) and "SLURM_JOB_ID" in environment:
                found.append(process)
        return found

    def asked(self, *command: str) -> str:
        """Returns what one of Slurm's commands says; nothing where it fails."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands find this cluster."""
        return os.environ | {"SLURM_CONF": str(self.configuration), "PATH": _search_path()}

    def stop(self) -> None:
        """Ends all jobs and all daemons."""
        self.asked("scancel", "--user=root")
        for process in self.processes_of_jobs():
            process.kill()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(30)

    def _start(self, name: str, *command: str) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, preexec_fn=end_with_parent
            )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """A cluster; its commands are those of this process for as long as it is there."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with running(Cluster(tmp_path_factory.mktemp("slurm"))) as found:
        yield found


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """Starts a cluster, whose commands are then those of this process, and ends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.configuration))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
