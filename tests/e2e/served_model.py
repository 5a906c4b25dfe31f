"""A registered model behind `mlflow models serve`, and what a caller over HTTP gets from it."""

import os
import signal
import sys
from pathlib import Path

import httpx

from tests.e2e.services import answers, free_port, started_process, wait_until


def check_served_model(served: dict[str, str], uri: str, asked: dict[str, str], answer: str, log: Path) -> None:
    """Checks that the model at `uri` gives `answer` over HTTP to the row `asked`."""
    port = free_port()
    words = ("--model-uri", uri, "--env-manager", "local", "--host", "127.0.0.1", "--port", port)
    # It starts uvicorn by name, as in an environment that is active.
    active = served | {"PATH": f"{Path(sys.executable).parent}:{served['PATH']}"}
    server = started_process("mlflow", "models", "serve", *words, environment=active, log=log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/ping"), f"the model is served, see {log}")
        body = {"dataframe_records": [asked], "params": {"max_new_tokens": 8}}
        reply = httpx.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)
        assert reply.json() == {"predictions": [answer]}, reply.text
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
