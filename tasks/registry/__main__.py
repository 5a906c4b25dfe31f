"""Lists, promotes, verifies and serves the versions in the model registry.

python -m tasks.registry list
python -m tasks.registry promote medpix-gemma3 4 --reason "reviewed by hand"
python -m tasks.registry rollback medpix-gemma3 --reason "misses small lesions"
python -m tasks.registry history medpix-gemma3
python -m tasks.registry review medpix-gemma3 4 review.json
python -m tasks.registry verify medpix-gemma3 4
python -m tasks.registry serve medpix-gemma3 4 --port 8080
python -m tasks.registry push medpix-gemma3 champion OWNER/NAME
"""

from tasks.registry.arguments import registry_parser

if __name__ == "__main__":  # before the imports below, which take seconds
    OPTIONS = registry_parser(__doc__).parse_args()
else:
    OPTIONS = None

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tasks.registry.champion_history import Change, plain
from tasks.registry.resolve import local_copy
from tasks.registry.trust import verify
from tasks.registry.versions import (
    PROMOTION,
    changes,
    history_scores,
    listed_tags,
    look_up,
    promote,
    roll_back,
    versions,
)
from tasks.services.databases import require_databases
from vlm_core.evaluation.reader_study.readings import tags
from vlm_core.files import read_json
from vlm_core.plain_text import printable


def render(rows: list[dict[str, Any]]) -> str:
    """Returns `versions` as a table for people."""
    columns = ("name", "version", "aliases", "created", *listed_tags(), PROMOTION)
    return _table(columns, [[", ".join(row[c]) if c == "aliases" else str(row[c]) for c in columns] for row in rows])


def render_history(history: list[Change]) -> str:
    """Returns the entries as a table for people, the newest last."""
    scores = history_scores()
    rows = [
        [c.time, c.user, c.kind, c.before or "-", c.after or "-", *(c.scores.get(k, "-") for k in scores), c.reason]
        for c in history
    ]
    return _table(("time", "user", "kind", "from", "to", *scores, "reason"), rows)


def render_lock(lock: dict[str, Any]) -> str:
    """Returns the verified lock in words."""
    made_with = ", ".join(f"{key.removeprefix('version.')} {value}" for key, value in sorted(lock["made_with"].items()))
    files = len(lock["files"]) + len(lock["weights"]["sha256"] if lock["weights"] else ())
    return printable(
        f"version {lock['version']} of {lock['name']} is as it was registered: {files} files, its config, its "
        f"evaluation, its scores\ndata {lock['dataset_fingerprint']}, run {lock['run_id']}\nmade with {made_with}"
    )


def _number(name: str, version: str) -> str:
    """Returns the number of a version that is given by number or alias. Call it once: an alias can move."""
    return version if version.isdigit() else look_up(name, version)["version"]


def serve(model: Path, port: str) -> None:
    """Replaces this process by MLflow's server of the model version in the directory `model`, on loopback."""
    words = ("models", "serve", "--model-uri", str(model), "--env-manager", "local", "--host", "127.0.0.1")
    programs = str(Path(sys.executable).parent)  # MLflow starts uvicorn by name
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", *words, "--port", port], environment)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an aligned table, one line per row; control characters in cells are removed."""
    table = [list(columns), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in table)


def add_review(name: str, version: str, scores: Path) -> None:
    """Adds the scores of a reader study to a version as tags, and prints them."""
    result = read_json(scores)
    if "agreement" not in result:
        raise ValueError(f"{scores} has no scores of a reader study: give the file that `review score --output` wrote")
    found = tags(result)
    for key, value in found.items():
        mlflow.MlflowClient().set_model_version_tag(name, version, key, value)
    print(_table(("tag", "value"), [[key, value] for key, value in found.items()]))


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    try:
        require_databases()
        if options.command == "promote":
            promote(options.name, options.version, options.reason)
        elif options.command == "rollback":
            roll_back(options.name, options.reason)
        if options.command == "list":
            print(render(versions(options.name)))
        elif options.command == "review":
            add_review(options.name, _number(options.name, options.version), options.scores)
        elif options.command == "verify":
            print(render_lock(verify(options.name, _number(options.name, options.version))))
        elif options.command == "serve":
            version = mlflow.MlflowClient().get_model_version(options.name, _number(options.name, options.version))
            model = local_copy(version)  # the files that are verified are the files that are served
            print(render_lock(verify(options.name, str(version.version), model)), flush=True)
            serve(model, options.port)
        elif options.command == "push":
            from tasks.registry.push import push  # lazy: only this needs the hub

            number = str(_number(options.name, options.version))
            print(push(options.name, number, options.repository, public=options.public))
        else:
            print(render_history(changes(options.name)))
    except (ValueError, OSError, MlflowException) as error:
        raise SystemExit(f"error: {printable(error)}") from error


if OPTIONS:
    main(OPTIONS)
