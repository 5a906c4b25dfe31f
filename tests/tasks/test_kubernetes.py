"""Jobs on Kubernetes: manifests that fit the published schemas, and the official client against a stub of the API."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tasks.launchers.choice import launcher_of, require_launchable, warn_of_unused_settings
from tasks.launchers.follow import run_job
from tasks.launchers.job import Job, JobFailedError
from tasks.launchers.kubernetes_manifest import job_manifest, job_name, service_manifest
from tests.e2e.services import wait_until
from tests.kubernetes_api import JOBS, SERVICES, Api, kubernetes_api
from vlm_core.config import ComputeConfig
from vlm_core.files import read_json
from vlm_core.progress import PROGRESS_FILE

SNAPSHOT = Path(__file__).with_name("kubernetes_job.yaml")
POD = {"image": "lab/medpix:1", "volume_claim": "medpix", "namespace": "lab"}
LOG = logging.getLogger("test")
PROGRAM = """
import json, os, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
print("rank", dist.get_rank(), "of", dist.get_world_size(), "arguments", sys.argv[1:], flush=True)
if dist.get_rank() == 0 and sys.argv[1] == "ok":
    open(os.environ["MEDPIX_PROGRESS_FILE"], "w").write(json.dumps({"home": os.environ["MEDPIX_HOME"]}))
dist.barrier()
if sys.argv[1] == "fail":
    raise SystemExit(3)
if sys.argv[1] == "wait":
    time.sleep(600)
dist.destroy_process_group()
"""


def compute(**others: object) -> ComputeConfig:
    return ComputeConfig.model_validate({"launcher": "kubernetes", "nodes": 2, "kubernetes": POD} | others)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    (tmp_path / "job_under_test.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    with kubernetes_api(tmp_path / "kubeconfig") as served:
        yield served


def job(directory: Path, *arguments: str) -> Job:
    return Job("job_under_test", arguments, compute(), directory / "finetune.log")


def test_manifests_are_as_reviewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", "/medpix")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cluster = {"gpus_per_node": 4, "cpus_per_node": 16, "memory_per_node": "64G", "max_restarts": 2}
    wanted = compute(nproc_per_node=4, cluster=cluster, kubernetes=POD | {"secret": "hub"})
    arguments = ("--config", "/medpix/runs/a/config.yaml")
    submitted = Job("vlm_core.finetune", arguments, wanted, Path("/medpix/runs/a/finetune.log"))
    manifests = [job_manifest(submitted, 7), service_manifest(submitted, "0a1b")]
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    # Through JSON, since YAML would write repeated objects as aliases.
    written = yaml.safe_dump_all(json.loads(json.dumps(manifests)), sort_keys=False, width=120)
    assert written == SNAPSHOT.read_text()
    assert PROGRESS_FILE == "MEDPIX_PROGRESS_FILE"  # PROGRAM has the same name


def test_memory_is_given_in_slurms_units(tmp_path: Path) -> None:
    for given, asked in (("64G", "64Gi"), ("500", "500Mi")):
        wanted = Job("m", (), compute(cluster={"memory_per_node": given}), tmp_path / "a.log")
        (container,) = job_manifest(wanted, 0)["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"memory": asked}


@pytest.mark.slow
def test_a_job_runs_on_its_pods_and_leaves_nothing(api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_launchable(compute())
    submitted = job(tmp_path, "ok", "a b; $(c)")
    with caplog.at_level(logging.INFO):
        run_job(submitted, launcher_of(submitted.compute, LOG), logger=LOG)
    assert "rank 0 of 2 arguments ['ok', 'a b; $(c)']" in caplog.messages
    assert f"Kubernetes Job {job_name(submitted)}: Complete" in caplog.messages
    assert read_json(submitted.progress_file)["home"]
    assert api.objects == {}
    assert f"POST {SERVICES}" in api.requests


@pytest.mark.slow
def test_a_failed_job_is_reported(api: Api, tmp_path: Path) -> None:
    submitted = job(tmp_path, "fail")
    with pytest.raises(
        JobFailedError, match=r"code 1 \(Kubernetes Job .*: Failed: BackoffLimitExceeded\)(.|\n)*exitcode  : 3"
    ):
        run_job(submitted, launcher_of(submitted.compute, LOG), logger=LOG)
    assert api.objects == {}


class CancelledError(Exception):
    """The exception that ends a flow here."""


@pytest.mark.slow
def test_a_restarted_flow_follows_the_same_job_and_can_cancel_it(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    submitted = job(tmp_path, "wait")
    submitted.log_file.touch()
    launcher_of(submitted.compute, LOG).submit(submitted)  # submitted by a flow that was killed
    wait_until(lambda: "rank 0" in submitted.log_file.read_text(), "the job is running")

    def poll() -> None:
        answers = [message for message in caplog.messages if message.startswith("Kubernetes Job")]
        silent = [message for message in answers if message.endswith("the API does not answer: down")]
        api.down = not silent
        if silent and answers[-1].endswith(": 2 Running"):
            raise CancelledError

    with caplog.at_level(logging.INFO), pytest.raises(CancelledError):
        run_job(submitted, launcher_of(submitted.compute, LOG), logger=LOG, on_poll=poll)
    assert any("follows Kubernetes Job" in message for message in caplog.messages)
    assert api.requests.count(f"POST {JOBS}") == 1
    assert api.objects == {}


def test_missing_settings_and_clusters_are_reported_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"needs compute\.kubernetes\.image and compute\.kubernetes\.volume_claim"):
        ComputeConfig(launcher="kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no cluster answers"):
        require_launchable(compute())


def test_settings_of_another_launcher_warn(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_unused_settings(compute(cluster={"partition": "gpu", "gpus_per_node": 1}))
    warn_of_unused_settings(ComputeConfig.model_validate({"kubernetes": POD}))
    assert caplog.messages == [
        "compute.cluster.partition: no effect with compute.launcher=kubernetes",
        "compute.kubernetes.image, compute.kubernetes.volume_claim, compute.kubernetes.namespace: no effect with "
        "compute.launcher=local",
    ]
