"""The promotion gate: a version becomes champion if it has learnt and beats the champion on the same questions.

A champion meets many candidates, such as one a week, and the luckiest of equal models looks better than it is. So the
gate counts the candidates, and asks for more evidence each time (`vlm_core.evaluation.chance`).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prefect import get_run_logger, task

from tasks.registry.decline import remember_score
from tasks.registry.versions import (
    CHAMPION,
    candidates_met,
    find_champion,
    keep_champion,
    make_champion,
    only_promoter,
    version_uri,
)
from tasks.run import Run
from vlm_core.config import BASE, RegistryConfig
from vlm_core.evaluation.chance import level_of

REMEDY = (
    "Train for more steps or with another learning rate, look at the report, or promote the version by hand: "
    "python -m tasks.registry promote NAME VERSION"
)


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes the champion, and why."""

    promoted: bool
    reason: str
    candidate: int | None = None  # its number among all that the champion was compared with; None: not compared


@task(tags=["registry"], persist_result=False)
def promote_model(run: Run, registered: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Decides on a registered version and writes the decision into the registry; returns a `Decision`'s fields."""
    name, version = registered["name"], registered["version"]
    with only_promoter(name):
        champion = find_champion(name)
        if champion == version:
            return asdict(Decision(True, "it became the champion before this run was interrupted"))
        number = candidates_met(name, champion) + 1
        decision = decide(result, run.config.registry, champion and version_uri(name, champion), number)
        record = make_champion if decision.promoted else keep_champion
        record(name, version, decision.reason, candidate=decision.candidate)
        if decision.promoted:
            remember_score(name, version, result, run.config.registry.metric)
    get_run_logger().info("version %s of %s %s: %s", version, name,
                          "is the champion" if decision.promoted else "is not promoted", decision.reason)  # fmt: skip
    return asdict(decision)


def decide(result: dict[str, Any], settings: RegistryConfig, champion: str | None, number: int = 1) -> Decision:
    """Returns the decision on the model of an evaluation's `result`; `champion` is the URI of the current champion.

    Both models must have answered all questions of this evaluation. Without a champion, the model must not be worse
    than the base model. `number` says how many candidates the champion has met, with this one.
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
    fault, found = _comparison(result, settings, champion, number)
    return Decision(fault is None, f"{found}; {fault}" if fault else found, number)


def _comparison(result: dict[str, Any], settings: RegistryConfig, champion: str, number: int) -> tuple[str | None, str]:
    """Returns (why the model is not better than the champion, None if it is; the difference in words)."""
    basis, change = _basis(result, CHAMPION)
    if not _is_finite(change["value"]):
        return "without a value nothing is compared", f"{settings.metric} has no finite value on {basis}"
    found = _found(settings.metric, champion, change, basis)
    if change["value"] <= 0 or change["value"] < settings.margin:
        return f"a margin of {settings.margin} is needed", found
    if settings.require_interval:
        level = level_of(number)
        found += f"; candidate {number} of this champion, p = {change['chance']:.2g}"
        if change["chance"] > level:
            return f"chance alone may explain it: p must be at most {level:.2g}", found
    if settings.no_more_contradictions and (more := _more_contradictions(result)):
        return more, found
    return None, found


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
    basis, change = _basis(result, name)
    if not _is_finite(change["value"]):
        return Decision(False, f"{metric} has no finite value against the base model on {basis}")
    found = f"the first model of its name; {_found(metric, 'the base model', change, basis)}"
    return Decision(True, found) if change["value"] >= 0 else Decision(False, f"{found}: worse than the base model")


def _basis(result: dict[str, Any], other: str) -> tuple[str, dict[str, Any]]:
    """Returns (which questions decide, in words; the difference to `other` on them).

    They are the first set of `vlm_core.evaluation.deciding` in which the metric has a value.
    """
    sets = result["deciding"]
    chosen = next((found for found in sets if found["differences"][other]["value"] is not None), sets[-1])
    return chosen["questions"], chosen["differences"][other]


def _found(metric: str, other: str, change: Mapping[str, Any], basis: str) -> str:
    bounds = "[{low:+.4f}, {high:+.4f}]".format(**change) if _is_finite(change["low"]) else "no interval"
    return f"{metric} against {other}: {change['value']:+.4f} {bounds} on {basis}"


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
