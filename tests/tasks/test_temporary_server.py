"""The server of a flow without a server: it asks for the home's password, and ends with the flow's process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.services import ROOT, processes_of, wait_until

FLOW = """
import json, time
from tasks.run import Run
from prefect import flow, get_client

@flow
def waits():
    with get_client(sync_client=True) as client:
        print(json.dumps(str(client.api_url)), flush=True)
    time.sleep(600)

waits()
"""


@pytest.mark.slow
def test_it_has_a_password_and_ends_with_a_flow_that_is_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {"MEDPIX_HOME": str(home)}
    command = [sys.executable, "-c", FLOW]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as flow:
        try:
            assert flow.stdout is not None
            check_password(json.loads(flow.stdout.readline()), home)
            assert len(processes_of(home)) == 2
        finally:
            flow.send_signal(signal.SIGKILL)
    wait_until(lambda: processes_of(home) == [], "the server ends with its flow", 5)


def check_password(api: str, home: Path) -> None:
    user, _, secret = (home / "services" / "prefect-password").read_text().strip().partition(":")
    for auth, status in ((None, 401), ((user, "wrong"), 401), ((user, secret), 200)):
        assert httpx.post(f"{api}flows/filter", json={}, auth=auth, timeout=60).status_code == status
    assert httpx.get(f"{api}health", headers={"Host": "evil.example"}, timeout=60).status_code == 403
