"""Images by address: what is allowed is read, and nothing else is asked for."""

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vlm_core.generation import image_urls, public_network
from vlm_core.generation.image_urls import read_image_url
from vlm_core.generation.public_network import is_public

BOMB = gzip.compress(gzip.compress(bytes(10_000_000)))


class Handler(BaseHTTPRequestHandler):
    """Answers by what the path asks for: `/image` gets bytes, `/slow` never ends, `/drip` never ends its headers."""

    asked: list[str] = []
    encodings: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.encodings.append(self.headers["accept-encoding"])
        targets = {"/loop": "/loop", "/moved": "/image", "/inside": "https://localhost/secret", "/file": "file:///x"}
        self.send_response(302 if self.path in targets else 404 if self.path == "/none" else 200)
        if target := targets.get(self.path):
            self.send_header("location", target)
        if self.path == "/drip":
            self._drip(b"X: ")
        if self.path == "/bomb":
            self.send_header("content-encoding", "gzip, gzip")
        self.end_headers()
        if self.path not in targets:
            self.wfile.write(BOMB if self.path == "/bomb" else b"bytes")
            if self.path == "/slow":
                self._drip(b"")

    def _drip(self, start: bytes) -> None:
        self.flush_headers()
        for byte in [start, *[b"a"] * 60]:
            self.wfile.write(byte)
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_allowed_address_is_read(server: str) -> None:
    assert read_image_url(f"{server}/image", any_address=True) == b"bytes"
    assert read_image_url(f"{server}/moved", any_address=True) == b"bytes"


@pytest.mark.parametrize("path", ["none", "loop"])
def test_what_does_not_answer_is_said(server: str, path: str) -> None:
    with pytest.raises(ValueError, match=f"cannot read .*/{path}"):
        read_image_url(f"{server}/{path}", any_address=True)


def test_the_size_is_limited_and_nothing_is_unpacked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is compressed .*gzip, gzip"):
        read_image_url(f"{server}/bomb", any_address=True)
    assert set(Handler.encodings) == {"identity"}
    monkeypatch.setattr(image_urls, "MAX_BYTES", 4)
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_image_url(f"{server}/image", any_address=True)


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_one_deadline_holds_for_headers_and_body(server: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "MAX_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"took more than 0\.3 s"):
        read_image_url(f"{server}/{path}", any_address=True)
    assert time.monotonic() - started < 2.5  # 3 s of drops


def test_the_deadline_holds_for_the_resolver_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(public_network.socket, "getaddrinfo", lambda *a, **k: time.sleep(1) or [])
    with pytest.raises(ValueError, match=r"slow.example was not found within 0\.2 s|took more than 0\.2 s"):
        read_image_url("https://slow.example/x")


# Of each special range in IANA's registries one address, and what clouds keep for themselves.
PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.9.9.9 169.254.169.254 172.16.0.1 192.0.0.1
192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
168.63.129.16 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:93.184.216.34 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
64:ff9b::5db8:d822 64:ff9b:1::a00:1 100::1 100:0:0:1::1 2001::1 2001:0:7f00:1:: 2001:2::1 2001:10::1 2001:20::1
2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fe80::1%eth0
fec0::1 ff02::1 4000::1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:21f:cb07::1", "2001:4860:4860::8888"])
def test_public_addresses_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["localhost", "10.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "[fec0::1]"]
)
def test_private_addresses_are_refused(host: str) -> None:
    with pytest.raises(ValueError, match="has the private or special address"):
        read_image_url(f"https://{host}/x")


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public at the first look-up and private at the second gets the first address alone."""
    answers, connected = iter(["93.184.216.34", "127.0.0.1"]), []

    def look_up(*arguments: Any, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), 443))]

    def connect(address: tuple[str, int], *arguments: Any, **options: Any) -> None:
        connected.append(address[0])
        raise OSError("no network in tests")

    monkeypatch.setattr(public_network.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(public_network.socket, "create_connection", connect)
    with pytest.raises(ValueError, match="no network in tests"):
        read_image_url("https://rebound.example/x")
    assert connected == ["93.184.216.34"]


@pytest.mark.parametrize("url", ["http://example.org/x", "file:///etc/passwd", "ftp://example.org/x", "https:///x"])
def test_https_alone_is_read(url: str) -> None:
    with pytest.raises(ValueError, match="only read by https"):
        read_image_url(url)


def test_a_redirect_is_checked_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "_require_scheme", lambda url, any_address: None)
    monkeypatch.setattr(public_network, "is_public", lambda address: address == "127.0.0.1" and not Handler.asked)
    with pytest.raises(ValueError, match="localhost has the private or special address"):
        read_image_url(f"{server}/inside")
    assert Handler.asked == ["/inside"]


def test_a_redirect_to_another_scheme_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match="file:///x is not allowed"):
        read_image_url(f"{server}/file", any_address=True)


def test_proxies_and_passwords_stay_out(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert read_image_url(f"{server}/image", any_address=True) == b"bytes"
    with pytest.raises(ValueError, match=r"cannot read http://\*\*\*@127") as error:
        read_image_url(f"{server}/none".replace("//", "//me:secret@"), any_address=True)
    assert "secret" not in str(error.value)
