"""`make up`: real servers, a supervised worker, the deployments by command and by form, and no process is left."""

import ast
import base64
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest

from tasks.registry.decline import EVENT
from tasks.services.deploy import local_timezone
from tests.e2e.attacks import (
    REBINDING,
    check_foreign_page,
    check_foreign_requests,
    check_rebound_name,
    check_sockets,
    check_that_the_password_stays_secret,
)
from tests.e2e.made_up import COMMIT, hub, services_up
from tests.e2e.pages import check_result_pages, check_that_text_stays_text, chromium, submit_form
from tests.e2e.planted import IN_A_QUESTION, IN_HEADERS, PIECES, places_of, write_planted_dataset
from tests.e2e.served_model import check_served_model
from tests.e2e.services import Prefect, command, trainings_of, wait_for, wait_until
from tests.readme import loading

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PHANTOM = "builtin:phantom?images=40"
SMALL = {"dataset.path_or_dataset": PHANTOM, "step_scheduler.max_steps": 2}
MODEL, CHAMPION = "medpix-gemma3", "models:/medpix-gemma3@champion"
WHEN_DECLINED = "medpix: look for new data when a champion has declined"
QUESTION = "Which organ is shown?"
PREDICT = """
import json, sys, mlflow, pandas
rows = pandas.DataFrame([json.loads(sys.argv[2])])
answers = mlflow.pyfunc.load_model(sys.argv[1]).predict(rows, params={"max_new_tokens": 8})
print(json.dumps(answers.to_dict("records")))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell after `make up` and `eval "$(make env)"`."""
    with hub() as address, services_up(tmp_path_factory.mktemp("served") / "home", address) as environment:
        yield environment


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real DICOM files with planted personal data, outside the home."""
    directory = tmp_path_factory.mktemp("hospital") / "scans"
    write_planted_dataset(directory)
    return directory


def run(served: dict[str, str], name: str, **parameters: Any) -> subprocess.CompletedProcess[str]:
    words = [word for key, value in parameters.items() for word in ("-p", f"{key}={json.dumps(value)}")]
    return command("prefect", "deployment", "run", name, *words, "--watch", environment=served)


def test_a_deployment_runs_by_its_own_name(served: dict[str, str], scans: Path) -> None:
    """On DICOM files."""
    registry = {"model_name": MODEL}
    overrides = SMALL | {"dataset.path_or_dataset": str(scans), "evaluation.limit": 8, "dataset.images.window": "brain",
                         "step_scheduler.global_batch_size": 10}  # fmt: skip
    done = run(served, "medpix-finetune", recipe="demo", registry=registry, overrides=overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    home = Path(served["MEDPIX_HOME"])
    summary = json.loads((home / "runs" / "latest" / "summary.json").read_text())
    assert (summary["training"]["steps"], summary["evaluation"]["examples"]) == (2, 8)
    reason = "the evaluation was limited to 8 questions of the split"
    promotion = {"promoted": False, "reason": reason, "candidate": None}
    assert summary["registered_model"]["promotion"] == promotion
    # What the data and the answers are like is in Prefect's UI.
    data = json.loads(Prefect(served).artifact("medpix-data")["data"])
    assert [(row["split"], row["Questions"]) for row in data] == [("train", 30), ("validation", 10)]
    shown = Prefect(served).artifact("medpix-summary")["data"]
    assert shown.startswith("**Version 1 of medpix-gemma3 is not promoted**: ")
    assert f"| Token F1 | {summary['evaluation']['scores']['model']['token_f1']['value']:.3f} |" in shown
    assert f"({served['MLFLOW_TRACKING_URI']}/#/models/medpix-gemma3/versions/1), loaded as `models:/" in shown


def test_the_pages_of_prefect_and_mlflow_show_the_result(served: dict[str, str]) -> None:
    with chromium() as browser:
        check_result_pages(served, browser, MODEL)
        check_that_text_stays_text(served, browser)


def test_progress_and_log_of_a_run_are_in_prefect(served: dict[str, str]) -> None:
    steps = {"preprocess": "10 rows", "finetune": "2 of 2 steps", "evaluate": "answers"}
    for step, count in steps.items():
        shown = Prefect(served).artifact(f"medpix-{step}-progress")
        assert (step, float(shown["data"])) == (step, 100.0)
        assert count in shown["description"].replace("10 of 10", "10")
    assert re.search(r"loss \d.*samples/s", Prefect(served).artifact("medpix-finetune-progress")["description"])
    flow_run = Prefect(served).artifact("medpix-finetune-progress")["flow_run_id"]
    lines = [record["message"] for record in Prefect(served).log(flow_run)]
    assert [line for line in lines if "finetune 2/2 steps" in line]


def test_results_are_json(served: dict[str, str]) -> None:
    """A pickle would be code of whoever can write to the storage."""
    home = Path(served["MEDPIX_HOME"])
    summary = json.loads((home / "runs" / "latest" / "summary.json").read_text())
    stored = [json.loads(path.read_text()) for path in (home / "prefect" / "storage").iterdir()]
    assert stored == [summary]  # no task leaves anything


def test_the_champion_answers_wherever_it_is_asked(served: dict[str, str], scans: Path, tmp_path: Path) -> None:
    """About a DICOM file: by name, on the command line, in Python, and over HTTP; its weights come from the server."""
    promoted = command("tasks.registry", "promote", MODEL, "1", environment=served)
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    evaluated = run(served, "medpix-evaluate", checkpoint=CHAMPION, dataset={"path_or_dataset": PHANTOM})
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    results = Path(served["MEDPIX_HOME"]).glob("runs/*/evaluation/result.json")
    (result,) = (json.loads(path.read_text()) for path in results if CHAMPION in path.read_text())
    assert (result["examples"], result["complete"]) == (60, True)
    image = Path(shutil.copy(scans / "0.dcm", tmp_path / "image.png"))  # the content says the format
    words = ("--prompt", QUESTION, "--image", str(scans / "0.dcm"), "--max-new-tokens", "8")
    said = command("vlm_core.generate", "--checkpoint-path", CHAMPION, *words, environment=served)
    assert said.returncode == 0, said.stdout + said.stderr
    answer = said.stdout.removesuffix("\n")
    asked = {"image": base64.b64encode(image.read_bytes()).decode(), "question": QUESTION}
    loaded = subprocess.run(
        [sys.executable, "-c", PREDICT, CHAMPION, json.dumps(asked)], env=served, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    (given,) = json.loads(loaded.stdout.splitlines()[-1])
    assert (given["answer"], set(given)) == (answer, {"answer", "confidence"})
    by_readme = subprocess.run(
        [sys.executable, "-c", loading().replace("@challenger", "@champion").replace("What is shown?", QUESTION)],
        cwd=tmp_path, env=served, capture_output=True, text=True,
    )  # fmt: skip
    assert by_readme.returncode == 0, by_readme.stderr
    assert ast.literal_eval(by_readme.stdout.splitlines()[-1])[0]["answer"].startswith(answer.rstrip("\ufffd"))
    check_served_model(served, CHAMPION, asked, given, tmp_path / "serve.log")
    assert set().union(*places_of(tmp_path, PIECES).values()) <= {"image.png"}  # nor in the server's log
    assert not any(piece in text for piece in PIECES for text in (said.stderr, loaded.stderr, by_readme.stderr))


def test_planted_personal_data_is_reported_and_nowhere_else(served: dict[str, str]) -> None:
    """Not in any byte of caches, logs, reports, MLflow's files and Prefect's database; tags are named, values are not.

    A question is trained on, so its words are in the cache of conversations, and only there.
    """
    home = Path(served["MEDPIX_HOME"])
    reports = [json.loads(path.read_text()) for path in (home / "cache" / "conversations").glob("*/statistics.json")]
    (found,) = (report for report in reports if report["medical"]["images"])
    assert {tag: found["medical"]["personal_tags"][tag] for tag in IN_HEADERS} == dict.fromkeys(IN_HEADERS, 8)
    assert found["personal_texts"] == {"a name with a title": 1, "a record number": 1}
    assert (found["burnt_in_text"]["images"], found["medical"]["counts"]["modality"]["CT"]) == (3, 3)
    places = places_of(home, [*PIECES, *IN_A_QUESTION, "PatientComments"])
    assert {value: files for value, files in places.items() if value in PIECES and files} == {}
    for value in IN_A_QUESTION:
        assert {file.split("/")[1] for file in places[value]} == {"conversations"}
    assert {file.split("/")[0] for file in places["PatientComments"]} >= {"cache", "mlflow", "prefect", "runs"}


def test_foreign_pages_and_programs_get_nothing(served: dict[str, str]) -> None:
    check_foreign_requests(served)
    check_sockets(served)
    with chromium(REBINDING) as browser:
        check_foreign_page(served, browser)
        check_rebound_name(served, browser)
    check_that_the_password_stays_secret(served)


@pytest.mark.parametrize(("name", "cron"), [("medpix-finetune", "0 2 * * 6"), ("medpix-retrain-watch", "0 1 * * *")])
def test_a_schedule_that_is_resumed_gives_scheduled_runs(served: dict[str, str], name: str, cron: str) -> None:
    """By the deployment's bare name, in the machine's time zone."""
    prefect, wide = Prefect(served), served | {"COLUMNS": "200"}
    (schedule,) = prefect.deployment(name)["schedules"]
    assert schedule["schedule"]["timezone"] == local_timezone()
    listed = command("prefect", "deployment", "schedule", "ls", name, environment=wide)
    assert (cron in listed.stdout, schedule["id"] in listed.stdout) == (True, True), listed.stdout + listed.stderr
    assert prefect.scheduled_runs(name) == []
    words = ("prefect", "--no-prompt", "deployment", "schedule")
    resumed = command(*words, "resume", name, schedule["id"], environment=served)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    wait_until(lambda: prefect.scheduled_runs(name), f"scheduled runs of {name}", 120)
    zone = ZoneInfo(local_timezone())
    times = [datetime.fromisoformat(r["expected_start_time"]).astimezone(zone) for r in prefect.scheduled_runs(name)]
    assert {f"{time:%M} {time:%H}" for time in times} == {f"00 0{cron.split()[1]}"}
    paused = command(*words, "pause", name, schedule["id"], environment=served)
    assert paused.returncode == 0, paused.stdout + paused.stderr


def test_a_schedule_whose_time_has_come_runs_to_a_version_and_others_wait_for_it(served: dict[str, str]) -> None:
    """An evaluation waits, and says for whom; a second run of the schedule is not started, and says why."""
    prefect, overrides = Prefect(served), SMALL | {"evaluation.limit": 10}
    overrides |= {"step_scheduler.max_steps": 30, "step_scheduler.num_epochs": 8}
    parameters = {"recipe": "demo", "registry": {"model_name": MODEL}, "overrides": overrides}
    training = prefect.schedule_once("medpix-finetune", "weekly", parameters)
    turns = Path(served["MEDPIX_HOME"]) / "turns"
    wait_until(lambda: list(turns.glob("*/*.json")), "the training holds this machine")
    again = prefect.schedule_once("medpix-finetune", "weekly", parameters)
    words = ("-p", "checkpoint=builtin:tiny-gemma3", "-p", f"dataset={json.dumps({'path_or_dataset': PHANTOM})}")
    asked = command("prefect", "deployment", "run", "medpix-evaluate", *words, environment=served)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    (run_id,) = re.findall(r"UUID: (\S+)", asked.stdout)
    wait_until(lambda: prefect.run(run_id)["state_name"] == "Waiting", "the evaluation waits")
    message = prefect.run(run_id)["state"]["message"]
    assert message.startswith(f"waiting for medpix-finetune {training()['name']!r} (http")
    refused = wait_for(again, "CANCELLED")
    assert refused["state"]["message"].startswith(f"Not started: medpix-finetune {training()['name']!r} (http")
    assert f"`prefect flow-run retry {refused['id']}`" in refused["state"]["message"]
    wait_for(training, "COMPLETED", 400)
    assert training()["created_by"]["type"] == "SCHEDULE"
    evaluation = wait_for(lambda: prefect.run(run_id), "COMPLETED", 400)
    assert evaluation["end_time"] > training()["end_time"]
    assert message in [record["message"] for record in prefect.log(run_id)]
    assert list(turns.glob("*/*.json")) == []
    summary = json.loads((Path(served["MEDPIX_HOME"]) / "runs" / "latest" / "summary.json").read_text())
    assert (summary["training"]["steps"], summary["registered_model"]["name"]) == (30, MODEL)


def test_the_logs_of_a_normal_run_have_no_errors(served: dict[str, str], record_property: Any) -> None:
    """Prefect's retries of a locked SQLite file excepted: they are counted, and end well."""
    logs = Path(served["MEDPIX_HOME"]) / "services"
    for service in ("prefect", "mlflow", "worker"):
        blocks = re.split(r"(?m)^(?=\S*\d\d:\d\d:\d\d)", (logs / f"{service}.log").read_text(errors="replace"))
        bad = [block for block in blocks if re.search(r"ERROR|CRITICAL|Traceback|DeprecationWarning", block)]
        locked = [block for block in bad if "database is locked" in block]
        record_property(f"{service}: retries of a locked database", len(locked))
        print(f"{service}: {len(locked)} retries of a locked database")
        assert [block for block in bad if block not in locked] == [], service
        assert service == "prefect" or locked == []


