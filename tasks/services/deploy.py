"""Registers with a Prefect server what the pipeline needs there: `python -m tasks.services.deploy`, as `make up` does.

What people have changed stays: a work pool that is there, and which schedules are switched on.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfoNotFoundError

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from tzlocal import get_localzone_name

ROOT = Path(__file__).parents[2]
WORK_POOL = "medpix"
AUTOMATION = "medpix: runs that went silent are Crashed"
SILENCE = timedelta(seconds=540)  # three heartbeats
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
TIMEZONE = "MEDPIX_TIMEZONE"  # of the schedules in prefect.yaml
HEARTBEAT = "prefect.flow-run.heartbeat"


def zombie_automation() -> Automation:
    """Returns an automation that marks a run Crashed whose process was killed: nothing else reports its end.

    See docs.prefect.io, detect-zombie-flows. It is for a server that runs this pipeline alone.
    """
    trigger = EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *ENDS},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    )
    message = "No heartbeat: the run's process is gone."
    return Automation(
        name=AUTOMATION, trigger=trigger, actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)]
    )


def deploy(own_server: bool) -> None:
    """Registers work pool and deployments; the automation too where the server is our own."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(WORK_POOL)
        except ObjectNotFound:
            _prefect("work-pool", "create", "--type", "process", WORK_POOL)
        if own_server and not client.read_automations_by_name(AUTOMATION):
            zombie_automation().create()
        active = _active_schedules(client)
        _prefect("--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
        # The file says off; who switched a schedule on meant it to stay on.
        for deployment in client.read_deployments():
            for schedule in deployment.schedules:
                if (deployment.name, schedule.slug) in active:
                    client.update_deployment_schedule(deployment.id, schedule.id, active=True)


def _active_schedules(client: SyncPrefectClient) -> set[tuple[str, str | None]]:
    return {(d.name, schedule.slug) for d in client.read_deployments() for schedule in d.schedules if schedule.active}


def local_timezone() -> str:
    """Returns the name of the machine's time zone, such as Europe/Paris; UTC where it has none."""
    try:
        return get_localzone_name() or "UTC"
    except ZoneInfoNotFoundError:  # its files contradict each other, or TZ names no zone
        return "UTC"


def _prefect(*arguments: str) -> None:
    environment = {TIMEZONE: local_timezone()} | os.environ
    subprocess.run([sys.executable, "-m", "prefect", *arguments], cwd=ROOT, env=environment, check=True)


def main() -> None:
    """Runs the command."""
    deploy(own_server="--own-server" in sys.argv)


if __name__ == "__main__":
    main()
