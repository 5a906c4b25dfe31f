"""Downloads from a hub on loopback that moves on, breaks off, refuses or is not there; each in its own process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, serve
from vlm_core.data.phantom import write_phantom

ROOT = Path(__file__).parents[2]
TRAIN = "data/train-00000-of-00001.parquet"
FILES = ["README.md", TRAIN, "data/validation-00000-of-00001.parquet"]
# huggingface_hub keeps 10 MB of a body in memory before it writes them, more than these files have.
DOWNLOAD = """
import json, sys
import huggingface_hub.constants
from vlm_core import hub
from vlm_core.log import configure_logging

configure_logging()
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096
hub.WAITS = (0.02, 0.04, 0.08)
try:
    print(hub.download(*json.loads(sys.argv[1])))
except (ValueError, hub.HubBusyError) as error:
    print(f"{type(error).__name__}: {error}")
"""

pytestmark = pytest.mark.slow


class Client:
    """A machine that has a cache of its own."""

    def __init__(self, home: Path, url: str) -> None:
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), "MEDPIX_HOME": str(home / "medpix")}
        self.environment |= {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
        self.cache = home / "hf" / "hub"
        self.log = ""

    def run(self, code: str, *arguments: str, **environment: str) -> str:
        """Returns what a Python program printed last."""
        call = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(
            call, cwd=ROOT, env=self.environment | environment, capture_output=True, text=True, timeout=240
        )
        self.log = done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().rpartition("\n")[2]

    def download(self, revision: str | None = None, repository: str = "owner/data", **environment: str) -> str:
        """Returns the path that `download` returned, or the error that it raised."""
        return self.run(DOWNLOAD, arguments(revision, repository), **environment)

    def unfinished(self) -> int:
        """Returns how many bytes lie on the disk of files that are not complete."""
        return sum(path.stat().st_size for path in self.cache.glob("*/blobs/*.incomplete"))


def arguments(revision: str | None = None, repository: str = "owner/data", kind: str = "dataset") -> str:
    return json.dumps([repository, kind, revision, ["*.parquet", "*.md"]])


def assert_same(snapshot: str, directory: Path) -> None:
    """Asserts that a snapshot has the files that were asked for, byte by byte, and no others."""
    assert Path(snapshot).is_dir(), snapshot
    found = {str(p.relative_to(snapshot)): p.read_bytes() for p in Path(snapshot).rglob("*") if p.is_file()}
    assert found == {name: (directory / name).read_bytes() for name in FILES}


def repository(directory: Path, seed: int) -> Path:
    write_phantom(directory, num_images=12, seed=seed, image_size=56)
    (directory / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Generated slices\n")
    (directory / "notes.txt").write_text("not needed\n")
    return directory


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("hub") / "data", seed=5)


@pytest.fixture
def hub(content: Path) -> Iterator[Hub]:
    with serve({"owner/data": content}) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(tmp_path / "client", hub.url)


@pytest.fixture
def main(hub: Hub) -> str:
    """The commit that the branch main points to."""
    return next(iter(hub.repositories["owner/data"]))


def test_a_split_is_of_one_commit_and_fetched_once(
    hub: Hub, client: Client, content: Path, main: str, tmp_path: Path
) -> None:
    fetch_split = """
from vlm_core.config import DatasetConfig
from vlm_core.data.source import fetch_split

print(fetch_split(DatasetConfig(path_or_dataset="owner/data", split="train")).revision)
"""
    assert client.run(fetch_split) == main
    assert not [request.path for request in hub.requests if "notes" in request.path]
    fetched = len(hub.bodies)
    snapshot = client.download()
    assert Path(snapshot).name == main
    assert_same(snapshot, content)
    assert len(hub.bodies) == fetched

    newer = hub.commit("owner/data", repository(tmp_path / "newer", seed=6))
    assert client.download(main) == snapshot  # from the cache
    assert len(hub.bodies) == fetched
    assert Path(client.download()).name == newer
    assert_same(client.download(), tmp_path / "newer")
    elsewhere = Client(tmp_path / "elsewhere", hub.url).download(main)
    assert Path(elsewhere).name == main
    assert_same(elsewhere, content)


def test_models_come_the_same_way(hub: Hub, client: Client, content: Path, main: str) -> None:
    snapshot = client.run(DOWNLOAD, arguments(kind="model"))
    assert Path(snapshot).name == main
    assert_same(snapshot, content)


def test_datasets_reads_the_same_rows_from_this_hub(client: Client, content: Path) -> None:
    load = """
