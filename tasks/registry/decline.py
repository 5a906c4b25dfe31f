"""Notices that a promoted version has become worse: its score on newer rows lies below that of its promotion.

An automation of Prefect can react to the event. `make up` registers one that looks for new data to train on, switched
off (deployments/prefect.yaml).
"""

import json
from collections.abc import Mapping
from typing import Any

import mlflow
from prefect import get_run_logger, task
from prefect.events import emit_event

from tasks.registry.resolve import find_version
from tasks.run import Run
from vlm_core.evaluation.result_names import with_interval

EVENT = "medpix.champion-declined"
PROMOTED_WITH = "promoted_with"  # version tag: the score on the deciding questions, at the promotion by the gate


def remember_score(name: str, version: str, result: dict[str, Any], metric: str) -> None:
    """Stores the score that a version is promoted with as its tag."""
    score = {"metric": metric, **result["deciding"][0]["score"]}
    mlflow.MlflowClient().set_model_version_tag(name, version, PROMOTED_WITH, json.dumps(score))


@task(tags=["registry"], persist_result=False)
def report_decline(
    run: Run, checkpoint: str, result: dict[str, Any], recipe: str, overrides: Mapping[str, Any]
) -> str | None:
    """Emits an event if a version's interval lies below that of its promotion; returns the finding, or None.

    The event has the recipe and its overrides, without those of the evaluation, so that a training can follow. Any
    other model, and a version that no gate promoted, is not judged.
    """
    version = find_version(checkpoint) if checkpoint.startswith("models:/") else None
    tag = version and version.tags.get(PROMOTED_WITH)
    if not tag:
        return None
    before, now = json.loads(tag), result["deciding"][0]["score"]
    finding = decline(before, now, run.config.registry.metric)
    if finding is None:
        return None
    text = f"version {version.version} of {version.name} has declined: {finding}"
    get_run_logger().warning("%s", text)
    resource = {"prefect.resource.id": f"medpix.model.{version.name}", "prefect.resource.name": version.name}
    kept = {key: value for key, value in overrides.items() if not key.startswith("evaluation.")}
    payload = {"version": str(version.version), "finding": text, "recipe": recipe, "overrides": kept}
    emit_event(EVENT, resource=resource, payload=payload)
    return text


def decline(before: dict[str, Any], now: dict[str, Any], metric: str) -> str | None:
    """Returns in words how much worse a score is now, None if the intervals overlap or cannot be compared.

    >>> before = {"metric": "f1", "value": 0.8, "low": 0.75, "high": 0.85}
    >>> decline(before, {"value": 0.6, "low": 0.5, "high": 0.7}, "f1")
    'f1 is 0.600 [0.500, 0.700]; it was promoted with 0.800 [0.750, 0.850]'
    """
    if before["metric"] != metric or before["low"] is None or now["high"] is None or now["high"] >= before["low"]:
        return None
    return f"{metric} is {with_interval(now)}; it was promoted with {with_interval(before)}"
