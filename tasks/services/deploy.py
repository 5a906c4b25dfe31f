"""Registers with a Prefect server what the pipeline needs there: `python -m tasks.services.deploy`, as `make up` does.

Changes by people are kept: an existing work pool stays as it is, and the schedules and automations that they have
switched on or off stay so.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
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

PACKAGES = Path(__file__).parents[2]  # a checkout, or the directory that the wheel was installed in
PREFECT_FILE = PACKAGES / "deployments" / "prefect.yaml"
WORK_POOL = "medpix"
AUTOMATION = "medpix: runs that went silent are Crashed"
SILENCE = timedelta(seconds=540)  # three heartbeats
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
TIMEZONE = "MEDPIX_TIMEZONE"  # environment variable: prefect.yaml reads the time zone of its schedules from it
HEARTBEAT = "prefect.flow-run.heartbeat"


def zombie_automation() -> Automation:
    """Returns an automation that marks a run as Crashed if its process was killed and can no longer report its end.

    See docs.prefect.io, detect-zombie-flows. Use it only on a server that runs nothing but this pipeline.
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
    """Registers the work pool and the deployments, and with `own_server` also the automation."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(WORK_POOL)
        except ObjectNotFound:
            _prefect("work-pool", "create", "--type", "process", WORK_POOL)
        if own_server and not client.read_automations_by_name(AUTOMATION):
            zombie_automation().create()
        active, enabled = _active_schedules(client), _automations(client)
        _prefect("--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), "--all")
        # Deploying switches all schedules off, as the file says: restore those that were on.
        for deployment in client.read_deployments():
            for schedule in deployment.schedules:
                if (deployment.name, schedule.slug) in active:
                    client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        _restore_automations(client, enabled)


def working_directory() -> Path:
    """Returns where deployed runs start and look for relative paths: the checkout, or else this directory."""
    return PACKAGES if (PACKAGES / "pyproject.toml").is_file() else Path.cwd()


def require_imports(directory: Path) -> None:
    """Raises RuntimeError if a file of the user would be imported in place of this project's packages.

    Prefect searches the working directory first when it loads a flow.
    """
    own = ("medpix", "pipelines", "tasks", "vlm_core")
    candidates = (directory / path for name in own for path in (f"{name}.py", f"{name}/__init__.py"))
    hiding = [path for path in candidates if path.is_file() and directory != PACKAGES]
    if hiding:
        raise RuntimeError(
            f"{hiding[0]} has the name of a package of medpix-finetune, and Prefect would import it instead; rename "
            "it, or start the services in another directory"
        )


def _active_schedules(client: SyncPrefectClient) -> set[tuple[str, str | None]]:
    return {(d.name, schedule.slug) for d in client.read_deployments() for schedule in d.schedules if schedule.active}


def _automations(client: SyncPrefectClient) -> dict[str, bool]:
    """Returns `{name: whether it is switched on}` of the automations."""
    return {automation.name: automation.enabled for automation in client.read_automations()}


def _restore_automations(client: SyncPrefectClient, enabled: Mapping[str, bool]) -> None:
    """Switches automations on or off as they were: deploying creates those of its triggers again, as the file says."""
    for automation in client.read_automations():
        if enabled.get(automation.name, automation.enabled) != automation.enabled:
            change = client.pause_automation if automation.enabled else client.resume_automation
            change(automation.id)


def local_timezone() -> str:
    """Returns the name of the machine's time zone, such as Europe/Paris; UTC if it has none."""
    try:
        return get_localzone_name() or "UTC"
    except ZoneInfoNotFoundError:  # its files contradict each other, or TZ is not the name of a zone
        return "UTC"


def _prefect(*arguments: str) -> None:
    directory = str(working_directory())
    environment = {TIMEZONE: local_timezone()} | os.environ | {"PWD": directory}  # prefect.yaml reads both
    subprocess.run([sys.executable, "-m", "prefect", *arguments], cwd=directory, env=environment, check=True)


def main() -> None:
    """Runs the command."""
    deploy(own_server="--own-server" in sys.argv)


if __name__ == "__main__":
    main()
