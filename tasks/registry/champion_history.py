"""The history of a registered model's champion: who changed it, when, from which version to which, and why.

Each entry is a tag of the registered model with a unique key. So no entry is ever overwritten, and two concurrent
writers add two entries. If somebody moved the alias in MLflow's pages, the next change records that too.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import mlflow
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.audit import audit
from tasks.trackers.provenance import responsible_user

KEY = "champion.history.{number:06d}.{token}"
KEY_PATTERN = re.compile(r"champion\.history\.(\d+)\.\w+")
LONGEST_TEXT = 1000  # characters of a reason; a tag of a registered model holds 5000 in PostgreSQL
GATE, BY_HAND, ROLLED_BACK = "promoted by the gate", "promoted by hand", "rolled back"
KEPT = "kept by the gate"  # not promoted: the champion stays
OUTSIDE = "changed outside"  # the alias was moved outside of this project
BEFORE = "before the history"  # the champion when the history began
UNREADABLE = "unreadable"  # somebody edited the tag
NO_CHANGE = (KEPT, UNREADABLE)


class Change(BaseModel):
    """One entry: a change of the champion, or the gate's decision to keep it."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    time: str  # UTC, ISO 8601
    user: str
    kind: str
    before: str | None = Field(alias="from")  # version
    after: str | None = Field(alias="to")
    reason: str
    scores: dict[str, str] = {}  # of the new version
    candidate: int | None = None  # the gate's count of candidates that it compared with the champion, with this one


def new_change(
    kind: str,
    before: str | None,
    after: str | None,
    reason: str,
    scores: Mapping[str, str],
    candidate: int | None = None,
) -> Change:
    """Returns an entry with the current time and user."""
    return Change(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        user="unknown" if kind in (OUTSIDE, BEFORE) else plain(responsible_user()),
        kind=kind,
        before=before,
        after=after,
        reason=plain(reason),
        scores=dict(scores),
        candidate=candidate,
    )


def append(name: str, change: Change) -> None:
    """Adds an entry to the history of `name` and to the audit trail; a random token makes its key unique."""
    client = mlflow.MlflowClient()
    numbers = [int(found[1]) for key in client.get_registered_model(name).tags if (found := KEY_PATTERN.fullmatch(key))]
    key = KEY.format(number=max(numbers, default=0) + 1, token=secrets.token_hex(4))
    client.set_registered_model_tag(name, key, change.model_dump_json(by_alias=True))
    audit("champion", name=name, **change.model_dump(by_alias=True, exclude={"time", "user"}))


def read_history(name: str) -> list[Change]:
    """Returns the entries of `name`, oldest first."""
    tags = mlflow.MlflowClient().get_registered_model(name).tags
    entries = [(int(found[1]), _parsed(value)) for key, value in tags.items() if (found := KEY_PATTERN.fullmatch(key))]
    return [change for _, change in sorted(entries, key=lambda entry: (entry[0], entry[1].time))]


def unrecorded(history: Sequence[Change], champion: str | None, predecessor: str | None) -> list[Change]:
    """Returns the entry that `history` lacks, given the current `champion`; [] if the history is complete.

    `predecessor` is the previous champion as recorded by registries that are older than the history.
    """
    changes = [change for change in history if change.kind not in NO_CHANGE]
    if champion == (changes[-1].after if changes else None):
        return []
    if not changes:
        return [new_change(BEFORE, predecessor, champion, "the registry has no older entries", {})]
    reason = "the alias was moved outside of this project; noticed now"
    return [new_change(OUTSIDE, changes[-1].after, champion, reason, {})]


def champions(history: Sequence[Change]) -> list[str]:
    """Returns the stack of champions that a rollback can undo, the latest last: promotions push, rollbacks pop.

    >>> entry = dict(time="", user="", reason="")
    >>> one = Change(kind=GATE, before=None, after="1", **entry)
    >>> two = Change(kind=BY_HAND, before="1", after="2", **entry)
    >>> champions([one, two]), champions([one, two, Change(kind=ROLLED_BACK, before="2", after="1", **entry)])
    (['1', '2'], ['1'])
    """
    stack: list[str] = []
    for change in history:
        if change.kind in NO_CHANGE or change.after is None:
            continue
        if not stack and change.before:
            stack.append(change.before)
        if change.kind == ROLLED_BACK and change.after in stack:
            del stack[len(stack) - stack[::-1].index(change.after) :]
        elif stack[-1:] != [change.after]:
            stack.append(change.after)
    return stack


def plain(text: str) -> str:
    """Returns `text` on one line, without control characters, cut to LONGEST_TEXT."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 3]}..."


def _parsed(value: str) -> Change:
    try:
        return Change.model_validate_json(value)
    except ValidationError:
        return Change(time="", user="unknown", kind=UNREADABLE, before=None, after=None, reason=plain(value))
