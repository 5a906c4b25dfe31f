"""The steps before training: the dataset, the base model, the Arrow cache of conversations, the data report.

Their caches are directories on disk, addressed by content and verified when they are opened. These tasks do not use
Prefect's result cache: it would return a path whose files are gone, and would not notice a changed `vlm_core`.
"""

from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_table_artifact

from tasks.links import report_link
from tasks.progress import ProgressArtifact
from tasks.registry.register import registered_name
from tasks.registry.versions import CHAMPION, find_champion, version_uri
from tasks.run import Run
from tasks.stops import stoppable_task
from tasks.trackers.mlflow_run import log_files
from vlm_core.cache import read_manifest
from vlm_core.config import BASE, Config
from vlm_core.config.evaluation import ENGINE
from vlm_core.data.explained_row import explain_some
from vlm_core.data.prepare import prepare_conversations, rejects_to_show
from vlm_core.data.rejects import describe_rejects
from vlm_core.data.splits import Splits, fetch_splits
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json, write_json
from vlm_core.hub import HubBusyError
from vlm_core.models.base_model import fetch_model
from vlm_core.models.model_reference import find_model
from vlm_core.progress import progress_sent_to
from vlm_core.run_directory import DATA, REPORT


def _hub_was_busy(task: Any, run: Any, state: Any) -> bool:
    """Whether a retry can help: of all failures of these steps, only a busy hub recovers by itself."""
    return isinstance(state.result(raise_on_failure=False), HubBusyError)


@stoppable_task(
    tags=["data"], persist_result=False, retries=3, retry_delay_seconds=[10, 60, 300], retry_condition_fn=_hub_was_busy
)
def download_dataset(config: Config) -> Splits:
    """Downloads or generates the missing splits, verifies both, and returns their sources."""
    with progress_sent_to(ProgressArtifact("download-dataset").show):
        splits = fetch_splits(config)
    for name, source in splits.named_sources.items():
        at = f" at {source.revision}" if source.revision else ""
        get_run_logger().info("%s: %s of %s%s", name, source.split, source.name, at)
    return splits


@stoppable_task(
    tags=["model"],
    persist_result=False,
    retries=3,
    retry_delay_seconds=[10, 60, 300],
    retry_condition_fn=_hub_was_busy,
)
def download_model(config: Config) -> Path:
    """Downloads or generates the base model if it is missing, verifies it, and returns its directory."""
    with progress_sent_to(ProgressArtifact("download-model").show):
        directory = fetch_model(config.model)
    get_run_logger().info("base model %s in %s", config.model.pretrained_model_name_or_path, directory)
    _find_compared(config, directory)
    return directory


def _find_compared(config: Config, base_model: Path) -> None:
    """Looks up the models that the evaluation will compare with, so that a missing one fails before the training."""
    from vlm_core.evaluation.engines import Engine  # lazy: imports torch

    name = registered_name(config, base_model)
    champion = find_champion(name)
    compared = config.evaluation.comparisons | ({CHAMPION: version_uri(name, champion)} if champion else {})
    for model in compared.values():
        if model.startswith(ENGINE):
            Engine.of(model)
        elif model != BASE:
            find_model(model)


@stoppable_task(tags=["data"], persist_result=False)
def preprocess_conversations(config: Config, splits: Splits) -> Path:
    """Builds the Arrow cache of the conversations of `splits` if it is missing, and returns its directory."""
    with progress_sent_to(ProgressArtifact("preprocess").show):
        directory, reused = prepare_conversations(config, splits)
    manifest = read_manifest(directory)
    get_run_logger().info(
        "%s %s: %s rows, %d images, %d cases, rejected: %s",
        "reused" if reused else "built", directory, manifest["rows"], manifest["images"], manifest["cases"],
        describe_rejects(rejects_to_show(directory, config)) or "none",
    )  # fmt: skip
    return directory


@stoppable_task(tags=["report"], persist_result=False)
def report_data(run: Run, conversations: Path, splits: Splits) -> None:
    """Writes the data report into the run directory, and shows it in MLflow and in Prefect's UI."""
    from vlm_core.pages.data_report import overview, write_data_report  # lazy: imports matplotlib

    directory = run.directory / DATA
    rows = explain_some(splits) if run.config.report.images else []
    write_data_report(run.config, conversations, directory / REPORT, rows)
    write_json(directory / STATISTICS, read_json(conversations / STATISTICS))
    log_files(run.mlflow_run_id, [directory / REPORT, directory / STATISTICS], DATA)
    create_table_artifact(overview(conversations), key="medpix-data", description=run.run_id)
    create_link_artifact(
        report_link(run.mlflow_run_id, run.directory, DATA),
        link_text="data report",
        key="medpix-data-report",
        description=run.run_id,
    )