def test_a_deployment_is_inspected_by_its_own_name(served: dict[str, str]) -> None:
    done = command("prefect", "deployment", "inspect", "medpix-evaluate", "-o", "json", environment=served)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["name"] == "medpix-evaluate"


@pytest.mark.parametrize("subcommand", ["run", "inspect", "schedule ls", "delete"])
def test_a_name_that_no_deployment_has_is_said(served: dict[str, str], subcommand: str) -> None:
    done = command("prefect", "deployment", *subcommand.split(), "medpix-fine", environment=served)
    assert done.returncode == 1
    assert "no deployment is called 'medpix-fine'; `prefect deployment ls` lists" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_new_revision_on_the_hub_starts_a_run_on_it(served: dict[str, str]) -> None:
    prefect, dataset = Prefect(served), {"dataset.path_or_dataset": "lab/medical"}
    watch = prefect.schedule_once("medpix-retrain-watch", "nightly", {"recipe": "demo", "overrides": dataset})
    wait_for(watch, "COMPLETED")
    of_flow = {"flows": {"name": {"any_": ["medpix-finetune"]}}, "sort": "EXPECTED_START_TIME_DESC"}
    wanted = dataset | {"dataset.revision": COMMIT}

    def started() -> dict[str, Any]:
        runs = prefect.post("/flow_runs/filter", **of_flow)
        of_trigger = [r for r in runs if (r["created_by"] or {}).get("type") == "AUTOMATION"]
        return of_trigger[0] if of_trigger else {"state_type": "", "state_name": "none"}

    found = wait_for(started, "FAILED")  # for want of its files: this hub has none
    assert (found["parameters"]["recipe"], found["parameters"]["overrides"]) == ("demo", wanted)


