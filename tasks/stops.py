"""A run that is stopped ends quietly, and says what it saved and how it resumes.

Prefect calls a task that gets SIGTERM or Ctrl-C crashed, in red. Here such a task is Cancelled, and so is its flow.
"""

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import State, Task, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort, CancelledRun, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Cancelling

from vlm_core.files import read_json
from vlm_core.run_directory import LATEST, PROGRESS

P = ParamSpec("P")
R = TypeVar("R")

STOPS = (TerminationSignal, KeyboardInterrupt)
STOPPED = "Stopped on request."
ARTIFACT = "medpix-stopped"


class Stopped(CancelledRun):
    """A run was stopped before its end; the message says why, and how it resumes."""


class StoppableTask(Task[P, R]):
    """A task that ends as Cancelled if a signal stops its process; its caller gets Stopped."""

    def __init__(self, function: Callable[P, R], **options: Any) -> None:
        super().__init__(_cancelled_by_stops(function), **options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns what the task does; raises Stopped when it was told to end."""
        result = super().__call__(*args, **kwargs)
        if isinstance(result, State):  # Prefect returns a state that the function returned
            raise Stopped(result.message)
        return result


def stoppable_task(**options: Any) -> Callable[[Callable[P, R]], StoppableTask[P, R]]:
    """Makes a task of a function, as Prefect's `task` does, that ends quietly when it is stopped."""
    return lambda function: StoppableTask(function, **options)


def _cancelled_by_stops(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except STOPS as stop:
            _Reason.stop = stop
            return cast(R, Cancelled(message=STOPPED))

    return call


class _Reason:
    """What stopped this process: its task knows, and its flow has to."""

    stop: BaseException | None = None


def ends_quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Makes the function of a flow end as Cancelled when it was stopped.

    The worker's own signal is raised again: Prefect decides by it how the run ends.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (CancelledRun, *STOPS) as error:
            stop = error if isinstance(error, STOPS) else _Reason.stop
            if isinstance(stop, TerminationSignal) and deployment.id:
                raise stop from None
            cancelled = Cancelled(message=str(error) if isinstance(error, Stopped) else STOPPED)
            if deployment.id:
                raise _Ended(_set_state(cancelled)) from None
            return cast(R, cancelled)

    return call


class _Ended(Abort):
    """Ends the engine of a deployed run without an error; a Cancelled that is returned would be one in its log."""

    def __init__(self, state: State) -> None:
        super().__init__(state.message)
        self.state = state  # the engine takes it as the run's


def _set_state(state: State) -> State:
    with get_client(sync_client=True) as client:
        return client.set_flow_run_state(UUID(str(flow_run.id)), state, force=True).state or state


def say_how_it_resumes(directory: Path, error: BaseException) -> NoReturn:
    """Says in the log and on the page of a run that `error` stopped what it saved; raises Stopped with that message."""
    if isinstance(error, STOPS):  # between two tasks
        _Reason.stop = error
    message = resumption(directory)
    get_run_logger().info("%s", message)
    if deployment.id:
        create_markdown_artifact(message, key=ARTIFACT, description="This run was stopped, and can be resumed.")
        run_id = UUID(str(flow_run.id))
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run_id).state
        if state is not None and state.is_cancelling():
            _set_state(Cancelling(message=message))
    raise Stopped(message) from None


def resumption(directory: Path) -> str:
    """Returns one line: the checkpoint that a stopped run saved last, and how the run resumes from it."""
    latest = directory / LATEST
    if latest.exists():
        step = read_json(latest / PROGRESS)["step"]
        saved, start = f"step {step:,} is saved in {directory}/{latest.resolve().name}", "from it"
    else:
        saved, start = "no checkpoint was saved yet", "from the start"
    if deployment.id:
        how = f"Retry on this page, or `prefect flow-run retry {flow_run.id}`, resumes {start}"
    else:
        how = f"the same command with `--checkpoint.checkpoint_dir {directory}` resumes {start}"
    return f"Stopped: {saved}. {how[0].upper()}{how[1:]}."


class QuietCancellation(logging.Filter):
    """Makes Prefect's last line about a cancelled task an INFO: it has it as an error."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the level of that line alone; passes every record on."""
        if record.getMessage().startswith("Finished in state Cancelled"):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return True


logging.getLogger("prefect.task_runs").addFilter(QuietCancellation())
