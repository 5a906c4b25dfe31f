"""Trials of a sweep on a cluster: each is a job with the sweep's `compute`, and several are there at once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from tasks.jobs import run_step
from tasks.run import Run
from tasks.sweep import search
from tasks.sweep.halving import Unit, rung_shares
from tasks.sweep.search import Budget, Search
from tasks.sweep.trial_job import Sweep
from tasks.sweep.trials import Trial
from tests import kubernetes_api as stub
from tests.kubernetes_api import JOBS, Api, kubernetes_api
from vlm_core.recipe import load_config
from vlm_core.search_space import Choice

TOGETHER = 4
COMPUTE = {
    "compute.launcher": "kubernetes",
    "compute.nodes": 2,
    "compute.cluster.gpus_per_node": 4,
    "compute.kubernetes": {"image": "lab/medpix:1", "volume_claim": "medpix", "namespace": "lab"},
}
manifests: list[dict[str, Any]] = []


class WaitingPods:
    """Pods that end once TOGETHER jobs have been submitted: trials one after the other would wait forever."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        manifests.append(manifest)

    def status(self) -> dict[str, Any]:
        done = len(manifests) >= TOGETHER
        return {"conditions": [{"type": "Complete", "status": "True"}]} if done else {"active": 2}

    def phases(self) -> list[str]:
        return ["Running"]

    def end(self) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(stub, "Pods", WaitingPods)
    manifests.clear()
    with kubernetes_api(tmp_path / "kubeconfig") as served:
        yield served


@pytest.mark.timeout(60)
def test_parallel_trials_are_jobs_of_the_cluster_at_once(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    config = load_config("demo", COMPUTE)
    (tmp_path / "s" / "trials").mkdir(parents=True)
    sweep = Sweep(tmp_path / "s", "demo", COMPUTE, "loss", config, nothing, nothing, nothing, "", threading.Event())

    def train(sweep: Sweep, trial: Trial, unit: Unit, share: float) -> Trial:
        own = sweep.config_of(trial)
        run_step("finetune", Run(own, Path(str(own.checkpoint.checkpoint_dir)), ""), [])
        return trial.reached(-own.optimizer.lr, 1.0, 1)

    monkeypatch.setattr(search, "run_trial", train)
    for pause in ("follow.SECONDS_BETWEEN_POLLS", "kubernetes.SHORTEST_PAUSE"):
        monkeypatch.setattr(f"tasks.launchers.{pause}", 0.02)
    space = {"optimizer.lr": Choice((1e-4, 2e-4, 3e-4, 5e-4))}
    with disable_run_logger():
        best = Search(sweep, space, Budget(4, 0, TOGETHER), rung_shares(4), lambda trials: None).run()
    assert best.overrides == {"optimizer.lr": 1e-4}
    assert len(manifests) == 5  # one trains on
    assert len({manifest["metadata"]["name"] for manifest in manifests}) == 4  # and is followed by its name
    assert api.requests.count(f"POST {JOBS}") == 5
    assert api.objects == {}
    for manifest in manifests:
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        assert (manifest["spec"]["completions"], container["image"]) == (2, "lab/medpix:1")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
        assert any(f"{tmp_path}/s/s-trial-00" in word and word.endswith("config.yaml") for word in container["command"])
