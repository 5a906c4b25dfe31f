"""A hub on loopback for `huggingface_hub` and `datasets` (through `HF_ENDPOINT`) that can fail on demand.

It works like the real hub. Large files (Git LFS) are identified by sha256, and redirected to a storage server with
another origin, which uses no tokens. All other files are identified by git hash, and sent by the hub itself.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NAME = r"(?P<name>[^/]+/[^/]+)"
API = re.compile(
    rf"/api/(datasets|models)/{NAME}(/(?P<view>revision|tree|paths-info)/(?P<revision>[^/]+)/?(?P<path>.*))?"
)
REFUSED = b'{"error": "Invalid credentials in Authorization header"}'
PUSH = re.compile(r"/api/models/[^/]+/[^/]+/(preupload|commit)/main|/[^/]+/[^/]+\.git/info/lfs/objects/batch")
RESOLVE = re.compile(rf"(/datasets)?/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
STORAGE = re.compile(rf"/storage/{NAME}/(?P<revision>[^/]+)/(?P<path>.+)")
LARGE = (".parquet", ".safetensors")  # .gitattributes has these in Git LFS


@dataclass(frozen=True)
class Request:
    """A request of a client."""

    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class Fault:
    """A fault for the next `times` requests whose path contains `path`: an error status, or a body that stops."""

    path: str
    times: int = 1
    status: int | None = None  # answer with this status and `headers`
    headers: dict[str, str] | None = None
    after: int | None = None  # or stop the body after this many bytes
    reset: bool = False  # then reset the connection instead of closing it
    until: threading.Event | None = None  # or resume the body when this is set


class Hub:
    """The state of the hub: repositories, the requests so far, and the faults to come."""

    def __init__(self) -> None:
        self.repositories: dict[
            str, dict[str, dict[str, bytes]]
        ] = {}  # name -> commit, oldest first -> path -> content
        self.requests: list[Request] = []
        self.uploaded: dict[str, bytes] = {}  # sha256 -> content of large files that wait for their commit
        self.token: str | None = None  # the only valid token; None: every token is valid
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.url = self.storage_url = ""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def commit(self, name: str, directory: Path) -> str:
        """Commits the files of `directory` to the branch `main` of a repository, and returns the commit."""
        files = {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
        commits = self.repositories.setdefault(name, {})
        identity = hashlib.sha1(f"{name} {len(commits)}".encode())
        for path, content in files.items():
            identity.update(f"{path} {_sha256(content)}".encode())
        commits[identity.hexdigest()] = files
        return identity.hexdigest()

    def receive(self, name: str, lines: list[dict[str, Any]]) -> str:
        """Commits what a client pushed, as the lines of its request, and returns the commit."""
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.uploaded[value["oid"]]
        commits = self.repositories[name]
        commit = hashlib.sha1(f"{name} {len(commits)} {sorted(files)}".encode()).hexdigest()
        commits[commit] = files
        return commit

    def refuse(self, status: int, *, times: int = 1, path: str = "", headers: dict[str, str] | None = None) -> None:
        """Answers the next `times` requests whose path contains `path` with `status`."""
        self._faults.append(Fault(path, times, status=status, headers=headers))

    def cut(self, path: str, *, after: int, reset: bool = False) -> None:
        """Closes (or resets) the connection after `after` bytes of the file's next body, once."""
        self._faults.append(Fault(path, after=after, reset=reset))

    def hold(self, path: str, *, after: int) -> threading.Event:
        """Pauses after `after` bytes of the file's next body, until the returned event is set."""
        event = threading.Event()
        self._faults.append(Fault(path, after=after, until=event))
        return event

    @property
    def bodies(self) -> list[Request]:
        """The requests for contents of files."""
        return [r for r in self.requests if r.method == "GET" and re.search("/resolve/|/storage/", r.path)]

    def take_fault(self, path: str, *, body: bool) -> Fault | None:
        """Returns the next fault for a request, or for its body, and counts it; None if there is none."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.path in path and body == (fault.status is None):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[Hub]:
    """Serves directories as repositories "owner/name", both as datasets and as models."""
    hub = Hub()
    for name, directory in repositories.items():
        hub.commit(name, directory)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as front,
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as storage,
    ):
        for server in (front, storage):
            server.daemon_threads = True  # a paused body does not delay the end of the test
            server.block_on_close = False
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in (front, storage))
        yield hub
        front.shutdown()
        storage.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Answers one client, in HTTP/1.1 so that the client notices a short body."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        authorization, asked_range = self.headers["authorization"], self.headers["range"]
        self.hub.requests.append(Request(self.command, path, authorization, asked_range))
        body = self._body()
        fault = self.hub.take_fault(path, body=False)
        if fault is not None and fault.status is not None:
            self._send(fault.status, b"", fault.headers)
        elif path.startswith("/uploaded/"):
            self.hub.uploaded[path.removeprefix("/uploaded/")] = body
            self._send(200, b"")
        elif path in ("/api/repos/create", "/api/validate-yaml") or PUSH.fullmatch(path):
            self._push(path, body)
        elif found := STORAGE.fullmatch(path):
            self._send_file(**found.groupdict())
        elif found := RESOLVE.fullmatch(path) or API.fullmatch(path):
            self._answer(found.groupdict(), parse_qs(url.query) | parse_qs(body.decode()))
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_POST = do_PUT = do_GET

    def _body(self) -> bytes:
        """Returns the body of the request, which may come in chunks."""
        if self.headers["transfer-encoding"] != "chunked":
            return self.rfile.read(int(self.headers["content-length"] or 0))
        body = bytearray()
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return bytes(body)

    def _push(self, path: str, body: bytes) -> None:
        """Answers the requests of a push. Only who has the valid token may write."""
        hub = self.hub
        if self.headers["authorization"] != f"Bearer {hub.token}":
            self._send(401, REFUSED)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            hub.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            self._send(200, json.dumps({"url": f"{hub.url}/{name}", "name": name, "id": name}).encode())
        elif path == "/api/validate-yaml":
            self._send(200, b"{}")
        elif path.endswith("/preupload/main"):
            sizes = {
                file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in json.loads(body)["files"]
            }
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in sizes.items()]
            self._send(200, json.dumps({"files": files}).encode())
        elif path.endswith("/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.storage_url}/uploaded/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._send(200, json.dumps({"transfer": "basic", "objects": objects}).encode())
        else:
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            commit = hub.receive(name, [json.loads(line) for line in body.splitlines()])
            url = f"{hub.url}/{name}/commit/{commit}"
            self._send(200, json.dumps({"commitOid": commit, "commitUrl": url, "success": True}).encode())

    def _answer(self, asked: dict[str, Any], options: dict[str, list[str]]) -> None:
        """Answers requests to the hub itself, which may need a token."""
        hub, name = self.hub, asked["name"]
        sent = self.headers["authorization"]
        known = sent is not None and (hub.token is None or sent == f"Bearer {hub.token}")
        if sent and not known:
            self._send(401, REFUSED)
        elif name not in hub.repositories or (name in hub.private and not known):
            self._refuse(404 if known else 401, "RepoNotFound")
        elif asked["revision"] not in (None, "main", *hub.repositories[name]):
            self._refuse(404, "RevisionNotFound")
        elif "view" in asked:
            commit = self._commit(name, asked["revision"])
            view = {"tree": _tree, "paths-info": _paths_info}.get(asked["view"], _info)
            files = hub.repositories[name][commit]
            answer = view(files, asked["path"] or "", options, {"id": name, "sha": commit})
            self._send(200, json.dumps(answer).encode())
        elif name in hub.gated:  # only the files are protected: anyone can list them
            self._refuse(403 if known else 401, "GatedRepo")
        else:
            self._resolve(name, self._commit(name, asked["revision"]), asked["path"])

    def _commit(self, name: str, revision: str | None) -> str:
        if revision is None or revision == "main":
            return [*self.hub.repositories[name]][-1]
        return revision

    def _resolve(self, name: str, commit: str, path: str) -> None:
        content = self.hub.repositories[name][commit].get(path)
        if content is None:
            self._refuse(404, "EntryNotFound")
        elif path.endswith(LARGE):
            linked = {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            location = f"{self.hub.storage_url}/storage/{name}/{commit}/{path}"
            self._send(302, b"", {"X-Repo-Commit": commit, "Location": location} | linked)
        else:
            self._send_file(name, commit, path)

    def _send_file(self, name: str, revision: str, path: str) -> None:
        """Sends a file, or its end if the request has a range."""
        content = self.hub.repositories[name][revision][path]
        headers = {"X-Repo-Commit": revision, "ETag": f'"{_etag(path, content)}"', "Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["range"] or "")
        if found is None:
            self._send(200, content, headers, fault=self._body_fault(path))
            return
        first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers, fault=self._body_fault(path))

    def _body_fault(self, path: str) -> Fault | None:
        return self.hub.take_fault(path, body=True) if self.command == "GET" else None

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: fault.after])
        if fault.until is not None:
            fault.until.wait()
        elif fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""


def _info(files: dict[str, bytes], path: str, options: dict[str, list[str]], names: dict[str, str]) -> Any:
    entries = [_entry(path, content) for path, content in files.items()]
    return names | {
        "siblings": [
            {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
            | ({"lfs": entry["lfs"] | {"sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {})
            for entry in entries
        ]
    }


def _tree(files: dict[str, bytes], path: str, options: dict[str, list[str]], names: dict[str, str]) -> Any:
    prefix = f"{path}/" if path else ""
    below = {name: content for name, content in files.items() if name.startswith(prefix)}
    if options.get("recursive") == ["true"]:
        return _directories(below) + [_entry(name, content) for name, content in below.items()]
    return [e for e in _tree(files, path, {"recursive": ["true"]}, names) if "/" not in e["path"][len(prefix) :]]


def _paths_info(files: dict[str, bytes], path: str, options: dict[str, list[str]], names: dict[str, str]) -> Any:
    return [entry for entry in _tree(files, "", {"recursive": ["true"]}, names) if entry["path"] in options["paths"]]


def _directories(files: dict[str, bytes]) -> list[dict[str, Any]]:
    names = {str(parent) for name in files for parent in Path(name).parents if parent != Path()}
    return [{"type": "directory", "path": name, "oid": _sha1(name.encode()), "size": 0} for name in sorted(names)]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _sha1(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _etag(path: str, content: bytes) -> str:
    return _sha256(content) if path.endswith(LARGE) else _sha1(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha1(content: bytes) -> str:
    """Returns git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
