"""Two hosts share a directory of caches: one builds, the other waits, and a killed builder blocks no other."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.services import ROOT
from tests.hosts import Hosts, two_hosts
from vlm_core.cache import FILES, cached_directory, checksums, locked, read_manifest
from vlm_core.files import read_json

BUILD = """
import os, socket, sys
from pathlib import Path
from vlm_core.cache import cached_directory

def build(directory):
    print("builds", socket.gethostname(), os.getpid(), flush=True)
    for number in range(3):
        (directory / str(number)).write_text("content")
        sys.stdin.readline()
    return {"built on": socket.gethostname()}

print("starts", flush=True)
print("has it", cached_directory(Path(sys.argv[1]), "key", build)[1], flush=True)
"""

WRITE = """
import sys
from pathlib import Path
from vlm_core.files import write_json

print("starts", flush=True)
sys.stdin.readline()
for number in range(500):
    write_json(Path(sys.argv[1]), [number] * 1000)
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


@contextmanager
def process(hosts: Hosts, host: int, code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a process on a host, with process id 1 there, and yields it once it runs."""
    command = hosts.first_process(host, sys.executable, "-c", code, str(path))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as started:
        try:
            assert next_line(started) == "starts"
            yield started
        finally:
            started.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().rstrip()


def send_lines(process: subprocess.Popen[str], lines: int) -> None:
    assert process.stdin
    process.stdin.write("\n" * lines)
    process.stdin.flush()


def test_one_host_builds_and_the_other_waits_until_it_is_killed(hosts: Hosts, tmp_path: Path) -> None:
    with process(hosts, 0, BUILD, tmp_path) as first:
        assert next_line(first) == f"builds {hosts.names[0]} 1"
        send_lines(first, 1)
        with process(hosts, 1, BUILD, tmp_path) as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(1)
            first.kill()  # killed after its second file, before its third
            assert next_line(second) == f"builds {hosts.names[1]} 1"
            send_lines(second, 3)
            assert next_line(second) == "has it False"
    with process(hosts, 0, BUILD, tmp_path) as third:
        assert next_line(third) == "has it True"
    complete = tmp_path / "key"
    assert read_manifest(complete)["built on"] == hosts.names[1]
    assert read_manifest(complete)[FILES] == checksums(complete)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".key.lock", ".key.verified", "key"]


def test_two_hosts_write_a_file_with_the_same_process_id(hosts: Hosts, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with process(hosts, 0, WRITE, path) as first, process(hosts, 1, WRITE, path) as second:
        for writer in (first, second):
            send_lines(writer, 1)
        while first.poll() is None or second.poll() is None:
            assert not path.exists() or len(read_json(path)) == 1000
        for writer in (first, second):
            assert writer.stderr
            assert (writer.returncode, writer.stderr.read()) == (0, "")
    assert json.loads(path.read_text()) == [499] * 1000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ValueError, match=r"is on a file system without flock \(.*mount it with locks, or set MEDPIX"):
        cached_directory(tmp_path, "key", lambda directory: {})
    assert not (tmp_path / "key").exists()


def test_a_lock_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError), locked(tmp_path / "lock"):
        raise AssertionError
