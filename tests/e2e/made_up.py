"""`make up` for tests: the services in a separate home, with a hub that has one dataset."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.e2e.services import SCHEDULER, command, free_port, processes_of, wait_until

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A hub that knows one dataset, and the commit that its default branch points to; it holds no files."""

    def do_GET(self) -> None:
        known = self.path.startswith("/api/datasets/lab/medical")
        body = json.dumps({"id": "lab/medical", "sha": COMMIT} if known else {"error": "Repository not found"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def hub() -> Iterator[str]:
    """Yields the address of the hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def services_up(home: Path, hub_address: str) -> Iterator[dict[str, str]]:
    """Yields the environment of a shell after `make up` and `eval "$(make env)"`; nothing is left of the services."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    ports = {"PREFECT_SERVER_API_PORT": free_port(), "MLFLOW_PORT": free_port()}
    environment = kept | ports | {"MEDPIX_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub_address}
    environment |= SCHEDULER
    up = command("tasks.services", "up", environment=environment)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        shown = re.findall(r"^waiting for (Prefect|MLflow) at .*: done in \d+ s$", up.stderr, re.MULTILINE)
        assert shown == ["Prefect", "MLflow"]
        # Of another shell, which does not know the ports.
        exported = command("tasks.services", "env", environment=kept | {"MEDPIX_HOME": str(home)})
        assert exported.returncode == 0, exported.stderr
        assert [line.strip() for line in up.stdout.splitlines() if "export " in line] == exported.stdout.splitlines()
        yield environment | evaluated(exported.stdout)
    finally:
        down = command("tasks.services", "down", environment=environment)
        assert down.returncode == 0, down.stdout + down.stderr
    wait_until(lambda: processes_of(home) == [], "no process is left", 20)
    assert "no services are running" in command("tasks.services", "status", environment=environment).stdout
    refused = command("tasks.services", "env", environment=environment)
    assert (refused.returncode, refused.stdout) == (1, "")


def evaluated(exports: str) -> dict[str, str]:
    """Returns what a shell has after `eval "$(make env)"`."""
    words = ["sh", "-c", 'eval "$0"; env -0', exports]
    shell = subprocess.run(words, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    found = dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if entry)
    return {name: found[name] for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_API_AUTH_STRING")}