def test_a_champion_that_has_declined_makes_the_watch_look_for_new_data(served: dict[str, str]) -> None:
    """Once somebody has switched that on; the event is that of `report_decline`."""
    prefect, wanted = Prefect(served), {"dataset.path_or_dataset": "lab/medical"}
    switched = command("prefect", "--no-prompt", "automation", "resume", WHEN_DECLINED, environment=served)
    assert switched.returncode == 0, switched.stdout + switched.stderr
    resource = {"prefect.resource.id": f"medpix.model.{MODEL}", "prefect.resource.name": MODEL}
    event = {"occurred": datetime.now(UTC).isoformat(), "event": EVENT, "resource": resource, "id": str(uuid4()),
             "payload": {"version": "1", "finding": "", "recipe": "demo", "overrides": wanted}}  # fmt: skip
    with httpx.Client(auth=prefect.auth, timeout=60) as client:
        assert client.post(f"{prefect.url}/events", json=[event]).is_success
    watches = {"flows": {"name": {"any_": ["medpix-retrain-watch"]}}, "sort": "EXPECTED_START_TIME_DESC"}

    def started() -> dict[str, Any]:
        runs = prefect.post("/flow_runs/filter", **watches)
        of_trigger = [r for r in runs if (r["created_by"] or {}).get("type") == "AUTOMATION"]
        return of_trigger[0] if of_trigger else {"state_type": "", "state_name": "none"}

    found = wait_for(started, "COMPLETED")
    assert (found["parameters"]["recipe"], found["parameters"]["overrides"]) == ("demo", wanted)


