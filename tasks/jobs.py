"""The heavy steps. Each runs the same command as a user would by hand, follows it, and returns its `result.json`."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from tasks.launchers.choice import launcher_of
from tasks.launchers.follow import run_job
from tasks.launchers.job import Job
from tasks.progress import ProgressArtifact
from tasks.registry.register import registered_name
from tasks.registry.versions import CHAMPION, find_champion, version_uri
from tasks.run import Run
from tasks.stops import stoppable_task
from tasks.terminal import LiveLine
from tasks.trackers.mlflow_run import MetricsFollower, log_evaluation, log_files, log_parameters, system_metrics
from tasks.trackers.wandb_process import sent_to_wandb
from vlm_core.files import read_json
from vlm_core.run_directory import CONFIG, EVALUATION, LOSS_PLOT, PARAMETERS, RESULT, SAMPLES


@stoppable_task(tags=["training"], persist_result=False)
def finetune(run: Run, conversations: Path) -> dict[str, Any]:
    """Trains, and returns `{steps, first_loss, last_loss, seconds, checkpoint}`."""
    return train(run, conversations)


def train(run: Run, conversations: Path, *arguments: str, on_poll: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Trains with additional `arguments` of the command; returns the content of its `result.json`.

    The training job also fills the vision cache: a separate job would load torch and the model a second time.
    """
    follower = MetricsFollower(run.mlflow_run_id, run.directory)
    with (
        system_metrics(run.mlflow_run_id),
        sent_to_wandb(run.config, run.directory, get_run_logger()) as poll_wandb,
    ):
        run_step(
            "finetune", run, ["--conversations", str(conversations), *arguments], follower.poll, poll_wandb, on_poll
        )
    if (run.directory / PARAMETERS).is_file():  # older versions did not write it
        log_parameters(run.mlflow_run_id, run.directory)
    shown = [LOSS_PLOT, SAMPLES] if run.config.report.images else [LOSS_PLOT]
    log_files(run.mlflow_run_id, [run.directory / name for name in shown if (run.directory / name).is_file()])
    return read_json(run.directory / RESULT)


@stoppable_task(tags=["evaluation"], persist_result=False)
def evaluate(run: Run, base_model: Path, checkpoint: str, conversations: Path) -> dict[str, Any]:
    """Evaluates `checkpoint` and the current champion; returns what `vlm_core.evaluate` wrote."""
    output = run.directory / EVALUATION
    arguments = ["--checkpoint-path", checkpoint, "--output-dir", str(output), "--conversations", str(conversations)]
    name = registered_name(run.config, base_model)
    champion = find_champion(name)
    if champion:
        # By its version: the alias may move before the gate decides.
        compared = run.config.evaluation.comparisons | {CHAMPION: version_uri(name, champion)}
        arguments += ["--evaluation.compare_with", *(f"{label}={model}" for label, model in compared.items())]
    run_step("evaluate", run, arguments)
    result = read_json(output / RESULT)
    log_evaluation(run.mlflow_run_id, result, output, with_texts=run.config.report.images)
    return result


def run_step(step: str, run: Run, arguments: list[str], *on_poll: Callable[[], None]) -> None:
    """Runs `vlm_core.{step}` as a job; calls `on_poll` regularly, and shows the job's progress."""
    configured = ("--config", str(run.directory / CONFIG), *arguments)
    job = Job(f"vlm_core.{step}", configured, run.config.compute, run.directory / f"{step}.log")
    progress = ProgressArtifact(step, run.run_id, job.progress_file)
    logger = get_run_logger()
    with closing(LiveLine(job.progress_file)) as line:

        def poll() -> None:
            for call in (*on_poll, progress.poll, line.poll):
                call()

        run_job(job, launcher_of(job.compute, logger), logger=logger, on_poll=poll)
