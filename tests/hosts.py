"""Simulates two hosts on one machine: two Linux namespaces with their own names and addresses, and a link between them.

The link can be cut. Both hosts see the same file system, as hosts with a shared mount do.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

INTERFACE = "eth0"  # the interface's name on both hosts
ADDRESSES = ("10.77.0.1", "10.77.0.2")
# For net.ipv4.tcp_retries2: a connection ends after 13 seconds without acknowledgement; after 15 minutes by default.
RETRIES = 5
AS_HOST = 'hostname "$0" && exec "$@"'


class Hosts:
    """Two connected hosts; `on(0, command)` wraps a command so that it runs on the first one."""

    def __init__(self) -> None:
        self.names = tuple(f"medpix-{os.getpid()}-{letter}" for letter in "ab")

    def on(self, host: int, *command: str) -> list[str]:
        """Returns the command that runs `command` on a host."""
        name = self.names[host]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", AS_HOST, name, *command]

    def first_process(self, host: int, *command: str) -> list[str]:
        """Returns the same with separate process ids: the command is process 1, as in a container."""
        return self.on(host, "unshare", "--pid", "--fork", "--kill-child", *command)

    def cut(self) -> None:
        """Cuts the link."""
        _ip("-n", self.names[0], "link", "set", INTERFACE, "down")

    def reconnect(self) -> None:
        """Restores the link."""
        _ip("-n", self.names[0], "link", "set", INTERFACE, "up")

    def connect(self) -> None:
        """Creates the link, and gives both ends their addresses."""
        first, second = self.names
        _ip("link", "add", INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", interface, "up")
            set_retries = f"echo {RETRIES} > /proc/sys/net/ipv4/tcp_retries2"
            subprocess.run(["ip", "netns", "exec", name, "sh", "-c", set_retries], check=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Yields two connected hosts; skips the test if namespaces cannot be created."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("two hosts on one machine are network namespaces: they need root, iproute2 and util-linux")
    hosts = Hosts()
    made = subprocess.run(["ip", "netns", "add", hosts.names[0]], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        _ip("netns", "add", hosts.names[1])
        hosts.connect()
        yield hosts
    finally:
        for name in hosts.names:
            if (Path("/run/netns") / name).exists():
                _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