def test_a_second_up_changes_nothing(served: dict[str, str]) -> None:
    """And what people have switched on stays on."""
    resumed = command("prefect", "--no-prompt", "deployment", "schedule", "resume", "--all", environment=served)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    paused = command(
        "prefect", "--no-prompt", "automation", "pause", "medpix: train on a new revision", environment=served
    )
    assert paused.returncode == 0, paused.stdout + paused.stderr
    before = re.findall(r"pid (\d+)", command("tasks.services", "status", environment=served).stdout)
    again = command("tasks.services", "up", environment=served)
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.findall(r"pid (\d+)", command("tasks.services", "status", environment=served).stdout) == before
    assert len(before) == 3
    deployments = Prefect(served).post("/deployments/filter")
    assert {schedule["active"] for deployment in deployments for schedule in deployment["schedules"]} == {True}
    paused = command("prefect", "--no-prompt", "deployment", "schedule", "pause", "--all", environment=served)
    assert paused.returncode == 0, paused.stdout + paused.stderr
    automations = Prefect(served).post("/automations/filter")
    assert {automation["name"]: automation["enabled"] for automation in automations} == {
        WHEN_DECLINED: True,  # switched on above
        "medpix: runs that went silent are Crashed": True,
        "medpix: train on a new revision": False,  # switched off here
    }


