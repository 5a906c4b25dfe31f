"""The manifests for Kubernetes: an indexed Job with one pod per node, and the headless Service that names the pods."""

import hashlib
import json
from typing import Any

from tasks.launchers.job import CLUSTER_ENVIRONMENT, SECONDS_TO_SAVE, Job
from vlm_core.home import medpix_home

PORT = 29400  # torchrun's default
# Two annotations of a Job. The digest shows whether an existing Job does the same work as a new one. The other one has
# the number of bytes that were in the log file before the Job.
MANIFEST_DIGEST, LOG_START = "medpix.manifest", "medpix.log-start"
JOB_LABEL = "medpix.job"  # the pods' label with the name of their Job

# The first node's log is the job's log: it goes to the shared volume, where the flow reads it.
RUN = 'log=$1; shift; if [ "$JOB_COMPLETION_INDEX" = 0 ]; then exec >>"$log" 2>&1; fi; exec "$@"'


def job_name(job: Job) -> str:
    """Returns the Job's name, such as `medpix-finetune-0a1b2c3d4e`; submitting `job` again gives the same name."""
    digest = hashlib.sha256(str(job.log_file).encode()).hexdigest()
    return f"medpix-{job.log_file.stem}-{digest[:10]}"


def job_manifest(job: Job, log_start: int) -> dict[str, Any]:
    """Returns the manifest (batch/v1) of `job`, whose log file already has `log_start` bytes.

    Kubernetes replaces a pod that was lost with its node or preempted, and does not count that as a failure. torchrun
    then restarts its processes from the last checkpoint.
    """
    name, compute = job_name(job), job.compute
    labels = {"app.kubernetes.io/name": "medpix-finetune", JOB_LABEL: name}
    manifest: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels, "annotations": {"medpix.run": str(job.log_file.parent)}},
        "spec": {
            "completionMode": "Indexed",
            "completions": compute.nodes,
            "parallelism": compute.nodes,
            "backoffLimit": compute.nodes * compute.cluster.max_restarts,
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(job, name)},
        },
    }
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    manifest["metadata"]["annotations"] |= {MANIFEST_DIGEST: digest, LOG_START: str(log_start)}
    return manifest


def service_manifest(job: Job, job_uid: str) -> dict[str, Any]:
    """Returns the Service through which the pods find the first one; it is deleted with the Job that has `job_uid`."""
    name = job_name(job)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job_uid, "blockOwnerDeletion": True}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # pods look for each other before they are ready
            "selector": {JOB_LABEL: name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _pod(job: Job, name: str) -> dict[str, Any]:
    kubernetes, home = job.compute.kubernetes, str(medpix_home())
    container = {
        "name": "torchrun",
        "image": kubernetes.image,
        "command": ["sh", "-c", RUN, "sh", str(job.log_file), *_torchrun(job, name)],
        "env": _environment(job),
        "resources": _resources(job),
        "volumeMounts": [{"name": "home", "mountPath": home}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    if kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": kubernetes.secret}}]
    return {
        "restartPolicy": "Never",
        "subdomain": name,
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE + 30,
        "containers": [container],
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": kubernetes.volume_claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},  # for the data loader's workers; the default is 64 MB
        ],
    }


def _torchrun(job: Job, name: str) -> list[str]:
    compute = job.compute
    return [
        "python", "-m", "torch.distributed.run", f"--nnodes={compute.nodes}",
        f"--nproc-per-node={compute.nproc_per_node}", f"--max-restarts={compute.cluster.max_restarts}",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={name}-0.{name}:{PORT}", f"--rdzv-id={name}",
        "--local-addr=$(POD_ADDRESS)", "-m", job.module, *(argument.replace("$(", "$$(") for argument in job.arguments),
    ]  # fmt: skip


def _environment(job: Job) -> list[dict[str, Any]]:
    variables = job.environment() | CLUSTER_ENVIRONMENT | {"MEDPIX_HOME": str(medpix_home())}
    address = {"name": "POD_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    return [*({"name": name, "value": value} for name, value in sorted(variables.items())), address]


def _resources(job: Job) -> dict[str, Any]:
    """Returns the resources of a pod. Limits equal requests: a GPU cannot be shared, and memory stays as requested."""
    cluster = job.compute.cluster
    memory = cluster.memory_per_node
    if memory is not None:  # Slurm's units are powers of 1024; a number without a unit means megabytes
        memory = f"{memory}i" if memory[-1].isalpha() else f"{memory}Mi"
    wanted = {"nvidia.com/gpu": cluster.gpus_per_node, "cpu": cluster.cpus_per_node, "memory": memory}
    resources = {name: str(value) for name, value in wanted.items() if value is not None}
    return {"requests": resources, "limits": resources}
