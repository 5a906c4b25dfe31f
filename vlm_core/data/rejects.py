"""The rows of a dataset that cannot be trained on, counted by reason."""

from collections.abc import Callable, Mapping
from typing import Any

from vlm_core.data.examples import RejectedRow

EXAMPLES = 3  # rows that are named for each reason


class Rejects:
    """Counts rejected rows. For each reason it names the first rows, and says what is wrong with the very first."""

    def __init__(self) -> None:
        self.by_reason: dict[str, dict[str, Any]] = {}

    def add(self, example_id: str, rejected: RejectedRow) -> None:
        """Counts a row. Only the first row of each reason is described, since that may take a search for files."""
        reason = str(rejected)
        if reason not in self.by_reason:
            about = rejected.about()
            self.by_reason[reason] = {"rows": 0, "examples": []} | ({"about": about} if about else {})
        found = self.by_reason[reason]
        found["rows"] += 1
        found["examples"] = [*found["examples"], example_id][:EXAMPLES]

    def locate(self, place: Callable[[list[str]], Mapping[str, str]]) -> None:
        """Adds the places of the named rows in their files; `place` returns `{id: place}` of the rows that it knows."""
        places = place([name for found in self.by_reason.values() for name in found["examples"]])
        for found in self.by_reason.values():
            found["places"] = [places.get(name, "") for name in found["examples"]]

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Returns the rejects without places and details: statistics hold no paths."""
        return {reason: {"rows": r["rows"], "examples": r["examples"]} for reason, r in self.by_reason.items()}


def describe_rejects(rejects: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns all reasons of a manifest's `rejects` in one line; see `reject_lines`."""
    return "; ".join(reject_lines(rejects))


def reject_lines(rejects: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each reason: how many rows, where the first of them are, and what is wrong with the first."""
    return [
        f"{reason}: {counted_rows(reject)}, {', '.join(named_rows(reject))}"
        + (f" ({reject['about']})" if reject.get("about") else "")
        for reason, reject in rejects.items()
    ]


def counted_rows(reject: Mapping[str, Any]) -> str:
    """Returns how many rows a reason has: `1 row`, `2,000 rows`."""
    return f"{reject['rows']:,} row{'' if reject['rows'] == 1 else 's'}"


def named_rows(reject: Mapping[str, Any]) -> list[str]:
    """Returns the named rows of a reason, each with its place if that is known: `train-4 (data.csv, line 6)`."""
    places = reject.get("places") or [""] * len(reject["examples"])
    return [f"{name} ({place})" if place else name for name, place in zip(reject["examples"], places, strict=True)]
