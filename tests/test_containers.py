"""The image is built from the Dockerfile, and runs as its user: buildah and podman, on a base made by debootstrap."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.readme import ROOT

TOOLS = ("buildah", "podman", "debootstrap", "runc")
MIRROR = "http://deb.debian.org/debian"
# On machines like CI's: no user namespaces, and the kernel's own limits.
RUN = ("podman", "--runtime", "runc", "run", "--rm", "--network", "host", "--ulimit", "nofile=1024:1024",
       "--ulimit", "nproc=4096:4096")  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MEDPIX_KILLS" not in os.environ, reason="a quarter of an hour: make stress runs it"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}"),
    pytest.mark.timeout(3600),
]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command with a container storage of its own, which is deleted at the end."""
    storage = tmp_path_factory.mktemp("containers")
    settings = {"driver": "overlay", "graphroot": str(storage / "root"), "runroot": str(storage / "run")}
    lines = ["[storage]", *(f'{key} = "{value}"' for key, value in settings.items())]
    (storage / "storage.conf").write_text("\n".join(lines))
    environment = os.environ | {"CONTAINERS_STORAGE_CONF": str(storage / "storage.conf")}

    def run(*words: object) -> str:
        done = subprocess.run([*map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    yield run
    run("podman", "rmi", "--all", "--force")


def shared_with_pip() -> list[str]:
    """Returns options that show pip in a container this machine's settings, and the directories that they name."""
    settings = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    named = [Path("/", *Path(path).parts[1:3]) for path in re.findall(r"(?:file://)?(/[\w./-]+)", settings)]
    found = {path for path in (*named, Path("/etc/pip.conf"), Path("/etc/xdg/pip")) if path.exists()}
    return [option for path in sorted(found - {Path("/etc")}) for option in ("--volume", f"{path}:{path}:ro")]


@pytest.fixture(scope="module")
def image(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the image, built from this checkout on a base that is tagged as the Dockerfile's."""
    base = tmp_path_factory.mktemp("base")
    packages = "--include=python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", packages, "bookworm", base, MIRROR)
    container = run("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", container, base, "/")
    run("buildah", "commit", "--quiet", container, "localhost/python:3.11-slim")
    name = "localhost/medpix-finetune"
    build = ("buildah", "bud", "--isolation", "chroot", "--network", "host", *shared_with_pip())
    run(
        *build, "--build-arg", "BASE=localhost/python:3.11-slim", "--file", "deployments/Dockerfile", "--tag", name, "."
    )
    return name


def test_the_image_has_no_build_tools_and_runs_as_its_user(run: Run, image: str) -> None:
    inside = "id -un; test -w /opt/medpix && echo writable; ls /src 2>/dev/null; command -v gcc; medpix --version"
    user, version = run(*RUN, image, "sh", "-c", inside).splitlines()
    assert (user, version.split()[0]) == ("medpix", "medpix-finetune")


def test_the_demo_runs_in_a_container_and_its_volume_stays(run: Run, image: str) -> None:
    volume = ("--volume", "medpix-home:/var/medpix")
    shown = run(*RUN, *volume, image, "medpix", "demo", "--step_scheduler.max_steps", "20", "--evaluation.limit", "20")
    assert "verdict" in shown
    assert "medpix-demo" in run(*RUN, *volume, image, "medpix", "registry", "list")
