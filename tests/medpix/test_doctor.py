"""`medpix doctor`: each finding says what is wrong and what to do."""

import socket
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants

from medpix import machine, network
from medpix.doctor import checks, line
from medpix.finding import Finding


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_this_machine_can_run_the_tests() -> None:
    assert machine.check_python().state == "ok"
    assert machine.check_packages().state != "problem"
    assert machine.check_limits().state != "problem"


def test_a_wrong_version_and_a_missing_package_are_named() -> None:
    needed = ["pytest<1", "no-such-package>=2", "pytest>=1", 'never-needed; extra == "x"', 'old; python_version < "3"']
    wrong = dict(machine.wrong_packages(needed))
    assert list(wrong) == ["pytest<1", "no-such-package>=2"]
    assert wrong["no-such-package>=2"] == "none"


def test_a_disk_is_judged_by_its_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((1e9, "problem"), (10e9, "warning"), (1e12, "ok")):
        monkeypatch.setattr(machine, "free_bytes", lambda directory, free=free: int(free))
        found = machine.check_disk()
        assert (found.state, bool(found.remedy)) == (state, state != "ok")
    assert not home.exists()
    assert list(home.parent.iterdir()) == []


def test_a_home_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "file" / "home"))
    assert machine.check_disk().state == "problem"


def test_a_port_of_another_program_is_named_with_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        monkeypatch.setenv("PREFECT_SERVER_API_PORT", port)
        monkeypatch.setenv("MLFLOW_PORT", str(network.free_port()))
        found = network.check_ports()
        assert f"port {port} is used" in found.found
        assert not network.answers(found.remedy.rpartition("=")[2])
    assert network.check_ports().state == "ok"
    monkeypatch.setenv("MLFLOW_PORT", "http")
    assert "MLFLOW_PORT=http is not a port" in network.check_ports().found


def test_a_server_that_is_set_and_silent_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert network.check_servers().state == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{network.free_port()}")
    found = network.check_servers()
    assert found.state == "problem"
    assert "secret" not in found.found
    monkeypatch.setattr(httpx, "get", lambda url, timeout: httpx.Response(401))
    assert network.check_servers().state == "ok"


def test_a_hub_that_cannot_be_reached_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{network.free_port()}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert network.check_hub().state == "warning"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in network.check_hub().found
    assert network.check_licences(["a/b"]).state == "warning"


def test_the_report_has_a_line_and_a_remedy() -> None:
    assert line(Finding("ok", "disk", "much")) == "ok       disk       much"
    assert line(Finding("problem", "disk", "none", "buy one")).endswith("-> buy one")
    assert len(list(checks(offline=True))) < len(list(checks(offline=False)))
