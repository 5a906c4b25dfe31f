"""Images by address: https alone, from public addresses, within limits of size and time.

A service that fetches what its users name could otherwise be made to read its own network (OWASP's server-side request
forgery) or to wait and fill its memory without end.
"""

import ipaddress
import socket
import time
from urllib.parse import urljoin, urlsplit

import httpx

MAX_BYTES = 50_000_000
MAX_SECONDS = 30.0
MAX_REDIRECTS = 5


def read_image_url(url: str, *, any_address: bool = False) -> bytes:
    """Returns what lies at `url`; with `any_address` also by http, and from private addresses.

    Raises ValueError for an address that is not allowed, that does not answer, or that sends too much for too long.
    """
    deadline = time.monotonic() + MAX_SECONDS
    here = url
    try:
        with httpx.Client() as client:
            for _ in range(MAX_REDIRECTS + 1):
                if not any_address:
                    _require_public(here)  # each redirect again
                left = max(deadline - time.monotonic(), 0.1)
                with client.stream("GET", here, timeout=left) as response:
                    if response.has_redirect_location:
                        here = urljoin(here, response.headers["location"])
                        continue
                    response.raise_for_status()
                    return _read(response, url, deadline)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ValueError(f"cannot read {url}: {error or type(error).__name__}") from None
    raise ValueError(f"cannot read {url}: more than {MAX_REDIRECTS} redirects")


def _require_public(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{url} is not allowed: images are read by https alone; --allow-any-url lifts that")
    for *_, address in socket.getaddrinfo(parts.hostname, parts.port or 443, proto=socket.IPPROTO_TCP):
        # The certificate keeps a name that is looked up again, for the request, from leading to another host.
        if not ipaddress.ip_address(address[0]).is_global:
            raise ValueError(
                f"{url} is not allowed: {parts.hostname} has the private address {address[0]}; "
                "--allow-any-url lifts that"
            )


def _read(response: httpx.Response, url: str, deadline: float) -> bytes:
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_BYTES:
            raise ValueError(f"cannot read {url}: it has more than {MAX_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise ValueError(f"cannot read {url}: it took more than {MAX_SECONDS:.0f} s")
    return bytes(content)
