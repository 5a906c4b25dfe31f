"""Runs jobs on a Kubernetes cluster as indexed Jobs; the flow reads their log from a volume shared with the pods.

A Job outlives the flow that submitted it. If the flow was killed, its next attempt finds the Job and follows it again.
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

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two polls of the API
SECONDS_TO_ANSWER = 30.0
NOT_FOUND = 404


class KubernetesJob:
    """A Job of a cluster."""

    log_start: int

    def __init__(self, job: Job, log_start: int, logger: Logger) -> None:
        self.name, self.namespace = job_name(job), job.compute.kubernetes.namespace
        self.log_start, self.logger = log_start, logger
        self.state, self.pause, self.next_poll = "", SHORTEST_PAUSE, 0.0

    @property
    def failure_detail(self) -> str:
        """The last known state of the Job and its pods."""
        return f"Kubernetes Job {self.name}: {self.state}"

    def result(self) -> int | None:
        """Returns 0 for a Job that is Complete, 1 for one that is Failed or was deleted, None before that."""
        if time.monotonic() < self.next_poll:
            return None
        try:
            state, exit_code = self._poll()
        except (ApiException, HTTPError) as error:  # The Job keeps running; the next poll asks again.
            state, exit_code = f"the API does not answer: {_reason(error)}", None
        if state != self.state:
            self.logger.info("Kubernetes Job %s: %s", self.name, state)
            self.state, self.pause = state, SHORTEST_PAUSE
        self.next_poll = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
        return exit_code

    def _poll(self) -> tuple[str, int | None]:
        """Returns the state of the Job in words, and its exit code or None while it runs."""
        found = find_job(self.name, self.namespace)
        if found is None:
            return "was deleted", 1
        condition = _condition(found)
        if condition is None:
            return _pods(self.name, self.namespace), None
        return condition, 1 if _failed(condition) else 0

    def cancel(self) -> None:
        """Deletes the Job with its pods and its Service, and waits until they are gone."""
        foreground = client.V1DeleteOptions(propagation_policy="Foreground")
        try:
            client.BatchV1Api().delete_namespaced_job(
                self.name, self.namespace, body=foreground, _request_timeout=SECONDS_TO_ANSWER
            )
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
        deadline = time.monotonic() + SECONDS_TO_SAVE + 60
        while find_job(self.name, self.namespace) is not None:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"Kubernetes Job {self.name} has not ended: see `kubectl -n {self.namespace} get pods`"
                )
            time.sleep(SHORTEST_PAUSE)


class KubernetesLauncher:
    """Runs jobs on the cluster of the current context, or on the cluster whose pod runs the flow."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        _load_config()

    def submit(self, job: Job) -> KubernetesJob:
        """Returns the running Job that a killed flow submitted for the same work, or submits a new one."""
        log_start, namespace = job.log_file.stat().st_size, job.compute.kubernetes.namespace
        manifest: Any = job_manifest(job, log_start)
        left = find_job(job_name(job), namespace)
        if left is not None:
            known, wanted = left.metadata.annotations, manifest["metadata"]["annotations"]
            found = KubernetesJob(job, int(known[LOG_START]), self.logger)
            if known[MANIFEST_DIGEST] == wanted[MANIFEST_DIGEST] and not _failed(_condition(left)):
                self.logger.info("follows Kubernetes Job %s, which was submitted earlier", found.name)
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
    """Raises ValueError if no cluster can be reached from this machine."""
    try:
        _load_config()
        client.VersionApi().get_code(_request_timeout=SECONDS_TO_ANSWER)
    except (config.ConfigException, ApiException, HTTPError) as error:
        raise ValueError(
            f"compute.launcher=kubernetes, but no cluster answers: {_reason(error)}; check `kubectl version`, or set "
            "compute.launcher=local"
        ) from error


def _load_config() -> None:
    """Selects the cluster: that of $KUBECONFIG, of ~/.kube/config, or the one in which this process is a pod."""
    if "KUBECONFIG" in os.environ:
        config.load_kube_config(os.environ["KUBECONFIG"])
    else:
        config.load_config()


def find_job(name: str, namespace: str) -> Any:
    """Returns the Job of that name, or None."""
    try:
        return client.BatchV1Api().read_namespaced_job(name, namespace, _request_timeout=SECONDS_TO_ANSWER)
    except ApiException as error:
        if error.status == NOT_FOUND:
            return None
        raise


def _condition(job: Any) -> str | None:
    """Returns `Complete`, or `Failed` with the reason; None for a Job that still runs."""
    for condition in job.status.conditions or []:
        if condition.type in ("Complete", "Failed") and condition.status == "True":
            reason = ": ".join(filter(None, (condition.reason, condition.message)))
            return f"{condition.type}: {reason}" if reason else condition.type
    return None


def _failed(condition: str | None) -> bool:
    return condition is not None and condition.startswith("Failed")


def _pods(name: str, namespace: str) -> str:
    """Returns the number of pods in each phase: `1 Running, 1 Pending (ErrImagePull)`."""
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
