"""Lists the versions of the model registry, and reads and changes the champion."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from tasks.registry.champion_history import (
    BY_HAND,
    GATE,
    KEPT,
    ROLLED_BACK,
    Change,
    append,
    champions,
    new_change,
    read_history,
    unrecorded,
)
from vlm_core.cache import locked
from vlm_core.config.evaluation import CHAMPION
from vlm_core.evaluation.metrics import Use, names
from vlm_core.evaluation.result_names import VISUAL_RELIANCE
from vlm_core.home import medpix_home
from vlm_core.plain_text import without_secrets

PREVIOUS = "previous_champion"  # version tag in registries older than the history: the previous champion
PROMOTION = "promotion"  # version tag: why it is the champion, or why not
NOT_THERE = (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE))  # MLflow's error codes


def listed_tags() -> list[str]:
    """Returns the version tags that the list of versions shows."""
    return [*names(Use.TAG), VISUAL_RELIANCE, "examples"]


def history_scores() -> list[str]:
    """Returns the version tags that the champion history stores."""
    return [*names(Use.HEADLINE), VISUAL_RELIANCE]


def look_up(name: str, alias: str) -> dict[str, Any]:
    """Returns `{name, version, alias, uri}` of the version that `alias` points to."""
    version = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    return {"name": name, "version": str(version.version), "alias": alias, "uri": f"models:/{name}@{alias}"}


def version_uri(name: str, version: str) -> str:
    """Returns the permanent URI of a version; an alias can move to another one."""
    return f"models:/{name}/{version}"


def find_champion(name: str) -> str | None:
    """Returns the version of `name` that is the champion; None if the alias `champion` is not set."""
    try:
        return look_up(name, CHAMPION)["version"]
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return None


@contextmanager
def only_promoter(name: str) -> Iterator[None]:
    """Context manager that holds the promotion lock of `name`: runs that end together are decided one by one."""
    path = medpix_home() / "mlflow" / f".{name}.promotion.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        yield


def candidates_met(name: str, champion: str | None) -> int:
    """Returns how many candidates the gate has compared with a champion; call it under `only_promoter`.

    A champion that a rollback brings back keeps its number: its questions have already been used that often.
    """
    gate = [change for change in read_history(name) if change.kind in (GATE, KEPT) and change.before == champion]
    return sum(change.candidate is not None for change in gate) if champion else 0


def make_champion(name: str, version: str, reason: str, kind: str = GATE, candidate: int | None = None) -> None:
    """Makes a version the champion and adds that to the history; call it under `only_promoter`.

    `candidate` is its number among the candidates of the present champion, None if it was not compared. The reason is
    written before the alias moves, so that the champion always has one.
    """
    client, before = mlflow.MlflowClient(), find_champion(name)
    _record_unseen(name, before)
    client.set_model_version_tag(name, version, PROMOTION, reason)
    client.set_registered_model_alias(name, CHAMPION, version)
    append(name, new_change(kind, before, version, reason, _scores(name, version), candidate))


def keep_champion(name: str, version: str, reason: str, candidate: int | None = None) -> None:
    """Records in the history and on `version` that the gate did not promote it; call it under `only_promoter`."""
    champion = find_champion(name)
    _record_unseen(name, champion)
    mlflow.MlflowClient().set_model_version_tag(name, version, PROMOTION, f"not promoted: {reason}")
    append(name, new_change(KEPT, champion, champion, f"version {version} is not promoted: {reason}", {}, candidate))


def promote(name: str, version: str, reason: str) -> None:
    """Makes a version the champion by hand; raises ValueError if the version does not exist."""
    if not _exists(name, version):
        raise ValueError(f"no version {version} of {name!r} at {without_secrets(mlflow.get_tracking_uri())}")
    with only_promoter(name):
        make_champion(name, version, reason, BY_HAND)


def roll_back(name: str, reason: str = "") -> str:
    """Makes the previous champion the champion again and returns it; each call goes back one more step.

    Deleted versions are skipped. Raises ValueError if there is no earlier champion.
    """
    with only_promoter(name):
        present = find_champion(name)
        target, deleted = _earlier_champion(name, present)
        skipped = f"; skipped, since deleted: version {', '.join(deleted)}" if deleted else ""
        if target is None:
            now = f"is version {present}" if present else "is not set"
            raise ValueError(
                f"{name!r} has no earlier champion to roll back to{skipped}; the champion {now}. `python -m "
                f"tasks.registry history {name}` lists all champions, and `promote` accepts any version number"
            )
        client = mlflow.MlflowClient()
        client.set_registered_model_alias(name, CHAMPION, target)
        if present is not None:
            client.set_model_version_tag(name, present, PROMOTION, f"rolled back to version {target}")
        why = (reason or "no reason given")[:500] + skipped
        append(name, new_change(ROLLED_BACK, present, target, why, _scores(name, target)))
        return target


def _earlier_champion(name: str, present: str | None) -> tuple[str | None, list[str]]:
    """Returns (the champion to roll back to, or None; the deleted versions that were skipped)."""
    deleted: list[str] = []
    for version in reversed(champions([*read_history(name), *_record_unseen(name, present)])):
        if version != present and _exists(name, version):
            return version, deleted
        if version != present:
            deleted.append(version)
    return None, deleted


def changes(name: str) -> list[Change]:
    """Returns the history of `name`, oldest first; an unrecorded change of the champion is added as the last entry."""
    with only_promoter(name):
        history, champion = read_history(name), find_champion(name)
        return [*history, *unrecorded(history, champion, _predecessor(name, champion))]


def _record_unseen(name: str, champion: str | None) -> list[Change]:
    """Adds an unrecorded change to `champion` to the history; returns the entries added."""
    missing = unrecorded(read_history(name), champion, _predecessor(name, champion))
    for change in missing:
        append(name, change)
    return missing


def _predecessor(name: str, champion: str | None) -> str | None:
    """Returns the previous champion as recorded by registries that are older than the history."""
    return mlflow.MlflowClient().get_model_version(name, champion).tags.get(PREVIOUS) if champion else None


def _exists(name: str, version: str) -> bool:
    try:
        mlflow.MlflowClient().get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return False
    return True


def _scores(name: str, version: str) -> dict[str, str]:
    tags = mlflow.MlflowClient().get_model_version(name, version).tags
    return {key: tags[key] for key in history_scores() if key in tags}


def versions(name: str | None = None) -> list[dict[str, Any]]:
    """Returns `{name, version, aliases, created, ...scores, promotion}` of the versions of one model, or of all."""
    client = mlflow.MlflowClient()
    models = [client.get_registered_model(name)] if name else client.search_registered_models()
    rows = []
    for model in models:
        for version in client.search_model_versions(f"name = '{model.name}'"):
            created = datetime.fromtimestamp((version.creation_timestamp or 0) / 1000, UTC)
            rows.append(
                {
                    "name": model.name,
                    "version": str(version.version),
                    # search_model_versions leaves the aliases out (MLflow 3.17)
                    "aliases": sorted(alias for alias, at in model.aliases.items() if str(at) == str(version.version)),
                    "created": created.strftime("%Y-%m-%d %H:%M UTC"),
                    **{key: version.tags.get(key, "-") for key in (*listed_tags(), PROMOTION)},
                }
            )
    return sorted(rows, key=lambda row: (row["name"], int(row["version"])))
