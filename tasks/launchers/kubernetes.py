"""Jobs on a Kubernetes cluster: an indexed Job, followed through its log on the volume that flow and pods share.

A job does not end with the flow that submitted it: a flow that was killed finds it again, and follows on.
UNTESTED on a real cluster: it was written against the published schemas and the official client.
"""

import os
import time
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tasks.launchers.follow import Logger
from tasks.launchers.job import SECONDS_TO_SAVE, Job
from tasks.launchers.kubernetes_manifest import (
    JOB_LABEL,
    LOG_START,
    MANIFEST_DIGEST,
    job_manifest,
    job_name,
    service_manifest,
)
from vlm_core.config import ComputeConfig

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two questions to the API
SECONDS_TO_ANSWER = 30.0
NOT_FOUND = 404


class KubernetesJob:
    """A Job of a cluster."""

    log_start: int

    def __init__(self, job: Job, log_start: int, logger: Logger) -> None:
        self.name, self.namespace = job_name(job), job.compute.kubernetes.namespace
        self.log_start, self.logger = log_start, logger
        self.said, self.pause, self.next_question = "", SHORTEST_PAUSE, 0.0

    @property
    def remark(self) -> str:
        """What Kubernetes said of the Job and its pods last."""
        return f"Kubernetes Job {self.name}: {self.said}"

    def result(self) -> int | None:
        """Returns 0 or 1 for a Job that is Complete or Failed, None until then."""
        if time.monotonic() < self.next_question:
            return None
        try:
            found = find_job(self.name, self.namespace)
            said = "was deleted" if found is None else _condition(found) or _pods(self.name, self.namespace)
        except (ApiException, HTTPError) as error:  # It goes on by itself, and is asked again.
            found, said = ..., f"the API does not answer: {_reason(error)}"
        if said != self.said:
            self.logger.info("Kubernetes Job %s: %s", self.name, said)
            self.said, self.pause = said, SHORTEST_PAUSE
        self.next_question = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
        if found is None:
            return 1
        return {"Complete": 0, "Failed": 1}.get(said.partition(":")[0])

    def cancel(self) -> None:
        """Deletes the Job with its pods and its Service, and waits until they are gone."""
        with_its_pods = client.V1DeleteOptions(propagation_policy="Foreground")
        try:
            client.BatchV1Api().delete_namespaced_job(
                self.name, self.namespace, body=with_its_pods, _request_timeout=SECONDS_TO_ANSWER
            )
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
        deadline = time.monotonic() + SECONDS_TO_SAVE + 60
        while find_job(self.name, self.namespace) is not None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Kubernetes Job {self.name} does not end: kubectl -n {self.namespace} get pods")
            time.sleep(SHORTEST_PAUSE)


class KubernetesLauncher:
    """Runs jobs on the cluster of the current context, or of the pod that the flow runs in."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        _load_config()

    def submit(self, job: Job) -> KubernetesJob:
        """Returns the job that a flow which was killed left at work on the same, or else a new one."""
        log_start, namespace = job.log_file.stat().st_size, job.compute.kubernetes.namespace
        manifest: Any = job_manifest(job, log_start)
        left = find_job(job_name(job), namespace)
        if left is not None:
            known, wanted = left.metadata.annotations, manifest["metadata"]["annotations"]
            found = KubernetesJob(job, int(known[LOG_START]), self.logger)
            if known[MANIFEST_DIGEST] == wanted[MANIFEST_DIGEST] and not (_condition(left) or "").startswith("Failed"):
                self.logger.info("goes on with Kubernetes Job %s, which was submitted before", found.name)
                return found
            found.cancel()
        job.progress_file.unlink(missing_ok=True)
        submitted = KubernetesJob(job, log_start, self.logger)
        try:
            created: Any = client.BatchV1Api().create_namespaced_job(namespace, manifest)
        except ApiException as error:
            raise ValueError(f"Kubernetes refuses the Job {submitted.name}: {_reason(error)}") from error
        try:
            service: Any = service_manifest(job, created.metadata.uid)
            client.CoreV1Api().create_namespaced_service(namespace, service)
        except BaseException:
            submitted.cancel()
            raise
        self.logger.info("submitted Kubernetes Job %s", submitted.name)
        return submitted


def require_kubernetes(compute: ComputeConfig) -> None:
    """Raises ValueError where no cluster can be reached from here."""
    try:
        _load_config()
        client.VersionApi().get_code(_request_timeout=SECONDS_TO_ANSWER)
    except (config.ConfigException, ApiException, HTTPError) as error:
        raise ValueError(
            f"compute.launcher=kubernetes, and no cluster answers: {_reason(error)}; see `kubectl version`, or set "
            "compute.launcher=local"
        ) from error


def _load_config() -> None:
    """Takes the cluster of $KUBECONFIG, of ~/.kube/config, or the one that this process is a pod of."""
    if "KUBECONFIG" in os.environ:
        config.load_kube_config(os.environ["KUBECONFIG"])
    else:
        config.load_config()


def find_job(name: str, namespace: str) -> Any:
    """Returns the Job of that name, None where there is none."""
    try:
        return client.BatchV1Api().read_namespaced_job(name, namespace, _request_timeout=SECONDS_TO_ANSWER)
    except ApiException as error:
        if error.status == NOT_FOUND:
            return None
        raise


def _condition(job: Any) -> str | None:
    """Returns `Complete`, or `Failed` and why; None for a Job that is at work."""
    for condition in job.status.conditions or []:
        if condition.type in ("Complete", "Failed") and condition.status == "True":
            reason = ": ".join(filter(None, (condition.reason, condition.message)))
            return f"{condition.type}: {reason}" if reason else condition.type
    return None


def _pods(name: str, namespace: str) -> str:
    """Returns what the pods are at: `1 Running, 1 Pending (ErrImagePull)`."""
    pods: Any = client.CoreV1Api().list_namespaced_pod(
        namespace, label_selector=f"{JOB_LABEL}={name}", _request_timeout=SECONDS_TO_ANSWER
    )
    found: dict[str, int] = {}
    for pod in pods.items:
        waits = [status.state.waiting.reason for status in pod.status.container_statuses or [] if status.state.waiting]
        waits += [c.reason for c in pod.status.conditions or [] if c.type == "PodScheduled" and c.status == "False"]
        text = pod.status.phase + (f" ({', '.join(waits)})" if waits else "")
        found[text] = found.get(text, 0) + 1
    return ", ".join(f"{number} {text}" for text, number in sorted(found.items())) or "no pods yet"


def _reason(error: Exception) -> str:
    return str(error.reason) if isinstance(error, ApiException) else str(error)
