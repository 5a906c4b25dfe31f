"""Default environment variables of Prefect, MLflow and W&B: all files under `MEDPIX_HOME`, and no telemetry.

Variables that are set already are kept. Prefect reads its variables at import, so this has to run before that.
"""

import logging
import os
import secrets
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.services.password import home_password
from vlm_core.home import keep_private, medpix_home
from vlm_core.plain_text import keep_logs_plain

AUTH_STRINGS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")  # the server's and its clients'
API_URL = "PREFECT_API_URL"


def default_tracking_uri() -> str:
    """Returns the address of MLflow's SQLite store under the home."""
    return f"sqlite:///{medpix_home() / 'mlflow' / 'mlflow.db'}"


def set_service_defaults() -> None:
    """Sets the environment variables of Prefect and MLflow that have no value yet, and keeps the home private.

    Prefect's variables are set only before Prefect is imported. Later, only the processes that it starts would read
    them, and would then use another PREFECT_HOME than Prefect itself.
    """
    keep_private()
    keep_logs_plain()
    home = medpix_home()
    defaults = {
        "MLFLOW_TRACKING_URI": default_tracking_uri(),
        "MPLCONFIGDIR": str(home / "cache" / "matplotlib"),  # matplotlib's list of fonts
        "WANDB_CACHE_DIR": str(home / "cache" / "wandb"),
        "WANDB_DATA_DIR": str(home / "cache" / "wandb"),
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for jobs on traces, which we do not use
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",  # telemetry of Prefect's client
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "vlm_core",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # records of a library's own threads
    }
    if not sys.stderr.isatty():
        defaults["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if not _prefect_is_configured():
        defaults["PREFECT_HOME"] = str(home / "prefect")
        # A flow's temporary server gets the flow's password, or none: it must not choose another one.
        if not os.environ.get(API_URL) and not os.environ.get("PREFECT__SERVER_EPHEMERAL"):
            defaults |= dict.fromkeys(AUTH_STRINGS, _temporary_password())
    for name, value in defaults.items():
        if not (name.startswith("PREFECT_") and "prefect" in sys.modules):
            os.environ.setdefault(name, value)
    logging.getLogger("vlm_core").setLevel(logging.INFO)  # Prefect adds handlers to this logger and keeps the level
    # Neither Prefect nor SQLite creates missing directories. If this fails, the flow reports it before it starts.
    with suppress(OSError):
        for directory in (home / "prefect", home / "mlflow"):
            directory.mkdir(parents=True, exist_ok=True)


def _temporary_password() -> str:
    """Returns the password of the temporary server that Prefect starts for a flow if no server is configured."""
    given = [os.environ[name] for name in AUTH_STRINGS if os.environ.get(name)]
    if given:
        return given[0]
    try:
        return home_password()
    except (OSError, ValueError):  # the file cannot be written or is damaged: a password for this flow alone will do
        return f"medpix:{secrets.token_urlsafe(32)}"


def _prefect_is_configured() -> bool:
    """Returns whether one of Prefect's files names an API: then PREFECT_HOME and the passwords must stay unset."""
    profiles = _toml(Path("~/.prefect/profiles.toml").expanduser())
    active = profiles.get("profiles", {}).get(os.environ.get("PREFECT_PROFILE") or profiles.get("active"), {})
    here = (_toml(Path("prefect.toml")), _toml(Path("pyproject.toml")).get("tool", {}).get("prefect", {}))
    variables = Path(".env")
    in_variables = variables.is_file() and API_URL in variables.read_text(encoding="utf-8", errors="replace")
    return API_URL in active or any("url" in settings.get("api", {}) for settings in here) or in_variables


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
