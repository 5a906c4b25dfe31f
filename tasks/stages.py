"""Logs a heading when a stage of a run begins: its number, the number of stages, its name."""

from collections.abc import Sequence
from typing import Any

from prefect import Task, get_run_logger


class Stages:
    """The tasks of a run in order; each gets a heading in the log when it begins."""

    def __init__(self, tasks: Sequence[Task[..., Any]]) -> None:
        self.names, self.begun = [task.name for task in tasks], 0

    def run(self, task: Task[..., Any], *arguments: Any) -> Any:
        """Logs a heading such as `3/8 finetune`, runs `task` and returns its result."""
        if task.name != self.names[self.begun]:
            raise ValueError(f"{task.name} cannot be stage {self.begun + 1}; the stages are {', '.join(self.names)}")
        self.begun += 1
        get_run_logger().info("== %d/%d %s ==", self.begun, len(self.names), task.name.replace("_", " "))
        return task(*arguments)
