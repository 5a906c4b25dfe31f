"""A mirror of the hub (HF_ENDPOINT) cannot make its client write outside of the cache, whatever it answers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from vlm_core import hub

COMMIT, AWAY = "a" * 40, "../../../../VICTIM"
HONEST = {"sha": COMMIT, "etag": "e" * 40, "sha256": "", "file": "x.jsonl", "header": COMMIT}
CONTENT = b'{"image": "x"}\n'


class Mirror:
    """A hub that lies about one thing."""

    def __init__(self) -> None:
        self.says = dict(HONEST)
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        says = self.says
        lfs = {"oid": says["sha256"], "sha256": says["sha256"], "size": len(CONTENT), "pointerSize": 1}
        entry = {"rfilename": says["file"], "size": len(CONTENT)} | ({"lfs": lfs} if says["sha256"] else {})
        if "/tree/" in request.path:
            body = json.dumps([{"type": "file", "path": says["file"], "size": len(CONTENT), "oid": "e" * 40}]).encode()
        elif "/api/" in request.path:
            body = json.dumps({"id": "a/b", "sha": says["sha"], "siblings": [entry]}).encode()
        else:
            body = CONTENT
        request.send_response(200)
        for name, value in {
            "Content-Type": "application/json",
            "X-Repo-Commit": says["header"],
            "ETag": f'"{says["etag"]}"',
            "Content-Length": str(len(body)),
        }.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror that the hub's client asks, with a cache in `tmp_path`."""
    served = Mirror()
    address = f"http://127.0.0.1:{served.server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "deep" / "in" / "hf" / "hub"))
    monkeypatch.setattr(hub, "WAITS", ())
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_an_honest_mirror_is_used(mirror: Mirror) -> None:
    snapshot = hub.download("a/b", "dataset", None, ["*.jsonl"])
    assert snapshot.name == COMMIT
    assert (snapshot / "x.jsonl").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("lie", "value"),
    [
        *(("sha", value) for value in (AWAY, "", "main", "A" * 40, "a" * 39, "/tmp/VICTIM")),
        *(("etag", value) for value in (AWAY, "/tmp/VICTIM", "..", "a/b")),
        *(("sha256", value) for value in (AWAY, "/tmp/VICTIM", "b" * 63)),
        ("file", "../../../../VICTIM.jsonl"),
        ("header", AWAY),
    ],
)
def test_a_mirror_that_lies_writes_nothing_outside_of_the_cache(
    mirror: Mirror, tmp_path: Path, lie: str, value: str
) -> None:
    mirror.says[lie] = value
    with pytest.raises((ValueError, hub.HubBusyError)):
        hub.download("a/b", "dataset", None, ["*.jsonl"])
    cache = Path(constants.HF_HUB_CACHE)
    written = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    assert all(path.is_relative_to(cache) for path in written)
    assert not Path("/tmp/VICTIM").exists()


def test_a_dishonest_commit_is_named(mirror: Mirror) -> None:
    mirror.says["sha"] = AWAY
    with pytest.raises(ValueError, match=r"names '\.\./.*as the commit of a/b, which is not one: check HF_ENDPOINT"):
        hub.current_commit("a/b", "dataset", None)
