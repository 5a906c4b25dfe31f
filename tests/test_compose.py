"""Checks deployments/compose.yaml without Docker; test_stores.py runs its commands, test_containers.py all of it."""

import json
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from tests.compose import COMPOSE, SECRETS, VARIABLE, compose_file, compose_text

VALUE = "0123456789abcdef"
GIVEN = dict.fromkeys(SECRETS, VALUE)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return compose_file(GIVEN)


def test_it_is_valid_by_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    specification = json.loads(schema.read_text(encoding="utf-8"))
    jsonschema.validate(compose, specification)
    compose["services"]["prefect"]["comand"] = []
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(compose, specification)
    del compose["services"]["prefect"]["comand"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_secret_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: set it in .env"):
        compose_file({key: value for key, value in GIVEN.items() if key != name})


def test_secrets_come_only_from_the_environment(compose: dict[str, Any]) -> None:
    assert {found["name"] for found in VARIABLE.finditer(compose_text())} == {*SECRETS, "MEDPIX_ADDRESS"}
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in ("PASSWORD", "SECRET", "AUTH_STRING")):
                assert value.removeprefix("medpix:") == VALUE
    assert {port for s in compose["services"].values() for port in s.get("ports", [])} == {
        "127.0.0.1:4200:4200", "127.0.0.1:5000:5000"}  # fmt: skip
    assert compose_file(GIVEN | {"MEDPIX_ADDRESS": "10.0.0.5"})["services"]["mlflow"]["ports"] == ["10.0.0.5:5000:5000"]


def test_everything_that_a_service_names_exists(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert {*service.get("depends_on", {})} <= {*services}
        for source in (volume.partition(":")[0] for volume in service.get("volumes", [])):
            assert source in compose["volumes"] or (COMPOSE.parent / source).is_file()
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
