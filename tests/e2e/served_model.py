"""Checks a model that `mlflow models serve` serves: its answers, and its replies to bad requests."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.services import ROOT, answers, free_port, started_process, wait_until


def check_served_model(
    served: dict[str, str], uri: str, asked: dict[str, str], answer: dict[str, Any], log: Path
) -> None:
    """Checks that the model at `uri` gives `answer`, with its confidence, over HTTP to the row `asked`."""
    port = free_port()
    words = ("--model-uri", uri, "--env-manager", "local", "--host", "127.0.0.1", "--port", port)
    # mlflow starts uvicorn by name, so PATH is that of an activated environment.
    active = served | {"PATH": f"{Path(sys.executable).parent}:{served['PATH']}"}
    server = started_process("mlflow", "models", "serve", *words, environment=active, log=log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/ping"), f"the model is served, see {log}")
        body = {"dataframe_records": [asked], "params": {"max_new_tokens": 8}}
        reply = httpx.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)
        assert reply.json() == {"predictions": [answer]}, reply.text
        check_refusals(f"http://127.0.0.1:{port}/invocations", asked)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def check_refusals(url: str, asked: dict[str, str]) -> None:
    """Checks that bad requests are refused, and that no reply shows a stack trace or a path of the server."""
    rows = {"dataframe_records": [asked]}
    bodies: list[tuple[str, str, int]] = [
        (json.dumps(rows | {"params": {"max_new_tokens": 10**9}}), "between 1 and 1024", 400),
        (json.dumps({"dataframe_records": [asked] * 65}), "between 1 and 64", 400),
        (json.dumps({"dataframe_records": [asked | {"image": "/etc/passwd"}]}), "row 0: ", 400),
        (json.dumps({"dataframe_records": [asked | {"question": "\ud800"}]}), "", 400),
        (json.dumps({"dataframe_records": []}), "", 400),
        ("{", "JSON", 400),
    ]
    for body, reason, status in bodies:
        reply = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=60)
        assert (reply.status_code, reason in reply.text) == (status, True), reply.text
        assert "Traceback" not in reply.text
        assert "stack_trace" not in reply.text
        assert str(ROOT) not in reply.text
    table = httpx.post(url, content='a,"b\nc', headers={"content-type": "text/csv"}, timeout=60)
    assert (table.status_code, "Traceback" in table.text) == (400, False), table.text
