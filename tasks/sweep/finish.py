"""The steps after a sweep's last trial that are not tasks."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger

from tasks.run import Run
from tasks.sweep.trials import Trial
from vlm_core.files import read_json
from vlm_core.run_directory import RESULT


def training_of(run: Run) -> dict[str, Any]:
    """Returns what the training of a trial that has ended wrote."""
    return read_json(run.directory / RESULT)


def finished_result(sweep: Path, best: Trial, trials: int) -> dict[str, Any] | None:
    """Returns the result of a sweep that has ended before with the same trials, None if it has not."""
    if not (sweep / RESULT).is_file():
        return None
    result = read_json(sweep / RESULT)
    if (result["best_trial"], result["trials"]) != (best.number, trials):
        return None
    get_run_logger().info("this sweep has ended before with %d trials, and its budget allows no more", trials)
    return result
