"""A stub of Weights & Biases on loopback: answers the requests of wandb 0.29, and records them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER = {"entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "P", "name": "medpix", "entity": {"id": "E", "name": "me"}}


@dataclass
class WandbServer:
    """Accepts everything while its `status` is 200; set 401 for a server that rejects the key."""

    status: int = 200
    url: str = ""
    runs: list[str] = field(default_factory=list)  # ids of runs that were started or resumed
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """Records a request, and returns the answer."""
        if path.endswith("/file_stream"):
            rows = request.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.history += map(json.loads, rows)
            self.exit_codes += [request["exitcode"]] if request.get("complete") else []
            return {}
        return {"data": self._data(request.get("operationName"), request.get("variables", {}))}

    def _data(self, operation: str | None, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            self.runs += [variables["name"]] if variables["name"] else []
            bucket = {"id": "B", "name": variables["name"], "config": "{}", "historyLineCount": 0, "project": PROJECT}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        files = {"runID": "B", "uploadHeaders": [], "files": []}
        return {"viewer": USER, "serverInfo": {"features": []}, "model": None, "createRunFiles": files}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Runs a server during the block, and yields it."""
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            works = state.status == 200
            request = json.loads(body) if "json" in self.headers.get("Content-Type", "") else {}
            answer = json.dumps(state.answer(self.path, request) if works else {}).encode()
            self.send_response(state.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()
