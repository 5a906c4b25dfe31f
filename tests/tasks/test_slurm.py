"""Slurm jobs without a cluster: the script, and the errors that need no cluster."""

import logging
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.launchers.choice import require_launchable, warn_of_unused_settings
from tasks.launchers.job import Job
from tasks.launchers.slurm import _seconds
from tasks.launchers.slurm_commands import Status
from tasks.launchers.slurm_script import slurm_script
from tests.conftest import small_config
from vlm_core.config import ClusterConfig, ComputeConfig

CLUSTER = ClusterConfig(
    gpus_per_node=4, cpus_per_node=8, memory_per_node="64G", time_limit="2-00", partition="gpu", account="med",
    modules=["cuda/12.4"], extra_arguments=["--constraint=a100&ib"], max_restarts=2,
)  # fmt: skip
COMPUTE = ComputeConfig(launcher="slurm", nodes=2, nproc_per_node=4, cluster=CLUSTER)


def job(directory: Path) -> Job:
    return Job("vlm_core.finetune", ("--config", "a b; $(c)"), COMPUTE, directory / "finetune.log")


def test_the_script_asks_for_what_the_config_says(tmp_path: Path) -> None:
    directory = tmp_path / "a run of 100%"
    script = slurm_script(job(directory), directory / "finetune.slurm.exit")
    asked = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert asked == {
        "--job-name='a run of 100%-finetune'", f"--output='{tmp_path}/a run of 100%%/finetune.log'",
        "--open-mode=append", "--nodes=2", "--ntasks-per-node=1", "--requeue", "--signal=TERM@120",
        "--gpus-per-node=4", "--cpus-per-task=8", "--mem=64G", "--time=2-00", "--partition=gpu", "--account=med",
        "'--constraint=a100&ib'",
    }  # fmt: skip
    assert "\nmodule load cuda/12.4\n" in script
    assert "srun --immediate=300 --wait=60 --cpus-per-task=8 " in script
    assert "--nnodes=2 --nproc-per-node=4 --max-restarts=2" in script
    assert "-m vlm_core.finetune --config 'a b; $(c)'\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert script == slurm_script(job(directory), directory / "finetune.slurm.exit")


def test_a_container_uses_its_own_python_and_project(tmp_path: Path) -> None:
    """The container's words follow srun's options, so they may include srun options of a plugin."""
    for container in ("apptainer exec --nv 'my image.sif'", "--container-image=lab+medpix:1"):
        compute = COMPUTE.model_copy(update={"cluster": CLUSTER.model_copy(update={"container": container})})
        inside = Job("vlm_core.finetune", (), compute, tmp_path / "finetune.log")
        words = f" {container} python -m tasks.launchers.node_agent \\\n    python -m torch.distributed.run "
        assert words in slurm_script(inside, tmp_path / "exit")
    for bad in ("a\nb", "it's"):
        with pytest.raises(ValidationError):
            ClusterConfig(container=bad)


@pytest.mark.parametrize(
    ("code_of_srun", "restarts", "queued_again"), [(1, 1, True), (1, 0, False), (1, 9, False), (73, 1, False)]
)
def test_a_restart_that_cannot_begin_on_its_nodes_is_queued_again(
    tmp_path: Path, code_of_srun: int, restarts: int, queued_again: bool
) -> None:
    """Not queued again: a first start (a retry would not help), a missing directory, the tenth start."""
    for name, does in {
        "srun": f"exit {code_of_srun}",
        "scontrol": f'echo "$@" > {tmp_path}/requeued',
        "module": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = slurm_script(job(tmp_path / "run"), tmp_path / "exit")
    done = subprocess.run(["bash"], input=script, env=variables, capture_output=True, text=True)
    assert (tmp_path / "requeued").exists() == queued_again
    assert done.returncode == (0 if queued_again else code_of_srun)
    assert ("Slurm job 7 could not begin on its nodes: it is queued again" in done.stdout) == queued_again
    assert not (tmp_path / "exit").exists()


def test_no_value_becomes_a_line_of_the_script(tmp_path: Path) -> None:
    for field in ("partition", "account", "modules", "extra_arguments", "memory_per_node", "time_limit"):
        with pytest.raises(ValidationError, match="should match pattern"):
            ClusterConfig.model_validate({field: "--x\ncurl"})
    with pytest.raises(ValueError, match="has control characters: give checkpoint"):
        slurm_script(job(tmp_path / "a\nb"), tmp_path / "exit")


def test_nodes_take_a_cluster_and_count_as_processes() -> None:
    with pytest.raises(ValueError, match=r"compute\.nodes=2 needs a cluster: set compute\.launcher=slurm"):
        small_config(**{"compute.nodes": 2})
    settings = {"packing.enabled": False, "compute.launcher": "slurm", "compute.nodes": 3, "compute.nproc_per_node": 2}
    with pytest.raises(ValueError, match=r"local_batch_size \* processes = 8 \* 6 = 48"):
        small_config(**settings)


def test_settings_that_the_launcher_does_not_use_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_unused_settings(COMPUTE)
    warn_of_unused_settings(ComputeConfig())
    assert caplog.messages == []
    warn_of_unused_settings(ComputeConfig(cluster=ClusterConfig(partition="gpu", gpus_per_node=2)))
    names = "compute.cluster.gpus_per_node, compute.cluster.partition"
    assert caplog.messages == [f"{names}: no effect with compute.launcher=local"]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_machine_without_slurm_is_reported_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    require_launchable(ComputeConfig())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"this machine has no sbatch: .* or set compute\.launcher=local"):
        require_launchable(COMPUTE)


def test_a_time_limit_that_is_too_short_is_refused() -> None:
    """The formats are those of Slurm's documentation of `--time`."""
    limits = {"4": 240, "03:59": 239, "0:04:00": 240, "1-2": 93600, "1-0:30": 88200, "1-00:00:10": 86410}
    assert {limit: _seconds(limit) for limit in limits} == limits
    for limit in ("3", "03:59", "0-00:02"):
        compute = ComputeConfig(launcher="slurm", cluster=ClusterConfig(time_limit=limit))
        with pytest.raises(ValueError, match=rf"time_limit={limit} is too short: a job .* give it 4 minutes or more"):
            require_launchable(compute)
    for bad in ("-3", "3-", "1:2:3:4", "::"):
        with pytest.raises(ValidationError):
            ClusterConfig(time_limit=bad)


def test_final_states_and_reasons_that_never_end() -> None:
    for state in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "UNKNOWN"):
        assert Status(state).is_over
    for state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUE_HOLD", "UNREACHABLE"):
        assert not Status(state).is_over
    assert Status("PENDING", "PartitionTimeLimit").is_hopeless
    assert Status("PENDING", "QOSMaxNodePerJobLimit").is_hopeless
    assert not Status("PENDING", "Resources").is_hopeless
    assert str(Status("PENDING", "Resources")) == "PENDING (Resources)"
