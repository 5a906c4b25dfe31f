"""Writes the batch script for Slurm. The same job gives the same script, which identifies a job that still runs."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from tasks.launchers import node_agent
from tasks.launchers.job import CLUSTER_ENVIRONMENT, SECONDS_TO_SAVE, Job
from vlm_core.home import medpix_home

SECONDS_AFTER_THE_FIRST = 60  # Once one node has ended, the others have this long to end.
SECONDS_TO_BEGIN = 300  # Without this limit, srun waits forever for a node that Slurm has lost in the meantime.
MAX_STARTS = 10  # How often a job that cannot begin on its nodes is queued again.
EXIT_UNWRITABLE = 73  # EX_CANTCREAT of sysexits.h

SCRIPT = """\
#!/bin/bash
{header}

{environment}
rm -f {exit_file}
starts=$((${{SLURM_RESTART_COUNT:-0}} + 1))
echo "Slurm job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $starts"
rendezvous="$(hostname):$((15000 + SLURM_JOB_ID % 15000))"
# Queues the job again; it then resumes from its last checkpoint.
requeue() {{
    echo "Slurm job $SLURM_JOB_ID $1: it is queued again"
    scontrol requeue "$SLURM_JOB_ID" && exit
}}
srun --immediate={begin} sh -c 'test -w "$0" || {{
    echo "error: node $SLURMD_NODENAME cannot write to $0: set MEDPIX_HOME (or checkpoint.checkpoint_dir)" \\
        "to a directory that all nodes share"
    exit {unwritable}
}}' {directory}
code=$?
# A requeued job may start before its node is fully back, and then cannot use it.
if [ $code -ne 0 ]; then
    [ $code -ne {unwritable} ] && [ $starts -gt 1 ] && [ $starts -lt {most} ] && requeue "could not begin on its nodes"
    exit $code
fi
srun --immediate={begin} --wait={wait}{srun_arguments} {inside}{python} {agent} \\
    {python} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes} --max-restarts={max_restarts} \\
    --rdzv-backend=c10d --rdzv-endpoint="$rendezvous" --rdzv-id={name}-"$SLURM_JOB_ID-$starts" \\
    -m {module} {arguments}
code=$?
# The job got SIGTERM but was not cancelled: its time is over, or another job preempts it.
if [ $code -eq {preempted} ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    requeue "was stopped by the cluster"
fi
echo $code > {exit_file}
exit $code
"""


def slurm_script(job: Job, exit_file: Path) -> str:
    """Returns the batch script of `job`; the script writes its exit code to `exit_file`.

    Raises ValueError if the directory's name has control characters, which a line of the script cannot have.
    """
    directory, cluster = job.log_file.parent, job.compute.cluster
    if not str(directory).isprintable():
        raise ValueError(f"{str(directory)!r} has control characters: give checkpoint.checkpoint_dir another name")
    cpus = cluster.cpus_per_node  # srun does not inherit it from the job
    return SCRIPT.format(
        header="\n".join(f"#SBATCH {option}" for option in _options(job)),
        environment="\n".join(_environment(job)),
        exit_file=shlex.quote(str(exit_file)),
        begin=SECONDS_TO_BEGIN,
        unwritable=EXIT_UNWRITABLE,
        most=MAX_STARTS,
        wait=SECONDS_AFTER_THE_FIRST,
        srun_arguments=f" --cpus-per-task={cpus}" if cpus else "",
        inside="".join(f"{shlex.quote(word)} " for word in shlex.split(cluster.container or "")),
        python="python" if cluster.container else shlex.quote(sys.executable),
        agent=f"-m {node_agent.__name__}" if cluster.container else shlex.quote(node_agent.__file__),
        directory=shlex.quote(str(directory)),
        nodes=job.compute.nodes,
        processes=job.compute.nproc_per_node,
        max_restarts=cluster.max_restarts,
        name=shlex.quote(job_name(job)),
        module=job.module,
        arguments=shlex.join(job.arguments),
        preempted=node_agent.EXIT_PREEMPTED,
    )


def job_name(job: Job) -> str:
    """Returns the job's name in Slurm: run and step."""
    return f"{job.log_file.parent.name}-{job.log_file.stem}"


def _options(job: Job) -> Iterator[str]:
    cluster = job.compute.cluster
    yield f"--job-name={shlex.quote(job_name(job))}"
    yield f"--output={shlex.quote(str(job.log_file).replace('%', '%%'))}"
    yield "--open-mode=append"
    yield f"--nodes={job.compute.nodes}"
    yield "--ntasks-per-node=1"
    yield "--requeue"
    yield f"--signal=TERM@{SECONDS_TO_SAVE}"  # before the time limit; a preemption uses the cluster's GraceTime
    options = {
        "gpus-per-node": cluster.gpus_per_node,
        "cpus-per-task": cluster.cpus_per_node,
        "mem": cluster.memory_per_node,
        "time": cluster.time_limit,
        "partition": cluster.partition,
        "account": cluster.account,
    }
    yield from (f"--{name}={value}" for name, value in options.items() if value is not None)
    yield from map(shlex.quote, cluster.extra_arguments)


def _environment(job: Job) -> Iterator[str]:
    variables = job.environment() | CLUSTER_ENVIRONMENT | {"MEDPIX_HOME": str(medpix_home())}
    yield from (f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))
    yield from (f"module load {shlex.quote(module)}" for module in job.compute.cluster.modules)
