"""PostgreSQL, an S3 on loopback, and the servers of deployments/compose.yaml as processes that use both."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.compose import COMPOSE, SECRETS, compose_file
from tests.e2e.services import ROOT, SCHEDULER, answers, free_port, started_process, wait_until

PASSWORDS = {name: name.lower().replace("_", "-") for name in SECRETS}


def postgres_programs() -> Path:
    """Returns the directory of the newest PostgreSQL that Debian installed; skips the test if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def postgres(port: str, databases: str) -> Iterator[None]:
    """Runs a server on loopback, with a password, for the block; `databases` is SQL that makes them."""
    programs = postgres_programs()
    directory = Path(tempfile.mkdtemp(prefix="medpix-postgres-"))  # not below pytest's, which are root's alone
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    (directory / "password").write_text(PASSWORDS["POSTGRES_SECRET"])
    (directory / "databases.sql").write_text(databases)
    if as_user:
        for path in (directory, *directory.iterdir()):
            shutil.chown(path, "postgres")
    try:
        data, log = directory / "data", directory / "log"
        words = ["--username=medpix", "--auth=scram-sha-256", f"--pwfile={directory / 'password'}", "--no-sync"]
        _run(*as_user, programs / "initdb", *words, data)
        options = f"-h 127.0.0.1 -p {port} -k {directory} -c fsync=off"
        _run(*as_user, programs / "pg_ctl", "start", "--wait", f"--pgdata={data}", f"--log={log}", "-o", options)
        try:
            psql = [programs / "psql", f"--file={directory / 'databases.sql'}", "--set=ON_ERROR_STOP=1"]
            where = f"postgresql://medpix:{PASSWORDS['POSTGRES_SECRET']}@127.0.0.1:{port}/postgres"
            _run(*psql, where)
            yield
        finally:
            _run(*as_user, programs / "pg_ctl", "stop", "--wait", "--mode=fast", f"--pgdata={data}")
    finally:
        shutil.rmtree(directory)


def _run(*words: Any) -> None:
    done = subprocess.run([*map(str, words)], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def service(*arguments: str, environment: Mapping[str, str], log: Path, url: str) -> Iterator[None]:
    """Runs `python -m ...` for the block, which begins when it answers at `url`."""
    process = started_process(*arguments, environment=dict(environment), log=log)
    try:
        wait_until(lambda: process.poll() is not None or answers(url), f"{url} answers, see {log}")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def shared_servers(directory: Path) -> Iterator[dict[str, str]]:
    """Yields the environment of a client of Prefect and MLflow, which run as compose.yaml says."""
    ports = {name: free_port() for name in ("postgres:5432", "s3:9000", "4200", "5000")}
    configuration = directory / "basic_auth.ini"
    moved = {name: f"127.0.0.1:{port}" if ":" in name else port for name, port in ports.items()}
    moved |= {"0.0.0.0": "127.0.0.1", "/etc/mlflow/basic_auth.ini": str(configuration)}
    text = json.dumps(compose_file(PASSWORDS))
    for there, here in moved.items():
        text = text.replace(there, here)
    compose = json.loads(text)
    services = compose["services"]
    users = (COMPOSE.parent / "basic_auth.ini").read_text()
    configuration.write_text(users.replace("postgres:5432", moved["postgres:5432"]))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "AWS_"))}
    prefect, mlflow = (f"http://127.0.0.1:{ports[port]}" for port in ("4200", "5000"))
    with ExitStack() as stack:
        stack.enter_context(postgres(ports["postgres:5432"], (COMPOSE.parent / "databases.sql").read_text()))
        words = ("moto.server", "-H", "127.0.0.1", "-p", ports["s3:9000"])
        s3 = f"http://127.0.0.1:{ports['s3:9000']}/moto-api/"
        stack.enter_context(service(*words, environment=clean, log=directory / "s3.log", url=s3))
        _, *bucket = services["bucket"]["command"]
        made = subprocess.run([sys.executable, *bucket], env=clean | services["bucket"]["environment"], cwd=ROOT)
        assert made.returncode == 0
        for name, url in (("prefect", f"{prefect}/api/health"), ("mlflow", f"{mlflow}/health")):
            _, _, *words = services[name]["command"]
            home = {"PREFECT_HOME": str(directory / "prefect-home"), "MEDPIX_HOME": str(directory / "server-home")}
            environment = clean | home | SCHEDULER | services[name]["environment"]
            stack.enter_context(service(*words, environment=environment, log=directory / f"{name}.log", url=url))
        yield clean | {
            "PREFECT_API_URL": f"{prefect}/api",
            "PREFECT_API_AUTH_STRING": f"medpix:{PASSWORDS['PREFECT_SECRET']}",
            "MLFLOW_TRACKING_URI": mlflow,
            "MLFLOW_TRACKING_USERNAME": "medpix",
            "MLFLOW_TRACKING_PASSWORD": PASSWORDS["MLFLOW_SECRET"],
            "TEST_DATABASE": f"postgresql://medpix:{PASSWORDS['POSTGRES_SECRET']}@{moved['postgres:5432']}",
            "TEST_S3": f"http://{moved['s3:9000']}",
        }
