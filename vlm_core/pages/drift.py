"""The page about drift: how far the new data differs from the training data, one quantity at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_core.data.drift import LEVEL, LIMIT
from vlm_core.files import write_text
from vlm_core.pages.plots import shares
from vlm_core.pages.render import render

TITLES = ("quantity", "distance", "p", "")


def write_drift(about: Mapping[str, Any], found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the page of `found`, which `drift_of` returned.

    `about` has the version, its cache and the present one, and the counts of rows and cases.
    """
    page = render(
        Path(__file__).parent / "drift.html",
        {},
        about=about,
        found=found,
        rows=drift_rows(found),
        titles=TITLES,
        summary=summary_of(found),
        plots={one["title"]: shares(one["bins"], {"training": one["training"], "new": one["new"]}) for one in found},
        limit=LIMIT,
        level=LEVEL,
    )
    write_text(path, page)


def drift_rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a row for each quantity, the greatest distance first: its title, distance, p-value, and what it means."""
    words = {None: "too few new cases to say", True: "drifted", False: "no clear drift"}
    return [
        (one["title"], f"{one['distance']:.3f}", "-" if one["p"] is None else f"{one['p']:.3f}", words[one["drifted"]])
        for one in sorted(found, key=lambda one: -one["distance"])
    ]


def summary_of(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns one sentence about all quantities."""
    drifted = [one["title"].lower() for one in found if one["drifted"]]
    if drifted:
        return f"The new rows differ from the training data in {', '.join(drifted)}."
    if any(one["drifted"] is None for one in found):
        return "There are too few new cases to say whether the new rows differ from the training data."
    return "No quantity of the new rows differs clearly from the training data."
