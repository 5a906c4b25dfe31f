"""The automations of the Prefect server: `python -m tasks.automations` creates what is missing.

A run whose process was killed stays Running for ever: nothing reports its end. Runs send heartbeats, and the automation
marks one Crashed that has sent none for a while (docs.prefect.io, detect-zombie-flows).
"""

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture

NAME = "medpix: runs that went silent are Crashed"
SILENCE = timedelta(seconds=540)  # three heartbeats


def zombie_automation() -> Automation:
    """Returns the automation; it is not created here."""
    return Automation(
        name=NAME,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", "prefect.flow-run.Completed", "prefect.flow-run.Failed",
                    "prefect.flow-run.Cancelled", "prefect.flow-run.Crashed"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat: the run's process is gone.")],
    )  # fmt: skip


def main() -> None:
    """Creates the automation where there is none of its name."""
    with get_client(sync_client=True) as client:
        there = client.read_automations_by_name(NAME)
    if not there:
        zombie_automation().create()


if __name__ == "__main__":
    main()
