"""The model registry: which versions there are, which one is the champion, and how it became that.

python -m tasks.registry list
python -m tasks.registry promote medpix-gemma3 4 --reason "reviewed by hand"
python -m tasks.registry rollback medpix-gemma3
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from vlm_core.cache import locked
from vlm_core.home import medpix_home

CHAMPION = "champion"
PREVIOUS = "previous_champion"  # tag of a version: the one whose place it took
PROMOTION = "promotion"  # tag of a version: why it is the champion, or why not
SHOWN = ("token_f1", "rouge_l", "closed_accuracy", "perplexity", "visual_reliance", "examples")  # tags


def look_up(name: str, alias: str) -> dict[str, Any]:
    """Returns `{name, version, alias, uri}` of the version that `alias` points to."""
    version = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    return {"name": name, "version": str(version.version), "alias": alias, "uri": f"models:/{name}@{alias}"}


def version_uri(name: str, version: str) -> str:
    """Returns what names a version for good: an alias moves on."""
    return f"models:/{name}/{version}"


def find_champion(name: str) -> str | None:
    """Returns the version that is the champion of `name`, None where there is none."""
    try:
        return look_up(name, CHAMPION)["version"]
    except MlflowException as error:
        if error.error_code not in (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)):
            raise
        return None


@contextmanager
def only_promoter(name: str) -> Iterator[None]:
    """Holds the lock of promotions of `name`: of two runs that end at once, one decides after the other."""
    path = medpix_home() / "mlflow" / f".{name}.promotion.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        yield


def make_champion(name: str, version: str, reason: str) -> None:
    """Makes a version the champion; call it under `only_promoter`.

    The alias moves last: whoever follows it finds everything said.
    """
    client, before = mlflow.MlflowClient(), find_champion(name)
    client.set_model_version_tag(name, version, PROMOTION, reason)
    if before not in (None, version):
        client.set_model_version_tag(name, version, PREVIOUS, before)
    client.set_registered_model_alias(name, CHAMPION, version)


def promote(name: str, version: str, reason: str) -> None:
    """Makes a version the champion by hand; raises ValueError for a version that is not there."""
    try:
        mlflow.MlflowClient().get_model_version(name, version)
    except MlflowException as error:
        raise ValueError(f"no version {version} of {name!r} at {mlflow.get_tracking_uri()}: {error}") from None
    with only_promoter(name):
        make_champion(name, version, reason)


def roll_back(name: str) -> str:
    """Makes the version before the present champion the champion again, and returns it.

    Raises ValueError where there is no champion, or where none was before it.
    """
    with only_promoter(name):
        present = find_champion(name)
        if present is None:
            raise ValueError(f"{name!r} has no champion at {mlflow.get_tracking_uri()}; nothing to roll back")
        client = mlflow.MlflowClient()
        previous = client.get_model_version(name, present).tags.get(PREVIOUS)
        if previous is None:
            raise ValueError(f"version {present} of {name!r} is the first champion; promote another version by number")
        client.set_registered_model_alias(name, CHAMPION, previous)
        client.set_model_version_tag(name, present, PROMOTION, f"rolled back to version {previous}")
        return previous


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
                    **{key: version.tags.get(key, "-") for key in (*SHOWN, PROMOTION)},
                }
            )
    return sorted(rows, key=lambda row: (row["name"], int(row["version"])))


def render(rows: list[dict[str, Any]]) -> str:
    """Returns `versions` as a table for people."""
    columns = ("name", "version", "aliases", "created", *SHOWN, PROMOTION)
    table = [columns, *([", ".join(row[c]) if c == "aliases" else str(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.registry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show versions, their scores and aliases").add_argument("name", nargs="?")
    command = commands.add_parser("promote", help="make a version the champion")
    command.add_argument("name")
    command.add_argument("version")
    command.add_argument("--reason", default="promoted by hand")
    commands.add_parser("rollback", help="make the champion before this one the champion again").add_argument("name")
    return parser


def main() -> None:
    """Runs the command."""
    options = _parser().parse_args()
    try:
        if options.command == "promote":
            promote(options.name, options.version, options.reason)
        elif options.command == "rollback":
            roll_back(options.name)
        print(render(versions(options.name)))
    except (ValueError, MlflowException) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
