"""Reads deployments/compose.yaml as docker compose does: replaces variables, and returns a service's command."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).parents[1] / "deployments" / "compose.yaml"
SECRETS = ("POSTGRES_SECRET", "PREFECT_SECRET", "MLFLOW_SECRET", "MLFLOW_SESSIONS_SECRET", "S3_SECRET")
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(:(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def compose_text() -> str:
    """Returns the file without its comments: docker compose replaces nothing there."""
    lines = COMPOSE.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith("#"))


def compose_file(values: Mapping[str, str]) -> dict[str, Any]:
    """Returns the file with its variables replaced; raises ValueError if a required variable is missing."""

    def value(found: re.Match[str]) -> str:
        if given := values.get(found["name"]):
            return given
        if found["kind"] == "-":
            return found["rest"]
        raise ValueError(f"{found['name']}: {found['rest']}")

    return yaml.safe_load(VARIABLE.sub(value, compose_text()))
