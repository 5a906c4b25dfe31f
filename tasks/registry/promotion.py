"""The gate: a new version becomes the champion if it has learnt and beats the present one on the same questions."""

from dataclasses import asdict, dataclass
from typing import Any

from prefect import get_run_logger, task

from tasks.registry.versions import CHAMPION, find_champion, keep_champion, make_champion, only_promoter, version_uri
from tasks.run import Run
from vlm_core.config import RegistryConfig
from vlm_core.evaluation.result_names import UNSEEN

ENOUGH_CASES = 20  # that training has not seen: a few of them must not overrule all others
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
    """Returns `{promoted, reason}`, and has written both into the registry; the reason is a tag of the version."""
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
    """Returns the decision on the model of an evaluation's `result`; `champion` is the present one's URI.

    The two must have answered the same questions: those of this very evaluation, all of them.
    """
    if not settings.promote:
        return Decision(False, "registry.promote is false")
    if not result["complete"]:
        return Decision(False, f"the evaluation was limited to {result['examples']} questions of the split")
    if not result["verdict"]["learnt"]:
        return Decision(False, f"{result['verdict']['text']}. {REMEDY}")
    if champion is None:
        return Decision(True, "the first model of its name")
    if result["identical"].get(CHAMPION) == champion:
        return Decision(False, "its weights are those of the champion")
    if result["compared"].get(CHAMPION) != champion:
        asked = result["compared"].get(CHAMPION, "none")
        return Decision(False, f"compared with the champion {asked}, and now {champion} is: evaluate it again")
    basis, change = _basis(result, settings.metric)
    if change["value"] is None:
        return Decision(False, f"{settings.metric} has no value on {basis}")
    bounds = "no interval" if change["low"] is None else "[{low:+.4f}, {high:+.4f}]".format(**change)
    found = f"{settings.metric} against {champion}: {change['value']:+.4f} {bounds} on {basis}"
    if change["value"] <= 0 or change["value"] < settings.margin:
        return Decision(False, f"{found}; a margin of {settings.margin} is needed")
    if settings.require_interval and (change["low"] is None or change["low"] <= 0):
        return Decision(False, f"{found}; the interval must exclude 0")
    return Decision(True, found)


def _basis(result: dict[str, Any], metric: str) -> tuple[str, dict[str, Any]]:
    """Returns which questions decide, in words, and the difference on them: of unseen cases where there are enough."""
    unseen = result["groups"]["case"].get(UNSEEN)
    if unseen and unseen["cases"] >= ENOUGH_CASES and unseen["differences"][CHAMPION][metric]["value"] is not None:
        return f"{unseen['examples']} questions about {unseen['cases']} unseen cases", unseen["differences"][CHAMPION][
            metric
        ]
    return f"all {result['examples']} questions", result["differences"][CHAMPION][metric]
