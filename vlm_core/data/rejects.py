"""The rows of a dataset that cannot be trained on, counted by reason."""

from collections.abc import Mapping
from typing import Any

from vlm_core.data.examples import RejectedRow

EXAMPLES = 3  # rows that are named for each reason


class Rejects:
    """Counts rejected rows; of each reason, the first rows are named, and it is said what is wrong with the first."""

    def __init__(self) -> None:
        self.by_reason: dict[str, dict[str, Any]] = {}

    def add(self, example_id: str, rejected: RejectedRow) -> None:
        """Counts a row. What to say about it may take a search: it is asked for the first row of each reason alone."""
        reason = str(rejected)
        if reason not in self.by_reason:
            about = rejected.about()
            self.by_reason[reason] = {"rows": 0, "examples": []} | ({"about": about} if about else {})
        found = self.by_reason[reason]
        found["rows"] += 1
        found["examples"] = [*found["examples"], example_id][:EXAMPLES]

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Returns the rejects without the details of their first rows: statistics hold no paths."""
        return {reason: {"rows": r["rows"], "examples": r["examples"]} for reason, r in self.by_reason.items()}


def describe_rejects(rejects: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns each reason in a manifest's `rejects` with its rows, the first of them, and what is wrong with it."""
    return "; ".join(
        f"{reason}: {reject['rows']} rows, {', '.join(reject['examples'])}"
        + (f" ({reject['about']})" if reject.get("about") else "")
        for reason, reject in rejects.items()
    )
