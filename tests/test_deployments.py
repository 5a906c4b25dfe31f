"""Checks the files of deployments/ without the systems for which they are written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.utilities.importtools import import_object

DEPLOYMENTS = Path(__file__).parents[1] / "deployments"
# The variables of prefect-docker's DockerWorkerJobConfiguration (0.7). Prefect stores others, but ignores them.
DOCKER_JOB_VARIABLES = {
    "auto_remove", "command", "container_create_kwargs", "env", "image", "image_pull_policy", "labels",
    "mem_limit", "memswap_limit", "name", "network_mode", "networks", "privileged", "registry_credentials",
    "stream_output", "volumes",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions, as (name, the rest of the line)."""
    text = (DEPLOYMENTS / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.mark.parametrize("file", ["prefect.yaml", "docker.yaml"])
def test_a_deployment_file_is_valid_and_its_flows_exist(file: str) -> None:
    tree: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / file).read_text(encoding="utf-8"))
    model = PrefectYamlModel.model_validate(tree)
    assert len(model.deployments) >= 2
    for deployment, written in zip(model.deployments, tree["deployments"], strict=True):
        # Prefect ignores unknown keys, so check them here.
        assert set(written) <= set(type(deployment).model_fields)
        flow = import_object(str(deployment.entrypoint))
        assert isinstance(flow, Flow)
        assert set(deployment.parameters) <= set(flow.parameters.properties)
        assert deployment.work_pool is not None
        assert set(written["work_pool"]) <= set(type(deployment.work_pool).model_fields)
        assert set(deployment.work_pool.job_variables) <= DOCKER_JOB_VARIABLES
    for step in tree["pull"]:
        (name,) = step
        assert callable(import_object(name))


def test_the_dockerfile_is_valid_and_copies_existing_files() -> None:
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "CMD"}
    assert {name for name, _ in instructions()} <= known
    assert instructions()[:2] == [("ARG", "BASE=python:3.11-slim"), ("FROM", "${BASE} AS build")]
    assert [rest for name, rest in instructions() if name == "FROM"][-1] == "${BASE}"  # without pip's caches
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            assert [source for source in sources if not (DEPLOYMENTS.parent / source).exists()] == []
        if name == "RUN":
            assert shlex.split(rest)
        if name == "CMD":
            assert isinstance(yaml.safe_load(rest), list)
    copied = {source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]}
    assert {"medpix", "pipelines", "tasks", "vlm_core", "deployments", "pyproject.toml", "constraints.txt"} <= copied
    # Deployed runs start in the image's directory, and the home is in the volume.
    *_, workdir = (rest for name, rest in instructions() if name == "WORKDIR")
    assert f"directory: {workdir}" in (DEPLOYMENTS / "docker.yaml").read_text(encoding="utf-8")
    home = next(rest for name, rest in instructions() if rest.startswith("MEDPIX_HOME")).partition("=")[2]
    assert f"medpix-home:{home}" in (DEPLOYMENTS / "docker.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "zone"), [("Asia/Tokyo", "Asia/Tokyo"), (":America/New_York", "America/New_York"), ("No/Where", None)]
)
def test_schedules_are_in_the_time_zone_of_the_machine(setting: str, zone: str | None) -> None:
    code = "from tasks.services.deploy import local_timezone; print(local_timezone())"
    words, environment = [sys.executable, "-c", code], os.environ | {"TZ": setting}
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert found == zone if zone else ZoneInfo(found)
    schedules = (DEPLOYMENTS / "prefect.yaml").read_text(encoding="utf-8")
    assert re.findall(r"timezone: (.*)", schedules) == ['"{{ $MEDPIX_TIMEZONE }}"'] * 3
