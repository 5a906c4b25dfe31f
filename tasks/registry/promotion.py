"""The promotion gate: a version becomes champion if it has learnt and beats the champion on the same questions."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prefect import get_run_logger, task

from tasks.registry.versions import CHAMPION, find_champion, keep_champion, make_champion, only_promoter, version_uri
from tasks.run import Run
from vlm_core.config import BASE, RegistryConfig
from vlm_core.evaluation.result_names import UNSEEN

ENOUGH_CASES = 20  # unseen in training; with fewer, all cases decide
REMEDY = (
    "Train for more steps or with another learning rate, look at the report, or promote the version by hand: "
    "python -m tasks.registry promote NAME VERSION"
)


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes the champion, and why."""

    promoted: bool
    reason: str


@task(tags=["registry"], persist_result=False)
def promote_model(run: Run, registered: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Decides on a registered version and writes the decision into the registry; returns `{promoted, reason}`."""
    name, version = registered["name"], registered["version"]
    with only_promoter(name):
        champion = find_champion(name)
        decision = decide(result, run.config.registry, champion and version_uri(name, champion))
        if decision.promoted:
            make_champion(name, version, decision.reason)
        else:
            keep_champion(name, version, decision.reason)
    get_run_logger().info("version %s of %s %s: %s", version, name,
                          "is the champion" if decision.promoted else "is not promoted", decision.reason)  # fmt: skip
    return asdict(decision)


def decide(result: dict[str, Any], settings: RegistryConfig, champion: str | None) -> Decision:
    """Returns the decision on the model of an evaluation's `result`; `champion` is the URI of the current champion.

    Both models must have answered all questions of this evaluation. Without a champion, the model must not be worse
    than the base model.
    """
    if not settings.promote:
        return Decision(False, "registry.promote is false")
    if result.get("complete") is not True:
        return Decision(False, f"the evaluation was limited to {result['examples']} questions of the split")
    if not result["verdict"]["learnt"]:
        return Decision(False, f"{result['verdict']['text']}. {REMEDY}")
    if not _is_finite(result["scores"]["model"][settings.metric]["value"]):
        return Decision(False, f"{settings.metric} of the model has no finite value")
    if champion is None:
        return _first_of_its_name(result, settings.metric)
    if result["identical"].get(CHAMPION) == champion:
        return Decision(False, "its weights are those of the champion")
    if result["compared"].get(CHAMPION) != champion:
        compared = result["compared"].get(CHAMPION, "no champion")
        return Decision(False, f"compared with {compared}, but the champion is now {champion}: evaluate it again")
    basis, change = _basis(result, settings.metric, CHAMPION)
    if not _is_finite(change["value"]):
        return Decision(False, f"{settings.metric} has no finite value on {basis}")
    found = _found(settings.metric, champion, change, basis)
    if change["value"] <= 0 or change["value"] < settings.margin:
        return Decision(False, f"{found}; a margin of {settings.margin} is needed")
    if settings.require_interval and not (_is_finite(change["low"]) and change["low"] > 0):
        return Decision(False, f"{found}; the interval must exclude 0")
    if settings.no_more_contradictions and (more := _more_contradictions(result)):
        return Decision(False, f"{found}; {more}")
    return Decision(True, found)


def _more_contradictions(result: dict[str, Any]) -> str | None:
    """Returns by how much the model contradicts the references more often than the champion; None if it does not.

    An interval decides if there is one, so that equal models are not refused by chance.
    """
    change = result["differences"][CHAMPION]["contradictions"]
    bound = change["low"] if _is_finite(change["low"]) else change["value"]
    if not _is_finite(bound) or bound <= 0:
        return None
    found = _found("contradictions", "the champion", change, f"all {result['examples']} questions")
    return f"{found}: registry.no_more_contradictions refuses that"


def _first_of_its_name(result: dict[str, Any], metric: str) -> Decision:
    """Returns the decision on a model without a champion: it must not be worse than the base model."""
    if BASE in result["identical"].values():
        return Decision(False, "its weights are those of the base model")
    name = next((name for name, model in result["compared"].items() if model == BASE), None)
    if name is None:
        return Decision(False, "the first model of its name, but it was not compared with the base model: add base to "
                               "evaluation.compare_with")  # fmt: skip
    basis, change = _basis(result, metric, name)
    if not _is_finite(change["value"]):
        return Decision(False, f"{metric} has no finite value against the base model on {basis}")
    found = f"the first model of its name; {_found(metric, 'the base model', change, basis)}"
    return Decision(True, found) if change["value"] >= 0 else Decision(False, f"{found}: worse than the base model")


def _basis(result: dict[str, Any], metric: str, other: str) -> tuple[str, dict[str, Any]]:
    """Returns (which questions decide, in words; the difference to `other` on them).

    Questions about unseen cases decide if there are at least ENOUGH_CASES such cases, else all questions.
    """
    unseen = result["groups"]["case"].get(UNSEEN)
    if unseen and unseen["cases"] >= ENOUGH_CASES:
        change = unseen["differences"][other][metric]
        if change["value"] is not None:
            return f"{unseen['examples']} questions about {unseen['cases']} unseen cases", change
    return f"all {result['examples']} questions", result["differences"][other][metric]


def _found(metric: str, other: str, change: Mapping[str, Any], basis: str) -> str:
    bounds = "[{low:+.4f}, {high:+.4f}]".format(**change) if _is_finite(change["low"]) else "no interval"
    return f"{metric} against {other}: {change['value']:+.4f} {bounds} on {basis}"


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
