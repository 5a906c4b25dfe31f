"""The script that Slurm gets: readable, and the same for the same job, so that a job that is at work is known by it."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from tasks.launchers import node_agent
from tasks.launchers.job import CLUSTER_ENVIRONMENT, SECONDS_TO_SAVE, Job
from vlm_core.home import medpix_home

SECONDS_BEHIND_THE_FIRST = 60  # for the other nodes, once one has ended
SECONDS_TO_BEGIN = 300  # on the nodes that the job has: else srun asks for ever for one that Slurm has lost meanwhile
MOST_STARTS = 10  # of a job that cannot begin on its nodes
EXIT_UNWRITABLE = 73  # EX_CANTCREAT of sysexits.h

SCRIPT = """\
#!/bin/bash
{header}

{environment}
rm -f {exit_file}
starts=$((${{SLURM_RESTART_COUNT:-0}} + 1))
echo "Slurm job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $starts"
rendezvous="$(hostname):$((15000 + SLURM_JOB_ID % 15000))"
# Queues the job again; it goes on from its last checkpoint.
requeue() {{
    echo "Slurm job $SLURM_JOB_ID $1, and is queued again"
    scontrol requeue "$SLURM_JOB_ID" && exit
}}
srun --immediate={begin} sh -c 'test -w "$0" || {{
    echo "error: $0 cannot be written to on node $SLURMD_NODENAME: set MEDPIX_HOME (or checkpoint.checkpoint_dir)" \\
        "to a directory that all nodes share"
    exit {unwritable}
}}' {directory}
code=$?
# A job that starts again in the moment in which its node comes back may be without it.
if [ $code -ne 0 ]; then
    [ $code -ne {unwritable} ] && [ $starts -gt 1 ] && [ $starts -lt {most} ] && requeue "could not begin on its nodes"
    exit $code
fi
srun --immediate={begin} --wait={wait}{srun_arguments} {inside}{python} {agent} \\
    {python} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes} --max-restarts={max_restarts} \\
    --rdzv-backend=c10d --rdzv-endpoint="$rendezvous" --rdzv-id={name}-"$SLURM_JOB_ID-$starts" \\
    -m {module} {arguments}
code=$?
# Told to end, and not cancelled: out of its time, or another job goes first.
if [ $code -eq {told} ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    requeue "was told to end"
fi
echo $code > {exit_file}
exit $code
"""


def slurm_script(job: Job, exit_file: Path) -> str:
    """Returns the script of `job`, which leaves its exit code in `exit_file`.

    Raises ValueError for a directory whose name has characters that no line of a script can.
    """
    directory, cluster = job.log_file.parent, job.compute.cluster
    if not str(directory).isprintable():
        raise ValueError(f"{str(directory)!r} has control characters: give checkpoint.checkpoint_dir another name")
    cpus = cluster.cpus_per_node  # which srun does not take from its job
    return SCRIPT.format(
        header="\n".join(f"#SBATCH {option}" for option in _options(job)),
        environment="\n".join(_environment(job)),
        exit_file=shlex.quote(str(exit_file)),
        begin=SECONDS_TO_BEGIN,
        unwritable=EXIT_UNWRITABLE,
        most=MOST_STARTS,
        wait=SECONDS_BEHIND_THE_FIRST,
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
        told=node_agent.EXIT_TOLD,
    )


def job_name(job: Job) -> str:
    """Returns what Slurm shows of `job`: run and step."""
    return f"{job.log_file.parent.name}-{job.log_file.stem}"


def _options(job: Job) -> Iterator[str]:
    cluster = job.compute.cluster
    yield f"--job-name={shlex.quote(job_name(job))}"
    yield f"--output={shlex.quote(str(job.log_file).replace('%', '%%'))}"
    yield "--open-mode=append"
    yield f"--nodes={job.compute.nodes}"
    yield "--ntasks-per-node=1"
    yield "--requeue"
    yield f"--signal=TERM@{SECONDS_TO_SAVE}"  # before the time limit; of a preemption, the cluster's GraceTime decides
    asked = {
        "gpus-per-node": cluster.gpus_per_node,
        "cpus-per-task": cluster.cpus_per_node,
        "mem": cluster.memory_per_node,
        "time": cluster.time_limit,
        "partition": cluster.partition,
        "account": cluster.account,
    }
    yield from (f"--{name}={value}" for name, value in asked.items() if value is not None)
    yield from map(shlex.quote, cluster.extra_arguments)


def _environment(job: Job) -> Iterator[str]:
    variables = job.environment() | CLUSTER_ENVIRONMENT | {"MEDPIX_HOME": str(medpix_home())}
    yield from (f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))
    yield from (f"module load {shlex.quote(module)}" for module in job.compute.cluster.modules)
