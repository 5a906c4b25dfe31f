"""The image is built and runs the demo, the servers of compose.yaml run in containers, and so does a deployed flow.

By buildah and podman, on a base made by debootstrap. PostgreSQL is Debian's; S3 is a stub.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.compose import COMPOSE, compose_file
from tests.e2e.services import ROOT, Prefect, answers, command, started_process, wait_for, wait_until
from tests.e2e.stores import PASSWORDS

TOOLS = ("buildah", "podman", "debootstrap", "runc", "podman-compose")
MIRROR = "http://deb.debian.org/debian"
RUN = ("podman", "run", "--rm", "--network", "host")
# On machines like CI's: no user namespaces, no systemd, and the kernel's own limits.
SETTINGS = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
dns_options = ["no-aaaa"]
"""
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # podman-compose is installed beside Python
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MEDPIX_KILLS" not in os.environ, reason="half an hour: make stress runs it"),
    pytest.mark.skipif(not all(shutil.which(tool, path=PATH) for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"),
    pytest.mark.timeout(3600),
]
Run = Callable[..., str]
NAME, MODEL = "localhost/medpix-finetune", "medpix-contained"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command with a container storage of its own, which is deleted at the end."""
    storage = tmp_path_factory.mktemp("containers")
    settings = {"driver": "overlay", "graphroot": str(storage / "root"), "runroot": str(storage / "run")}
    lines = ["[storage]", *(f'{key} = "{value}"' for key, value in settings.items())]
    (storage / "storage.conf").write_text("\n".join(lines))
    (storage / "containers.conf").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(storage / "storage.conf"))
        patch.setenv("PATH", PATH)
        patch.setenv("CONTAINERS_CONF", str(storage / "containers.conf"))

        def run(*words: object) -> str:
            done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True)
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
    build = ("buildah", "bud", "--isolation", "chroot", "--network", "host", *shared_with_pip())
    run(
        *build, "--build-arg", "BASE=localhost/python:3.11-slim", "--file", "deployments/Dockerfile", "--tag", NAME, "."
    )
    return NAME


def test_the_image_has_no_build_tools_and_runs_as_its_user(run: Run, image: str) -> None:
    inside = "id -un; test -w /opt/medpix && echo writable; ls /src 2>/dev/null; command -v gcc; medpix --version"
    user, version = run(*RUN, image, "sh", "-c", inside).splitlines()
    assert (user, version.split()[0]) == ("medpix", "medpix-finetune")


def test_the_demo_runs_in_a_container_and_its_volume_stays(run: Run, image: str) -> None:
    volume = ("--volume", "medpix-home:/var/medpix")
    shown = run(*RUN, *volume, image, "medpix", "demo", "--step_scheduler.max_steps", "20", "--evaluation.limit", "20")
    assert "verdict" in shown
    assert "medpix-demo" in run(*RUN, *volume, image, "medpix", "registry", "list")


@pytest.fixture(scope="module")
def servers(run: Run, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of the servers of compose.yaml, and of a Docker client; deletes the containers."""
    directory = tmp_path_factory.mktemp("servers")
    run("buildah", "bud", "--isolation", "chroot", "--network", "host", "--tag", "postgres:15", "tests/images/postgres")
    s3 = compose_file(PASSWORDS)["services"]["s3"]["image"]
    build = ("buildah", "bud", "--isolation", "chroot", "--network", "host", *shared_with_pip())
    run(*build, "--file", "tests/images/s3/Dockerfile", "--tag", f"localhost/{s3}", ".")
    (directory / "env").write_text("".join(f"{name}={value}\n" for name, value in PASSWORDS.items()))
    socket = f"unix://{directory / 'socket'}"
    service = subprocess.Popen(["podman", "system", "service", "--time", "0", socket])
    compose = ("podman-compose", "--env-file", directory / "env", "--file", COMPOSE)
    run(*compose, "up", "--detach", "--no-build")
    client = {
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_API_AUTH_STRING": f"medpix:{PASSWORDS['PREFECT_SECRET']}",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "MLFLOW_TRACKING_USERNAME": "medpix",
        "MLFLOW_TRACKING_PASSWORD": PASSWORDS["MLFLOW_SECRET"],
    }
    try:
        wait_for_servers()
        home = {"PREFECT_HOME": str(directory / "prefect"), "PREFECT_PLUGINS_ENABLED": "false", "DOCKER_HOST": socket}
        yield os.environ | client | home | {"ENV_FILE": str(directory / "env")}
    finally:
        service.terminate()
        service.wait()
        run(*compose, "down", "--volumes")


def wait_for_servers() -> None:
    """Waits until Prefect and MLflow answer."""
    for url in ("http://127.0.0.1:4200/api/health", "http://127.0.0.1:5000/health"):
        wait_until(lambda url=url: answers(url), url, 120)


@pytest.fixture(scope="module")
def deployment(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The id of the deployment of docker.yaml, with a worker of its pool."""
    log = tmp_path_factory.mktemp("worker") / "log"
    for words in (
        ("work-pool", "create", "--type", "docker", "medpix-docker"),
        ("--no-prompt", "deploy", "--prefect-file", "deployments/docker.yaml", "--all"),
    ):
        done = command("prefect", *words, environment=servers)
        assert done.returncode == 0, done.stdout + done.stderr
    worker = started_process("prefect", "worker", "start", "--pool", "medpix-docker", environment=servers, log=log)
    yield Prefect(servers).get("/deployments/name/medpix-finetune/medpix-finetune-docker")["id"]
    worker.terminate()
    worker.wait()


def start(servers: dict[str, str], deployment: str, steps: int) -> str:
    """Starts a small training in a container; returns the id of its flow run."""
    client = {name: servers[name] for name in servers if name.startswith("MLFLOW_TRACKING_")}
    no_gpu = {"init": True, "shm_size": "1g"}  # the deployment asks for GPUs
    small = {"dataset.path_or_dataset": "builtin:phantom?images=40", "step_scheduler.max_steps": steps,
             "step_scheduler.num_epochs": 100_000, "evaluation.max_new_tokens": 4, "evaluation.controls": [],
             "registry.model_name": MODEL}  # fmt: skip
    made = Prefect(servers).post(
        f"/deployments/{deployment}/create_flow_run",
        state={"type": "SCHEDULED"},
        parameters={"recipe": "demo", "overrides": small},
        job_variables={"network_mode": "host", "env": client, "container_create_kwargs": no_gpu},
    )
    return made["id"]


def test_the_servers_of_compose_refuse_a_wrong_password(servers: dict[str, str]) -> None:
    prefect = f"{servers['PREFECT_API_URL']}/flow_runs/filter"
    models = f"{servers['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/search"
    for method, url, right in (("POST", prefect, "PREFECT_SECRET"), ("GET", models, "MLFLOW_SECRET")):
        json = {} if method == "POST" else None
        found = [
            httpx.request(method, url, json=json, auth=user, timeout=60).status_code
            for user in (None, ("medpix", "wrong"), ("medpix", PASSWORDS[right]))
        ]
        assert found == [401, 401, 200], url
    assert "Prefect" in httpx.get("http://127.0.0.1:4200/").text  # the page is in the image too


def test_the_docker_pool_runs_a_flow_and_keeps_its_volume(servers: dict[str, str], deployment: str, run: Run) -> None:
    flow_run, prefect = start(servers, deployment, 2), Prefect(servers)
    wait_for(lambda: prefect.run(flow_run), "COMPLETED", 900)
    assert any("finetune" in record["message"] for record in prefect.log(flow_run))
    assert "summary.json" in run(*RUN, "--volume", "medpix-home:/var/medpix", NAME, "ls", "/var/medpix/runs/latest/")


def test_a_cancelled_flow_ends_its_container(servers: dict[str, str], deployment: str, run: Run) -> None:
    flow_run, prefect = start(servers, deployment, 100_000), Prefect(servers)
    wait_until(lambda: any("== 5/9" in record["message"] for record in prefect.log(flow_run)), "it trains", 400)
    prefect.post(f"/flow_runs/{flow_run}/set_state", state={"type": "CANCELLING"})
    wait_for(lambda: prefect.run(flow_run), "CANCELLED", 200)
    shown = ("podman", "ps", "--quiet", "--filter", f"label=io.prefect.flow-run-id={flow_run}")
    wait_until(lambda: not run(*shown), "no container of the run", 60)


def test_the_servers_data_is_there_after_a_restart(servers: dict[str, str], deployment: str, run: Run) -> None:
    compose = ("podman-compose", "--env-file", servers["ENV_FILE"], "--file", COMPOSE)
    run(*compose, "down")  # removes the containers and keeps their volumes
    run(*compose, "up", "--detach", "--no-build")
    wait_for_servers()
    assert Prefect(servers).get(f"/deployments/{deployment}")
    assert MODEL in command("tasks.registry", "list", environment=servers).stdout
