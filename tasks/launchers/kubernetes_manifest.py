"""What Kubernetes gets: an indexed Job, a pod a node, and the headless Service that gives the pods names."""

import hashlib
import json
from typing import Any

from tasks.launchers.job import CLUSTER_ENVIRONMENT, SECONDS_TO_SAVE, Job
from vlm_core.home import medpix_home

PORT = 29400  # torchrun's own
# Annotations: whether a job that is there is the one that is asked for, and the bytes of its log that are older.
MANIFEST_DIGEST, LOG_START = "medpix.manifest", "medpix.log-start"
JOB_LABEL = "medpix.job"  # of pods

# The first node's log is that of the job: it goes to the shared volume, where the flow reads it.
RUN = 'log=$1; shift; if [ "$JOB_COMPLETION_INDEX" = 0 ]; then exec >>"$log" 2>&1; fi; exec "$@"'


def job_name(job: Job) -> str:
    """Returns the name of `job`, the same whenever it is submitted: `medpix-finetune-0a1b2c3d4e`."""
    digest = hashlib.sha256(str(job.log_file).encode()).hexdigest()
    return f"medpix-{job.log_file.stem}-{digest[:10]}"


def job_manifest(job: Job, log_start: int) -> dict[str, Any]:
    """Returns the Job (batch/v1) of `job`, whose log file has `log_start` bytes before it.

    A pod that is lost with its node, or has to go for another one, is replaced and counts as no failure; torchrun's
    processes then start anew from the last checkpoint.
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
    """Returns the Service by which the pods find the first one; it goes with the Job whose uid is given."""
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
            {"name": "memory", "emptyDir": {"medium": "Memory"}},  # loaders hand batches over in it; 64 MB without
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
    """Returns what each pod asks for, as its limit too: a GPU is never shared, and memory is no more than asked for."""
    cluster = job.compute.cluster
    memory = cluster.memory_per_node
    if memory is not None:  # in Slurm's units, of 1024 each: megabytes where none is given
        memory = f"{memory}i" if memory[-1].isalpha() else f"{memory}Mi"
    asked = {"nvidia.com/gpu": cluster.gpus_per_node, "cpu": cluster.cpus_per_node, "memory": memory}
    given = {name: str(value) for name, value in asked.items() if value is not None}
    return {"requests": given, "limits": given}
