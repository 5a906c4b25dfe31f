"""Attacks on the servers of `make up` by a foreign page or program; each has to be refused."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.e2e.services import processes_of

EVIL = "evil.example"
REBINDING = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"  # option of Chromium: a foreign name leads to this machine
FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Host": "evil.example:4200"},
    {"Host": "localhost.evil.example"},
)
# With these requests a page could deploy a shell command as a pull step, and so run it on this machine.
STEPS = ("/flows/", "/work_pools/filter", "/deployments/", "/flow_runs/filter", "/flow_runs/", "/automations/filter")
SOCKETS = (
    "/events/in",
    "/events/out",
    "/logs/out",
    "/task_runs/subscriptions/scheduled",
    "/work_pools/medpix/workers/connect",
)
ATTACK = """
<body><script>
const attempt = (name, promise) => promise.then(
    async reply => { results[name] = reply.type === "opaque" ? "opaque" : (await reply.text()).slice(0, 80) },
    error => { results[name] = "refused" });
const results = {};
const socket = new Promise((opened, closed) => {
    const one = new WebSocket("PREFECT/events/in".replace("http", "ws"), ["prefect"]);
    one.onopen = () => opened({text: async () => "opened"});
    one.onerror = closed;
});
Promise.all([
    attempt("read", fetch("PREFECT/flow_runs/filter",
        {method: "POST", body: "{}", headers: {"content-type": "application/json"}})),
    attempt("simple", fetch("PREFECT/flows/", {method: "POST", body: '{"name": "by-a-page"}'})),
    attempt("blind", fetch("PREFECT/flows/",
        {method: "POST", mode: "no-cors", credentials: "include", body: '{"name": "blind"}'})),
    attempt("socket", socket),
    attempt("runs", fetch("MLFLOW/api/2.0/mlflow/experiments/search?max_results=9")),
    attempt("experiment", fetch("MLFLOW/api/2.0/mlflow/experiments/create",
        {method: "POST", mode: "no-cors", body: '{"name": "by-a-page"}'})),
]).then(() => { document.body.innerText = JSON.stringify(results); document.title = "done" });
</script></body>
"""


def check_foreign_requests(served: dict[str, str]) -> None:
    """Checks that requests with a foreign host or origin, or without the password, are refused."""
    prefect, mlflow = served["PREFECT_API_URL"], served["MLFLOW_TRACKING_URI"]
    password = tuple(served["PREFECT_API_AUTH_STRING"].split(":", 1))
    for step in STEPS:
        for headers in FOREIGN:  # the right password does not help a foreign page
            reply = httpx.post(f"{prefect}{step}", json={}, headers=headers, auth=password, timeout=60)
            assert (reply.status_code, "access-control-allow-origin" in reply.headers) == (403, False), (step, headers)
        for auth in (None, ("medpix", "wrong"), ("", "")):
            assert httpx.post(f"{prefect}{step}", json={}, auth=auth, timeout=60).status_code == 401, step
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{prefect}/flows/", headers=preflight, timeout=60).status_code == 403
    for headers in FOREIGN:
        reply = httpx.post(f"{mlflow}/api/2.0/mlflow/experiments/create", json={"name": "foreign"}, headers=headers)
        assert reply.status_code == 403, headers
    assert httpx.get(f"{prefect}/admin/version", auth=password, timeout=60).status_code == 200


def check_sockets(served: dict[str, str]) -> None:
    """Checks that no WebSocket of Prefect opens for a foreign page or without the password: an event starts runs."""
    address = served["PREFECT_API_URL"].replace("http", "ws", 1)
    for path in SOCKETS:
        by_page: tuple[str, dict[str, Any]] = (f"{address}{path}", {"origin": "https://evil.example"})
        there = socket.create_connection(("127.0.0.1", urlsplit(address).port))
        by_name = (f"{address.replace('127.0.0.1', 'evil.example')}{path}", {"sock": there})
        for where, options in (by_page, by_name):
            with pytest.raises(InvalidStatus) as refused, connect(where, **options):
                pass
            assert refused.value.response.status_code == 403
        with pytest.raises((ConnectionClosed, InvalidStatus)), connect(f"{address}{path}") as stream:
            stream.recv(timeout=30)
        with connect(f"{address}{path}", subprotocols=["prefect"]) as stream:
            stream.send(json.dumps({"type": "auth", "token": "medpix:wrong"}))
            with pytest.raises(ConnectionClosed):
                stream.recv(timeout=30)


@contextmanager
def page_of_another_origin(body: str) -> Iterator[str]:
    """Yields the address of a page of another name, for a browser with `REBINDING`."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{EVIL}:{server.server_port}/"
        server.shutdown()


def check_foreign_page(served: dict[str, str], browser: Browser) -> None:
    """Checks that a page of another origin reads and writes nothing, in a browser that is logged in to Prefect."""
    addresses = {"PREFECT": served["PREFECT_API_URL"], "MLFLOW": served["MLFLOW_TRACKING_URI"]}
    body = ATTACK
    for name, address in addresses.items():
        body = body.replace(name, address)
    context = browser.new_context()
    log_in(context.new_page(), served)
    with page_of_another_origin(body) as address:
        page = context.new_page()
        page.goto(address)
        page.wait_for_function("document.title === 'done'")
        results = json.loads(page.inner_text("body"))
    # A browser hides `no-cors` replies from a page. Whether they had an effect is checked below.
    seen = {name: result for name, result in results.items() if name not in ("blind", "experiment")}
    assert seen == dict.fromkeys(("read", "simple", "socket", "runs"), "refused"), results
    password = tuple(served["PREFECT_API_AUTH_STRING"].split(":", 1))
    flows = httpx.post(f"{addresses['PREFECT']}/flows/filter", json={}, auth=password, timeout=60).json()
    search = f"{addresses['MLFLOW']}/api/2.0/mlflow/experiments/search"
    experiments = httpx.get(search, params={"max_results": 100}, timeout=60).json()["experiments"]
    assert {entry["name"] for entry in [*flows, *experiments]} & {"by-a-page", "blind"} == set()
    context.close()


def check_rebound_name(served: dict[str, str], browser: Browser) -> None:
    """Checks that the servers show nothing under a foreign name that resolves to this machine."""
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        address = served[name].replace("127.0.0.1", "evil.example")
        page = browser.new_page()
        reply = page.goto(address.removesuffix("/api"))
        assert reply is not None
        assert reply.status == 403
        read = f"fetch('{address}/flows/filter', {{method: 'POST'}}).then(reply => reply.status)"
        assert page.evaluate(read) == 403
        page.close()


def log_in(page: Page, served: dict[str, str]) -> None:
    """Logs in to Prefect's pages as a person does, with the content of the password file."""
    page.goto(served["PREFECT_API_URL"].removesuffix("/api"))
    password = Path(served["MEDPIX_HOME"]) / "services" / "prefect-password"
    page.locator("input").first.fill(password.read_text().strip())
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard**")


def check_that_the_password_stays_secret(served: dict[str, str]) -> None:
    """Checks that no log, no list of processes and no file but its own has the password."""
    home = Path(served["MEDPIX_HOME"])
    password, own = served["PREFECT_API_AUTH_STRING"], home / "services" / "prefect-password"
    secret = password.partition(":")[2]
    assert (own.stat().st_mode & 0o777, own.read_text()) == (0o600, f"{password}\n")
    assert [process for process in processes_of(home) if secret in " ".join(process.cmdline())] == []
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink() and path != own]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
