"""Runs a Slurm cluster of two nodes on this machine: a controller, one slurmd per node, a munged, in one directory."""

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


def missing_requirements(programs: Sequence[str] = PROGRAMS, packages: str = "slurm-wlm munge") -> str | None:
    """Returns the reason why no cluster can run here, or None if it can."""
    missing = [name for name in programs if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install {packages}"
    return None if os.geteuid() == 0 else "Slurm's daemons need root here"


def _search_path() -> str:
    return os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))


class Cluster:
    """The daemons. No node sees the directory `hidden`, and only n1 sees `on_n1_alone`."""

    def __init__(self, home: Path) -> None:
        self.home, self.processes = home, dict[str, "subprocess.Popen[bytes]"]()
        self.rescheduled: dict[str, float] = {}  # job -> the time at which its start was moved forward
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
        """Starts all daemons, and waits until both nodes are idle."""
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        self._start(
            "munged", "munged", "--foreground", "--force", *(f"--{k}={self.home / v}" for k, v in files.items())
        )
        wait_until((self.home / "munge.sock").exists, "munged", 30)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.output_of("sinfo", "--noheader", "--format=%T").split() == ["idle"], "both nodes", 60)

    def start_controller(self) -> None:
        """Starts slurmctld, which has the queue."""
        self._start("slurmctld", "slurmctld", "-D")

    def start_node(self, node: str) -> None:
        """Starts a node with its own view of the file system."""
        places = [self.hidden] if node == "n1" else [self.hidden, self.on_n1_alone]
        hide = "".join(f"mount -t tmpfs none '{place}' && " for place in places)
        self._start(node, "unshare", "--mount", "sh", "-c", f"{hide}exec slurmd -D -N {node}")

    def kill_node(self, node: str) -> None:
        """Kills a node as a power cut does: slurmd and all processes on the node."""
        slurmd = self.processes.pop(node)
        slurmd.kill()
        slurmd.wait()
        steps = [process for process in self.processes_of_jobs() if process.environ().get("SLURMD_NODENAME") == node]
        parents = {parent for process in steps for parent in process.parents() if "slurmstepd" in parent.name()}
        for process in (*parents, *steps):
            process.kill()

    def start_requeued_jobs(self) -> None:
        """Lets requeued jobs start in a few seconds, since Slurm delays them by two minutes.

        They must not start at once: a node may take the new start for the job that has just ended, and refuse it.
        """
        for line in self.output_of("squeue", "--noheader", "--states=PENDING", "--format=%A %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime" and time.monotonic() > self.rescheduled.get(job, 0.0) + 30:
                self.rescheduled[job] = time.monotonic()
                self.output_of("scontrol", "update", f"JobId={job}", "StartTime=now+4")

    def processes_of_jobs(self) -> list[psutil.Process]:
        """Returns the processes of this cluster's jobs."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("SLURM_CONF") == str(self.configuration) and "SLURM_JOB_ID" in environment:
                found.append(process)
        return found

    def output_of(self, *command: str) -> str:
        """Returns the output of one of Slurm's commands; empty if it fails."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands find this cluster."""
        return os.environ | {"SLURM_CONF": str(self.configuration), "PATH": _search_path()}

    def stop(self) -> None:
        """Ends all jobs and all daemons."""
        self.output_of("scancel", "--user=root")
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
    """A running cluster; Slurm's commands in this process use it."""
    reason = missing_requirements()
    if reason:
        pytest.skip(reason)
    with running(Cluster(tmp_path_factory.mktemp("slurm"))) as found:
        yield found


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """Runs a cluster during the block; Slurm's commands in this process use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.configuration))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