import sys
from datasets import load_dataset

here = load_dataset("parquet", data_files=sys.argv[2])["train"]
print(load_dataset(sys.argv[1])["train"].to_list() == here.to_list())
"""
    assert client.run(load, "owner/data", str(content / TRAIN)) == "True"


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_body_that_breaks_off_goes_on_where_it_stopped(hub: Hub, client: Client, content: Path, reset: bool) -> None:
    hub.cut(TRAIN, after=20_000, reset=reset)
    assert_same(client.download(), content)
    assert [r.range for r in hub.bodies if "/storage/" in r.path and TRAIN in r.path] == [None, "bytes=16384-"]


def test_a_download_that_was_killed_goes_on_where_it_stopped(hub: Hub, client: Client, content: Path) -> None:
    held = hub.hold(TRAIN, after=30_000)
    call = [sys.executable, "-c", DOWNLOAD, arguments()]
    with subprocess.Popen(call, cwd=ROOT, env=client.environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while client.unfinished() == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    held.set()
    assert process.returncode == -signal.SIGKILL
    begun = client.unfinished()
    assert 0 < begun <= 30_000
    assert_same(client.download(), content)
    assert f"resumes after {begun} of {(content / TRAIN).stat().st_size} bytes" in client.log
    total = sum((content / name).stat().st_size for name in FILES if name.endswith(".parquet"))
    assert f"download owner/data {total}/{total} bytes" in client.log
    assert f"bytes={begun}-" in [request.range for request in hub.bodies]
    assert client.unfinished() == 0


def test_what_was_damaged_is_fetched_anew(hub: Hub, client: Client, content: Path) -> None:
    assert_same(client.download(), content)
    blob = next(path.resolve() for path in client.cache.rglob(TRAIN))
    shutil.rmtree(client.cache / "datasets--owner--data" / "snapshots")
    blob.rename(blob.with_name(f"{blob.name}.incomplete")).write_bytes(b"not the beginning of this file")
    assert_same(client.download(), content)
    assert "arrived damaged" in client.log


def test_a_busy_hub_is_asked_again(hub: Hub, client: Client, content: Path) -> None:
    hub.refuse(429, path="/api/datasets/", headers={"Retry-After": "1"})
    hub.refuse(503, path="/api/datasets/")
    for path in ("/tree/", "/resolve/", "/storage/", "README"):
        hub.refuse(503, path=path)
    assert_same(client.download(), content)
    waits = [line.rsplit("; ")[-1] for line in client.log.splitlines() if "trying again" in line]
    assert waits[:2] == ["trying again in 1 s (1 of 3)", "trying again in 0.04 s (2 of 3)"]
    # The requests for the files are a new attempt, with waits of its own.
    assert waits[2:4] == ["trying again in 0.02 s (1 of 3)", "trying again in 0.04 s (2 of 3)"]


def test_a_hub_that_stays_busy(hub: Hub, client: Client, main: str) -> None:
    hub.refuse(503, path="/api/datasets/", times=4)
    error = client.download()
    assert error.startswith("HubBusyError: cannot download the dataset 'owner/data': ")
    assert f"{hub.url} cannot serve it now (503 Service Unavailable), and it is not complete in the" in error
    assert error.endswith("; try again later, or give the path of a local directory that holds it")
    client.download()
    hub.refuse(503, path="/api/datasets/", times=4)
    assert Path(client.download()).name == main
    assert f"using commit {main} from the cache" in client.log


def test_the_flow_asks_again_when_the_hub_was_busy_for_long(hub: Hub, client: Client, main: str) -> None:
    flow = """
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from tasks.data import download_dataset
from vlm_core import hub
from vlm_core.recipe import load_config

hub.WAITS = (0.05,)

@flow
def fetch():
    config = load_config("demo", {"dataset.path_or_dataset": "owner/data"})
    download_dataset.with_options(retry_delay_seconds=0.1)(config)

with prefect_test_harness(server_startup_timeout=100):
    fetch()
