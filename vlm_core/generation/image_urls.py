"""Reads images from URLs: only by https, only from public addresses, within limits of size and time.

Otherwise, users could make a service read its own network (OWASP's server-side request forgery), wait without end, or
fill its memory. The environment's proxies are not used: a proxy looks up names itself, so their addresses could not be
checked here.
"""

from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from vlm_core.generation.public_network import Deadline, PublicNetwork

MAX_BYTES = 50_000_000
MAX_SECONDS = 30.0
MAX_REDIRECTS = 5
# A compressed reply would be unpacked to any size. Images are compressed already.
HEADERS = {"Accept-Encoding": "identity"}


def read_image_url(url: str, *, any_address: bool = False) -> bytes:
    """Returns the content of `url`; `any_address` also allows http and private addresses.

    Raises ValueError for an address that is not allowed, that does not answer, or that sends too much or too slowly.
    """
    here = url
    try:
        with _client(any_address) as client:
            for _ in range(MAX_REDIRECTS + 1):
                _require_scheme(here, any_address)
                with client.stream("GET", here) as response:
                    if not response.has_redirect_location:
                        return _read(response)
                    here = urljoin(here, response.headers["location"])
    except httpx.TimeoutException:
        raise ValueError(f"cannot read {_shown(url)}: it took more than {MAX_SECONDS:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise ValueError(f"cannot read {_shown(url)}: {error or type(error).__name__}") from None
    raise ValueError(f"cannot read {_shown(url)}: more than {MAX_REDIRECTS} redirects")


def _client(any_address: bool) -> httpx.Client:
    """Returns a client on `PublicNetwork`, which httpx takes from httpcore's pool of connections."""
    transport = httpx.HTTPTransport()
    context = httpx.create_ssl_context()
    network = PublicNetwork(Deadline(MAX_SECONDS), any_address)  # last: the clock starts here
    transport._pool = httpcore.ConnectionPool(context, network_backend=network)
    return httpx.Client(transport=transport, headers=HEADERS, timeout=None, trust_env=False)


def _require_scheme(url: str, any_address: bool) -> None:
    parts = urlsplit(url)
    allowed = ("https", "http") if any_address else ("https",)
    if parts.scheme not in allowed or not parts.hostname:
        remedy = "" if any_address else "; --allow-any-url also reads by http"
        raise ValueError(f"{_shown(url)} is not allowed: images are only read by {' or '.join(allowed)}{remedy}")


def _read(response: httpx.Response) -> bytes:
    """Returns the body as it was sent; raises ValueError if it is an error's, compressed, or too large."""
    if not response.is_success:
        raise ValueError(f"its server answers {response.status_code} {response.reason_phrase}")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise ValueError(f"it is compressed (content-encoding: {encoding!r}), which was not asked for")
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return bytes(content)


def _shown(url: str) -> str:
    """Returns `url` for an error: without its password, and on one line."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    shown = parts._replace(netloc=f"***@{host}" if "@" in parts.netloc else host).geturl()
    return shown if shown.isprintable() else repr(shown)
