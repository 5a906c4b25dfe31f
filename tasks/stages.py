"""The headings of a run's log: which stage begins, and how many there are."""

from collections.abc import Sequence
from typing import Any

from prefect import Task, get_run_logger


class Stages:
    """The tasks of a run in their order; each is announced when it begins."""

    def __init__(self, tasks: Sequence[Task[..., Any]]) -> None:
        self.names, self.begun = [task.name for task in tasks], 0

    def run(self, task: Task[..., Any], *arguments: Any) -> Any:
        """Returns what `task` returns; before that, logs a heading such as `3/8 finetune`."""
        if task.name != self.names[self.begun]:
            raise ValueError(f"{task.name} runs as stage {self.begun + 1} of {', '.join(self.names)}")
        self.begun += 1
        get_run_logger().info("== %d/%d %s ==", self.begun, len(self.names), task.name.replace("_", " "))
        return task(*arguments)
