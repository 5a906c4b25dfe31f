"""Ends a stopped run quietly, and reports what it saved and how to resume it.

Prefect shows a task that gets SIGTERM or Ctrl-C as crashed, in red. Here such a task and its flow end as Cancelled.
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
SWEEP = "sweep.json"  # the file in the directory of a sweep that has its settings


class Stopped(CancelledRun):
    """A run was stopped before its end; the message has the reason and how to resume."""


class StoppableTask(Task[P, R]):
    """A task that ends as Cancelled if a signal stops its process; its caller gets Stopped."""

    def __init__(self, function: Callable[P, R], **options: Any) -> None:
        super().__init__(_cancelled_by_stops(function), **options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns the task's result; raises Stopped if a signal stopped it."""
        result = super().__call__(*args, **kwargs)
        if isinstance(result, State):  # the wrapped function returned Cancelled, and Prefect passes it on
            raise Stopped(result.message)
        return result


def stoppable_task(**options: Any) -> Callable[[Callable[P, R]], StoppableTask[P, R]]:
    """Decorates a function as Prefect's `task` does; the task ends quietly when it is stopped."""
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
    """The signal that stopped this process: the task stores it here for its flow."""

    stop: BaseException | None = None


def ends_quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a flow's function so that a stopped flow ends as Cancelled.

    A signal from the worker is raised again: Prefect needs it to decide how the run ends.
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
    """Ends the engine of a deployed run without an error; a returned Cancelled state would be logged as an error."""

    def __init__(self, state: State) -> None:
        super().__init__(state.message)
        self.state = state  # the engine uses it as the state of the run


def _set_state(state: State) -> State:
    with get_client(sync_client=True) as client:
        return client.set_flow_run_state(UUID(str(flow_run.id)), state, force=True).state or state


def report_stop(directory: Path, error: BaseException) -> NoReturn:
    """Reports a stopped run's last checkpoint, in the log and on its page; raises Stopped with the same message.

    `error` is the exception that stopped the run.
    """
    if isinstance(error, STOPS):  # the signal came between two tasks, so that none has stored it
        _Reason.stop = error
    message = resumption(directory)
    get_run_logger().info("%s", message)
    if deployment.id:
        create_markdown_artifact(message, key=ARTIFACT, description=message)  # lists of artifacts show the latter
        run_id = UUID(str(flow_run.id))
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run_id).state
        if state is not None and state.is_cancelling():
            _set_state(Cancelling(message=message))
    raise Stopped(message) from None


def resumption(directory: Path) -> str:
    """Returns one line with what a stopped run or sweep has saved, and how to resume from it."""
    latest, by_hand = directory / LATEST, f"--checkpoint.checkpoint_dir {directory}"
    for sweep in (directory, directory.parent):  # a trial's directory lies in that of its sweep
        if (sweep / SWEEP).is_file():
            by_hand = f"--sweep-name {sweep.name}"
    if (directory / SWEEP).is_file():
        saved, start = f"the trials are saved in {directory}", "from them"
    elif latest.exists():
        step = read_json(latest / PROGRESS)["step"]
        saved, start = f"step {step:,} is saved in {directory}/{latest.resolve().name}", "from it"
    else:
        saved, start = "no checkpoint was saved yet", "from the start"
    if deployment.id:
        how = f"Retry on this page, or `prefect flow-run retry {flow_run.id}`, resumes {start}"
    else:
        how = f"the same command with `{by_hand}` resumes {start}"
    return f"Stopped: {saved}. {how[0].upper()}{how[1:]}."


class QuietCancellation(logging.Filter):
    """Changes the level of Prefect's last line about a cancelled task from ERROR to INFO."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Passes every record, and changes the level of that line only."""
        if record.getMessage().startswith("Finished in state Cancelled"):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return True


logging.getLogger("prefect.task_runs").addFilter(QuietCancellation())
