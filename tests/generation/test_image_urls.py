"""Images by address: what is allowed is read, and nothing else is asked for."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlm_core.generation import image_urls
from vlm_core.generation.image_urls import read_image_url


class Handler(BaseHTTPRequestHandler):
    """`/image` sends bytes, `/loop` redirects to itself, `/inside` to a private name, `/slow` never ends."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        target = {"/loop": "/loop", "/moved": "/image", "/inside": "https://localhost/secret"}.get(self.path)
        if target:
            self.send_response(302)
            self.send_header("location", target)
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        for _ in range(100 if self.path == "/slow" else 1):
            self.wfile.write(b"bytes")
            self.wfile.flush()
            if self.path == "/slow":
                time.sleep(0.05)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_allowed_address_is_read(server: str) -> None:
    assert read_image_url(f"{server}/image", any_address=True) == b"bytes"
    assert read_image_url(f"{server}/moved", any_address=True) == b"bytes"


@pytest.mark.parametrize("path", ["none", "loop"])
def test_what_does_not_answer_is_said(server: str, path: str) -> None:
    with pytest.raises(ValueError, match=f"cannot read .*/{path}"):
        read_image_url(f"{server}/{path}", any_address=True)


def test_size_and_time_are_limited(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "MAX_SECONDS", 0.3)
    with pytest.raises(ValueError, match="took more than"):
        read_image_url(f"{server}/slow", any_address=True)
    monkeypatch.setattr(image_urls, "MAX_BYTES", 4)
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_image_url(f"{server}/image", any_address=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/x",
        "https://10.0.0.1/x",
        "https://169.254.169.254/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
    ],
)
def test_private_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="has the private address"):
        read_image_url(url)


@pytest.mark.parametrize("url", ["http://example.org/x", "file:///etc/passwd", "ftp://example.org/x", "https:///x"])
def test_https_alone_is_read(url: str) -> None:
    with pytest.raises(ValueError, match="by https alone"):
        read_image_url(url)


def test_a_redirect_is_checked_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = image_urls._require_public
    monkeypatch.setattr(image_urls, "_require_public", lambda url: None if url.startswith(server) else check(url))
    with pytest.raises(ValueError, match="localhost has the private address"):
        read_image_url(f"{server}/inside")
    assert Handler.asked == ["/inside"]
