"""Connects only to public addresses, with one deadline: the network layer of `image_urls`.

A name is looked up once for each connection, so that the checked address is the one that is used.
"""

import ipaddress
import queue
import socket
import ssl
import threading
import time
from typing import Any

import httpcore

# Ranges that `ipaddress` calls global, although no image can be meant there.
_SPECIAL_IPV4 = (
    ipaddress.ip_network("192.0.0.0/24"),  # IETF protocol assignments (RFC 6890); Oracle's metadata among them
    ipaddress.ip_network("192.88.99.0/24"),  # relays of 6to4, deprecated by RFC 7526
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's platform (learn.microsoft.com names it)
)
# IANA allocates public addresses from this range alone. Outside are NAT64 (RFC 6052, RFC 8215), IPv4 addresses written
# as IPv6 (RFC 4291), site-local (fec0::/10, RFC 3879) and unique local ones (RFC 4193), and segment ids (RFC 9602).
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_SPECIAL_IPV6 = (
    ipaddress.ip_network("2001::/23"),  # IETF protocol assignments, Teredo and ORCHID among them (RFC 2928, 4380, 7343)
    ipaddress.ip_network("2001:db8::/32"),  # documentation (RFC 3849)
    ipaddress.ip_network("2002::/16"),  # 6to4 (RFC 3056)
    ipaddress.ip_network("3fff::/20"),  # documentation (RFC 9637)
)


def is_public(address: str) -> bool:
    """Returns whether an IP address is one of the public internet, by IANA's registries of special addresses.

    >>> is_public("93.184.216.34"), is_public("169.254.169.254"), is_public("64:ff9b::5db8:d822")
    (True, False, False)
    """
    ip = ipaddress.ip_address(address)
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _SPECIAL_IPV4)
    return ip in _GLOBAL_IPV6 and not any(ip in network for network in _SPECIAL_IPV6)


class Deadline:
    """The moment by which a whole download must be finished."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Returns the seconds that are left; raises ValueError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise ValueError(f"it took more than {self.seconds:g} s")
        return left


class PublicNetwork(httpcore.NetworkBackend):
    """Opens connections before a deadline: only to public addresses, unless `any_address`."""

    def __init__(self, deadline: Deadline, any_address: bool) -> None:
        self.deadline, self.any_address, self._sockets = deadline, any_address, httpcore.SyncBackend()

    def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        """Returns a connection to the first address of `host` that answers; raises ValueError for a private one."""
        addresses = self._look_up(host, port)
        private = [address for address in addresses if not (self.any_address or is_public(address))]
        if private:
            raise ValueError(
                f"{host} has the private or special address {private[0]}; --allow-any-url reads from there too"
            )
        for address in addresses[:-1]:
            try:
                return self._connect(address, port)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connect(addresses[-1], port)

    def _connect(self, address: str, port: int) -> httpcore.NetworkStream:
        return BoundedStream(self._sockets.connect_tcp(address, port, self.deadline.left()), self.deadline)

    def _look_up(self, host: str, port: int) -> list[str]:
        """Returns the addresses of a name, looked up in a thread because the system's resolver has no time limit."""
        answers: queue.Queue[list[str] | OSError] = queue.Queue()

        def ask() -> None:
            try:
                found = socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)
                answers.put(list(dict.fromkeys(str(address[0]) for *_, address in found)))
            except (OSError, UnicodeError) as error:
                answers.put(OSError(str(error)))

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=self.deadline.left())
        except queue.Empty:
            raise ValueError(f"{host} was not found within {self.deadline.seconds:g} s") from None
        if isinstance(answer, OSError):
            raise answer
        return answer


class BoundedStream(httpcore.NetworkStream):
    """A connection whose reads and writes together end before a deadline, however few bytes arrive at a time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Returns what has arrived."""
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Sends `buffer`."""
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Returns the connection with TLS."""
        return BoundedStream(
            self._stream.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        """Returns what httpcore asks of a connection."""
        return self._stream.get_extra_info(info)
