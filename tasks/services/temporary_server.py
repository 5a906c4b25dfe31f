"""Gives the temporary server that Prefect starts for a flow a password, and ends it with the flow's process.

Prefect itself stops the server only when the flow's process exits. After SIGKILL the server would stay, with 200 MB and
an open port.
"""

import os
import subprocess
import sys
from typing import Any

from prefect.settings import PREFECT_API_URL, get_current_settings

from tasks.services.prefect_server import APP, ORIGINS, PARENT, SERVER_ENVIRONMENT, own_origins


def guard_temporary_server() -> None:
    """Makes Prefect start its temporary server with our app; does nothing if a server is configured."""
    if not PREFECT_API_URL.value():
        from prefect.server.api.server import SubprocessASGIServer  # lazy: takes seconds

        setattr(SubprocessASGIServer, "_run_uvicorn_command", _start)  # noqa: B010


def _start(server: Any) -> subprocess.Popen[bytes]:
    """Starts the server as Prefect's own method does, except for the app and its environment."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    environment = SERVER_ENVIRONMENT | {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    environment |= {PARENT: str(os.getpid()), ORIGINS: own_origins(server.port)}
    words = ("--host", "127.0.0.1", "--port", str(server.port), "--log-level", "error", "--lifespan", "on")
    command = [sys.executable, "-m", "uvicorn", *APP, *words]
    return subprocess.Popen(command, env=os.environ | settings | environment)
