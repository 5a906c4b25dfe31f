"""The servers of compose.yaml on PostgreSQL and S3, with passwords: a whole flow, and its champion loaded elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import psycopg2
import pytest

from tests.conftest import fresh_home, noise
from tests.e2e.services import ROOT, Prefect, command, started_process, wait_for, wait_until
from tests.e2e.stores import PASSWORDS, shared_servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODEL, CHAMPION = "medpix-shared", "models:/medpix-shared@champion"
SMALL = {
    "dataset.path_or_dataset": "builtin:phantom?images=40",
    "step_scheduler.max_steps": 2,
    "evaluation.max_new_tokens": 4,
    "evaluation.controls": [],
    "registry.model_name": MODEL,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def client(directory: Path) -> Iterator[dict[str, str]]:
    with shared_servers(directory) as environment:
        yield environment | {"MEDPIX_HOME": str(fresh_home(directory / "home")), "PWD": str(ROOT)}


def test_neither_server_answers_without_its_password(client: dict[str, str]) -> None:
    prefect, mlflow = client["PREFECT_API_URL"], client["MLFLOW_TRACKING_URI"]
    search = f"{mlflow}/api/2.0/mlflow/registered-models/search"
    for user, expected in ((None, 401), (("medpix", "wrong"), 401)):
        assert httpx.post(f"{prefect}/flow_runs/filter", json={}, auth=user, timeout=60).status_code == expected
        assert httpx.get(search, auth=user, timeout=60).status_code == expected
    assert httpx.get(search, auth=("medpix", PASSWORDS["MLFLOW_SECRET"]), timeout=60).status_code == 200


def test_the_deployments_are_registered_and_their_schedules_give_runs(client: dict[str, str]) -> None:
    done = command("tasks.services.deploy", environment=client)
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = command("prefect", "--no-prompt", "deployment", "schedule", "resume", "--all", environment=client)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    for name in ("medpix-finetune", "medpix-retrain-watch"):
        wait_until(lambda name=name: Prefect(client).scheduled_runs(name), f"scheduled runs of {name}", 120)


def test_a_scheduled_run_registers_a_model_that_another_machine_loads(client: dict[str, str], directory: Path) -> None:
    words, log = ("prefect", "worker", "start", "--pool", "medpix"), directory / "worker.log"
    worker = started_process(*words, environment=client | {"PREFECT_PLUGINS_ENABLED": "false"}, log=log)
    try:
        run = Prefect(client).schedule_once("medpix-finetune", "weekly", {"recipe": "demo", "overrides": SMALL})
        wait_for(run, "COMPLETED", 600)
    finally:
        worker.terminate()
        worker.wait()
    summary = json.loads((directory / "home" / "runs" / "latest" / "summary.json").read_text())
    promotion = summary["registered_model"]["promotion"]
    assert not promotion["promoted"], promotion  # after two steps
    assert promotion["reason"].startswith("has not learnt")
    promoted = command("tasks.registry", "promote", MODEL, "1", environment=client)
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    listed = command("tasks.registry", "list", environment=client)
    assert MODEL in listed.stdout, listed.stderr
    assert "challenger, champion" in listed.stdout or "champion, challenger" in listed.stdout
    # Another machine has nothing of the first one's disk.
    image = directory / "image.png"
    noise((56, 56)).save(image)
    other = client | {"MEDPIX_HOME": str(fresh_home(directory / "other"))}
    question = ("--prompt", "Which organ is shown?", "--image", str(image), "--max-new-tokens", "4")
    answers = [
        command("vlm_core.generate", "--checkpoint-path", path, *question, environment=environment).stdout
        for path, environment in ((CHAMPION, other), (str(directory / "home" / "runs" / "latest" / "LATEST"), client))
    ]
    assert answers[0] == answers[1] != ""


def test_what_was_run_lies_in_postgres_and_in_the_bucket(client: dict[str, str], directory: Path) -> None:
    summary = json.loads((directory / "home" / "runs" / "latest" / "summary.json").read_text())
    where = client["TEST_DATABASE"]
    for database, question, expected in (
        ("mlflow", f"SELECT status FROM runs WHERE run_uuid = '{summary['mlflow_run_id']}'", "FINISHED"),
        ("prefect", "SELECT state_type FROM flow_run WHERE start_time IS NOT NULL", "COMPLETED"),
        ("mlflow_users", "SELECT username FROM users", "medpix"),
    ):
        with psycopg2.connect(f"{where}/{database}") as connection, connection.cursor() as cursor:
            cursor.execute(question)
            assert cursor.fetchall() == [(expected,)]
    s3 = boto3.client(
        "s3",
        endpoint_url=client["TEST_S3"],
        region_name="us-east-1",
        aws_access_key_id="medpix",
        aws_secret_access_key=PASSWORDS["S3_SECRET"],
    )
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    for name in ("evaluation/report.html", "model.safetensors", "MLmodel"):
        assert [key for key in keys if key.endswith(name)], keys


def test_the_servers_logs_have_no_errors(client: dict[str, str], directory: Path) -> None:
    """PostgreSQL locks rows: where SQLite had to be asked again, nothing has."""
    for server in ("prefect", "mlflow", "worker"):
        lines = (directory / f"{server}.log").read_text(errors="replace").splitlines()
        assert [line for line in lines if "ERROR" in line or "Traceback" in line] == []