def test_a_dead_worker_comes_back(served: dict[str, str]) -> None:
    def worker() -> int:
        line = next(
            line
            for line in command("tasks.services", "status", environment=served).stdout.splitlines()
            if "worker" in line
        )
        return int(line.split("pid ")[1].split(",")[0]) if "RUNNING" in line else 0

    before = worker()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: worker() not in (0, before), "another worker runs", 60)


def test_the_form_starts_a_run_with_what_was_filled_in_and_cancelling_ends_it(served: dict[str, str]) -> None:
    prefect, pages = Prefect(served), served["PREFECT_API_URL"].removesuffix("/api")
    deployment = prefect.deployment("medpix-finetune")
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]
    with chromium() as browser:
        submit_form(browser, served, f"{pages}/v2/deployments/deployment/{deployment['id']}/run")
    started = wait_for(prefect.newest_run, "RUNNING")
    filled = {key: value for key, value in started["parameters"].items() if value}
    assert filled == {
        "recipe": "demo",
        "tuning": "lora",
        "dataset": {"path_or_dataset": "builtin:phantom?images=40"},
        "step_scheduler": {"num_epochs": 2000},
        "optimizer": {"lr": 0.002},
        "registry": {"margin": 0.5},
    }
    assert started["name"] == "demo lora-r8 lr=0.002 phantom?images=40"
    home = Path(served["MEDPIX_HOME"])
    wait_until(lambda: trainings_of(home), "the run trains", 180)
    cancel = command("prefect", "flow-run", "cancel", started["id"], environment=served)
    assert cancel.returncode == 0, cancel.stdout + cancel.stderr
    wait_for(lambda: prefect.run(started["id"]), "CANCELLED")
    # Quietly, with the way to resume, in the log and on the page.
    records = prefect.log(started["id"])
    assert [r["message"] for r in records if r["level"] >= logging.ERROR or "Traceback" in r["message"]] == []
    (said,) = (r["message"] for r in records if r["message"].startswith("Stopped: "))
    assert f"`prefect flow-run retry {started['id']}`, resumes" in said
    assert prefect.artifact("medpix-stopped")["data"] == said
    history = prefect.get(f"/flow_run_states/?flow_run_id={started['id']}")
    assert said in [state["message"] for state in history]
    assert trainings_of(home) == []
