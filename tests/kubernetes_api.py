"""A stub of Kubernetes' API: it stores Jobs, validates manifests against the published schemas, and runs the pods.

A pod is a process on this machine with the container's command, in which this machine's address replaces pod names.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.e2e.services import free_port

JOBS = "/apis/batch/v1/namespaces/lab/jobs"
SERVICES, PODS = (f"/api/v1/namespaces/lab/{kind}" for kind in ("services", "pods"))


class Pods:
    """The processes of a Job, one per index."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        name, port = manifest["metadata"]["name"], free_port()
        given = {entry["name"]: entry.get("value", "127.0.0.1") for entry in container["env"]}
        command = [word.replace(f"{name}-0.{name}:29400", f"127.0.0.1:{port}") for word in container["command"]]
        command = [word.replace("$(POD_ADDRESS)", "127.0.0.1").replace("$$(", "$(") for word in command]
        command = [sys.executable if word == "python" else word for word in command]
        self.processes = [
            subprocess.Popen(command, env=os.environ | given | {"JOB_COMPLETION_INDEX": str(index)})
            for index in range(manifest["spec"]["completions"])
        ]

    def status(self) -> dict[str, Any]:
        """Returns the Job's status."""
        codes = [process.poll() for process in self.processes]
        if None in codes:
            return {"active": codes.count(None)}
        reason = {"type": "Complete"} if not any(codes) else {"type": "Failed", "reason": "BackoffLimitExceeded"}
        return {"conditions": [reason | {"status": "True"}]}

    def phases(self) -> list[str]:
        """Returns the phase of each pod."""
        return ["Running" if process.poll() is None else "Succeeded" for process in self.processes]

    def end(self) -> None:
        """Sends SIGTERM to all processes, as a kubelet does, and waits for their end."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)


class Api:
    """The state of the server: manifests by path, and the pods of Jobs."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pods] = {}
        self.requests: list[str] = []
        self.down = False

    def create(self, path: str, manifest: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
        at = f"{path}/{manifest['metadata']['name']}"
        if at in self.objects:
            return 409, {"reason": "AlreadyExists"}
        manifest["metadata"] |= {"uid": f"uid-{len(self.objects)}", "namespace": "lab"}
        self.objects[at] = manifest
        if path == JOBS:
            self.pods[at] = Pods(manifest)
        return 201, manifest

    def read(self, path: str) -> tuple[int, dict[str, Any]]:
        if path == "/version/":
            keys = ("major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler")
            return 200, dict.fromkeys((*keys, "platform"), "1")
        if path == PODS:
            phases = [phase for pods in self.pods.values() for phase in pods.phases()]
            return 200, {"kind": "PodList", "items": [{"status": {"phase": phase}} for phase in phases]}
        if path not in self.objects:
            return 404, {"reason": "NotFound"}
        return 200, self.objects[path] | {"status": self.pods[path].status()}

    def delete(self, path: str) -> tuple[int, dict[str, Any]]:
        if path not in self.objects:
            return 404, {"reason": "NotFound"}
        self.pods.pop(path).end()
        uid = self.objects.pop(path)["metadata"]["uid"]
        for name, found in list(self.objects.items()):
            if uid in [owner["uid"] for owner in found["metadata"].get("ownerReferences", [])]:
                del self.objects[name]
        return 200, {"kind": "Status", "status": "Success"}


@contextmanager
def kubernetes_api(kubeconfig: Path) -> Iterator[Api]:
    """Runs the API, writes a `kubeconfig` for it, and yields the API."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = self.path.partition("?")[0]
            api.requests.append(f"{self.command} {path}")
            calls = {"POST": lambda: api.create(path, body), "GET": lambda: api.read(path)}
            code, found = (503, {"reason": "down"}) if api.down else calls.get(self.command, lambda: api.delete(path))()
            text = json.dumps(found).encode()
            self.send_response(code, found.get("reason"))
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *arguments: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kubeconfig.write_text(_kubeconfig(f"http://127.0.0.1:{server.server_port}"))
        yield api
        server.shutdown()
        for pods in api.pods.values():
            pods.end()


def _kubeconfig(address: str) -> str:
    named = {"cluster": {"server": address}, "user": {}, "context": {"cluster": "lab", "user": "lab"}}
    entries = {f"{kind}s": [{"name": "lab", kind: value}] for kind, value in named.items()}
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "lab"} | entries)