"""
    hub.refuse(503, path="/api/datasets/", times=3)  # two are asked for in one attempt of the task
    client.run(flow)
    assert "Retry 1/3" in client.log
    assert Path(client.download(HF_HUB_OFFLINE="1")).name == main


def test_the_token_is_sent_to_the_hub_alone(hub: Hub, client: Client, content: Path) -> None:
    hub.token = "hf_right"
    hub.private.add("owner/data")
    assert_same(client.download(HF_TOKEN="hf_right"), content)
    assert {r.authorization for r in hub.requests if "owner/data" in r.path and "/storage/" not in r.path} == {
        "Bearer hf_right"
    }
    assert {r.authorization for r in hub.requests if "/storage/" in r.path} == {None}


@pytest.mark.parametrize(
    ("situation", "token", "said"),
    [
        ("private", "", "the repository does not exist, or it is private and HF_TOKEN is not set to a token that may"),
        ("private", "hf_wrong", "the hub does not accept the token (HF_TOKEN, or the one that is logged in): "),
        ("gated", "", "it is gated: accept its licence at {url}/datasets/owner/data, then set HF_TOKEN"),
        ("gated", "hf_right", "it is gated: accept its licence at {url}/datasets/owner/data, then set HF_TOKEN"),
        ("unknown", "hf_right", "the repository does not exist, or it is private"),
    ],
    ids=["private", "wrong token", "gated", "not yet accepted", "unknown"],
)
def test_a_repository_that_is_not_given(hub: Hub, client: Client, situation: str, token: str, said: str) -> None:
    hub.token = "hf_right"
    {"private": hub.private, "gated": hub.gated, "unknown": set()}[situation].add("owner/data")
    name = "owner/other" if situation == "unknown" else "owner/data"
    error = client.download(repository=name, HF_TOKEN=token)
    assert error.startswith(f"ValueError: cannot download the dataset {name!r}: " + said.format(url=hub.url))


@pytest.mark.parametrize("revision", ["v9", "0123456789abcdef0123456789abcdef01234567"], ids=["tag", "commit"])
def test_a_revision_that_is_not_there(hub: Hub, client: Client, revision: str) -> None:
    said = f"it has no revision {revision!r}: name a branch, tag or commit of {hub.url}/datasets/owner/data"
    assert client.download(revision) == f"ValueError: cannot download the dataset 'owner/data': {said}"


def test_without_the_hub_the_cache_is_used(hub: Hub, client: Client, main: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and not listening: whoever connects is refused
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
        end = f"and it is not complete in the cache {client.cache}; "
        error = client.download(HF_HUB_OFFLINE="1")
        assert f"'owner/data': HF_HUB_OFFLINE is set, {end}unset HF_HUB_OFFLINE, or give the path of" in error
        for revision in (None, main):
            error = client.download(revision, HF_ENDPOINT=nowhere)
            assert f"'owner/data': {nowhere} could not be reached ([Errno 111] Connection refused), {end}" in error
            assert "check the network and HF_ENDPOINT, or give the path of a local directory" in error
        snapshot = client.download()
        asked = len(hub.requests)
        for revision in (None, "main", main):
            assert client.download(revision, HF_HUB_OFFLINE="1") == snapshot
            assert client.download(revision, HF_ENDPOINT=nowhere) == snapshot
            assert (f"using commit {main} from the cache" in client.log) == (revision != main)
        assert len(hub.requests) == asked


def test_a_full_disk(hub: Hub, client: Client, content: Path) -> None:
    mount = 'mkdir -p "$HF_HOME" && mount -t tmpfs -o size=24k none "$HF_HOME" && exec "$@"'
    in_tmpfs = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", mount, "sh"]
    if not shutil.which("unshare") or subprocess.run([*in_tmpfs, "true"], env=client.environment).returncode:
        pytest.skip("a filesystem that is small enough cannot be mounted here")
    call = [*in_tmpfs, sys.executable, "-c", DOWNLOAD, arguments()]
    done = subprocess.run(call, cwd=ROOT, env=client.environment, capture_output=True, text=True, timeout=60)
    assert f"no space left for the cache {client.cache} ([Errno 28] No space left on device)" in done.stdout, done
    assert "set HF_HOME to a directory on another disk" in done.stdout


def test_what_answers_may_be_no_hub(hub: Hub, client: Client) -> None:
    hub.refuse(200, path="/api/datasets/")
    error = client.download()
    assert f"the server at {hub.url} is not a hub" in error
    assert "check the network and HF_ENDPOINT" in error
